"""The clips that accuracy and speed are measured on: where they come from, under which licence, what is said in them.

Nothing here is committed. Clips are read from three places, and each is left out with a message where it is missing:

``shared``
    ``../shared/speech`` beside the repository, described by its ``manifest.tsv`` (a licence per row).
``debian``
    Spoken prompts and test recordings with transcripts that Debian ships, fetched by package name with
    ``apt-get download`` into a cache folder outside the repository and unpacked without being installed:

    - ``asterisk-core-sounds-{en,es,fr,it}-g722`` with the transcripts in ``asterisk-core-sounds-{en,es,fr,it}``:
      telephone prompts, one speaker per language, mostly 2 to 8 s, 16 kHz. CC-BY-SA-3.0, Allison Smith (en, es),
      June Wallack (fr); the Italian ones (Carlo Flezza) are GPL-2+.
    - ``asterisk-core-sounds-ru-g722``: the same in Russian. CC-BY-3.0, Maxim Topal.
    - ``pocketsphinx-testdata``: LibriVox sentences (public domain), BSD-2-Clause packaging.
    - ``asterisk-moh-opsound-g722``: music on hold. CC-BY-SA-3.0 (Macroform, Manolo Camp, Reno Project).
    - ``sound-theme-freedesktop``: desktop sounds, of which those without a voice are used. CC-BY-SA-3.0, GPL-2+,
      CC-BY-3.0 by file (see its copyright file).
``generated``
    Silence, noises, hums, tones, fans and clicks from a seeded generator; free of any licence.

Prompts whose transcript does not say unambiguously which words are spoken are left out, since no normaliser can be
fair to them: single letters, digits and units, key symbols (``*``, ``#``), stage directions, dotted fragments of under
four words, and the few whose transcript is not what the recording says. Plain misspellings in the transcripts are
repaired (`REPAIRS`). Whisper writes "1" where a prompt says "one"; the English normaliser maps both to the same, the
one for other languages does not, so there a prompt with any digit is left out.

Prompts are one voice each. They measure whether a shortened window changes the words, not how well Whisper does.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import wave
from typing import TYPE_CHECKING, Literal

import numpy as np
from faster_whisper.audio import decode_audio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

RATE = 16_000
"""Samples per second of every clip's audio."""

MIN_WORDS = 4
"""Shorter prompts ("Goodbye.") make a rate of errors out of a matter of taste."""

NO_SPEECH = "zxx"
"""ISO 639's code for "no linguistic content": the language of silence, noise and music."""

VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}
LICENCES = {"it": "GPL-2+", "ru": "CC-BY-3.0"}

PACKAGES = (
    *(f"asterisk-core-sounds-{language}" for language in VOICES),
    *(f"asterisk-core-sounds-{language}-g722" for language in VOICES),
    "asterisk-moh-opsound-g722",
    "pocketsphinx-testdata",
    "sound-theme-freedesktop",
)

TONES = frozenset({"beep", "beeperr", "confbridge-join", "confbridge-leave"})
"""Prompts whose transcript describes a sound instead of quoting a voice, in some languages without brackets."""

REPAIRS = {
    "represenatives": "representatives",
    "umute": "unmute",
    "un-indentified": "unidentified",
    "witheld": "withheld",
    "présentemnet": "présentement",
    "contrasena": "contraseña",
}
"""Misspellings in the transcripts, and the words that are spoken."""

AMBIGUOUS = re.compile(r"[*#&=<>\[\]()/]|\b[A-Z]\b(?<![AI])|www\.|\d{2,}|\d\.\d")
"""What a speaker may have read in more than one way."""

DIGIT = re.compile(r"\d")

MUSIC_SECONDS = 20.0


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """One recording and what is said in it; ``reference`` is empty without speech."""

    id: str
    seconds: float
    language: str
    reference: str
    group: Literal["shared", "debian", "generated"]
    kind: str
    licence: str
    path: Path | None = None
    samples: NDArray[np.float32] | None = None

    @property
    def audio(self) -> NDArray[np.float32]:
        """Mono float32 samples at `RATE`, as faster-whisper decodes them."""
        if self.samples is not None:
            return self.samples
        decoded: NDArray[np.float32] = decode_audio(str(self.path), sampling_rate=RATE)
        return decoded

    @property
    def held_out(self) -> bool:
        """Whether the clip is in the half that no threshold was chosen on (by its words: copies stay together)."""
        return hashlib.sha256((self.reference or self.id).lower().encode()).digest()[0] % 2 == 1


def wav(audio: NDArray[np.float32]) -> bytes:
    """Return ``audio`` as a 16-bit mono WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(_sixteen_bits(audio).tobytes())
    return buffer.getvalue()


def as_uploaded(audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the samples that `wav` leaves of ``audio``: what a server hears, and so what others are to be given.

    A recording has more than 16 bits once it is decoded, and the last of them decide where Whisper hesitates.
    """
    return _sixteen_bits(audio).astype(np.float32) / np.float32(32768)


def shared(root: Path) -> Iterator[Clip]:
    """Yield the clips that ``root/manifest.tsv`` describes; none, and a message, without it."""
    manifest = root / "manifest.tsv"
    if not manifest.is_file():
        _skip(f"no {manifest}: the shared recordings are left out")
        return
    with manifest.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield Clip(
                id=row["id"],
                seconds=float(row["seconds"]),
                language=row["language"],
                reference=row["reference_text"],
                group="shared",
                kind=row["kind"],
                licence=row["licence"],
                path=root / row["file"],
            )


def debian(cache: Path) -> Iterator[Clip]:
    """Fetch what is missing in ``cache`` and yield the prompts, sentences and sounds of `PACKAGES`."""
    for package in PACKAGES:
        _fetch(package, cache)
    for language in VOICES:
        yield from _prompts(cache, language)
    yield from _librivox(cache)
    yield from _sounds(cache)


def generated(seed: int = 0) -> Iterator[Clip]:
    """Yield silence, noises and machine sounds, the same for the same ``seed``."""
    rng = np.random.default_rng(seed)
    for seconds in (1.0, 5.0, 30.0, 65.0):
        yield _made(f"silence-{seconds:g}s", np.zeros(int(seconds * RATE)))
    for colour, exponent in (("white", 0.0), ("pink", 0.5), ("brown", 1.0)):
        for level in (0.005, 0.05, 0.3):
            yield _made(f"{colour}-{level:g}", level * noise(rng, 8.0, exponent))
    time = np.arange(8 * RATE) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5, 7))
    yield _made("mains-hum", 0.1 * hum + 0.003 * noise(rng, 8.0, 0.0))
    for hertz in (100, 440, 1000, 3000):
        yield _made(f"tone-{hertz}", 0.2 * np.sin(2 * np.pi * hertz * time))
    beeps = np.sin(2 * np.pi * 425 * time) * (time % 1.0 < 0.5)
    yield _made("busy-line", 0.2 * beeps)
    fan = noise(rng, 8.0, 1.0) * (1 + 0.3 * np.sin(2 * np.pi * 11 * time)) + 0.3 * np.sin(2 * np.pi * 120 * time)
    yield _made("fan", 0.1 * fan)
    for rate in (1, 6):
        clicks = np.zeros(8 * RATE)
        clicks[rng.integers(0, clicks.size, 8 * rate)] = rng.uniform(-0.9, 0.9, 8 * rate)
        yield _made(f"clicks-{rate}-per-second", np.convolve(clicks, np.exp(-np.arange(80) / 12), "same"))
    chord = sum(np.sin(2 * np.pi * hertz * time) for hertz in (220.0, 277.18, 329.63))
    yield _made("chord-tremolo", 0.1 * chord * (1 + 0.5 * np.sin(2 * np.pi * 5 * time)))


def load(repository: Path, cache: Path) -> list[Clip]:
    """Return every clip that can be had, shared ones first; what cannot is named on stderr."""
    return [*shared(repository.parent / "shared" / "speech"), *debian(cache), *generated()]


def joined(clips: Sequence[Clip], seconds: float, *, pause: float = 0.7, name: str = "joined") -> Clip:
    """Return ``clips``, over and over with ``pause`` seconds between them, as one recording of at least ``seconds``.

    The pauses are faint noise, as a room has it: digital silence would make the cutting easier than it is.
    """
    room = (0.0005 * noise(np.random.default_rng(1), pause, 0.5)).astype(np.float32)
    pieces: list[NDArray[np.float32]] = []
    words: list[str] = []
    length = 0
    while length < seconds * RATE:
        clip = clips[len(words) % len(clips)]
        pieces += [clip.audio, room]
        words.append(clip.reference)
        length += clip.audio.size + room.size
    return dataclasses.replace(
        clips[0],
        id=name,
        seconds=length / RATE,
        reference=" ".join(words),
        kind="long",
        path=None,
        samples=np.concatenate(pieces),
    )


def length_group(seconds: float) -> str:
    """Name the bracket of lengths that a clip is reported under."""
    for upper in (3, 6, 10, 15, 30):
        if seconds <= upper:
            return f"<= {upper} s"
    return "> 30 s"


def _prompts(cache: Path, language: str) -> Iterator[Clip]:
    transcript = cache / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    sounds = cache / f"usr/share/asterisk/sounds/{VOICES[language]}"
    if not (transcript.is_file() and sounds.is_dir()):
        _skip(f"no prompts in {language!r}: they are left out")
        return
    for line in gzip.decompress(transcript.read_bytes()).decode("utf-8-sig").splitlines():
        name, separator, text = line.partition(":")
        path = sounds / f"{name.strip()}.g722"
        if line.startswith(";") or not separator or not path.is_file() or AMBIGUOUS.search(text):
            continue
        if name.strip() in TONES or (language != "en" and DIGIT.search(text)):
            continue
        reference = " ".join(REPAIRS.get(word.lower(), word) for word in text.replace("...", " ").split())
        if len(reference.split()) < MIN_WORDS:
            continue
        yield Clip(
            id=f"ast-{language}-{name.strip().replace('/', '-')}",
            seconds=path.stat().st_size / 8000,  # G.722 at 64 kbit/s
            language=language,
            reference=reference,
            group="debian",
            kind="prompt",
            licence=LICENCES.get(language, "CC-BY-SA-3.0"),
            path=path,
        )


def _librivox(cache: Path) -> Iterator[Clip]:
    folder = cache / "usr/share/pocketsphinx/test/data/librivox"
    transcript = folder / "transcription"
    if not transcript.is_file():
        _skip("no pocketsphinx test data: it is left out")
        return
    for text, name in re.findall(r"<s> (.+?) </s> \((\S+)\)", transcript.read_text(encoding="utf-8")):
        path = folder / f"{name}.wav"
        yield Clip(
            id=f"sphinx-{name[-4:]}",
            seconds=(path.stat().st_size - 44) / 2 / RATE,
            language="en",
            # A slip in the transcript, not in the reading.
            reference=text.replace("a more a amiable", "a more amiable"),
            group="debian",
            kind="read",
            licence="public domain (LibriVox)",
            path=path,
        )


def _sounds(cache: Path) -> Iterator[Clip]:
    tracks = sorted((cache / "usr/share/asterisk/moh").glob("*.g722"))
    desktop = sorted((cache / "usr/share/sounds/freedesktop/stereo").glob("*.oga"))
    if not tracks or not desktop:
        _skip("music on hold or desktop sounds are missing and left out")
    for path in tracks:
        track: NDArray[np.float32] = decode_audio(str(path), sampling_rate=RATE)
        # From the tenth second on: an intro is often silence.
        samples = track[10 * RATE : 10 * RATE + int(MUSIC_SECONDS * RATE)]
        yield Clip(
            id=f"music-{path.stem}",
            seconds=samples.size / RATE,
            language=NO_SPEECH,
            reference="",
            group="debian",
            kind="nonspeech",
            licence="CC-BY-SA-3.0",
            samples=samples,
        )
    for path in desktop:
        if path.stem.startswith("audio-channel-"):  # a voice names the loudspeaker
            continue
        samples = decode_audio(str(path), sampling_rate=RATE)
        yield Clip(
            id=f"desktop-{path.stem}",
            seconds=samples.size / RATE,
            language=NO_SPEECH,
            reference="",
            group="debian",
            kind="nonspeech",
            licence="CC-BY-SA-3.0 or GPL-2+ or CC-BY-3.0",
            samples=samples,
        )


def _fetch(package: str, cache: Path) -> None:
    """Unpack ``package`` into ``cache`` once; say so and go on where it cannot be had."""
    stamp = cache / "packages" / package
    if stamp.exists():
        return
    download, unpack = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if download is None or unpack is None:
        _skip(f"no apt-get here: {package} is left out")
        return
    folder = cache / "packages" / f"{package}.download"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run([download, "download", package], cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.deb"))
    if done.returncode or not archives:
        _skip(f"apt-get download {package} failed ({done.stderr.strip()[-200:]}): it is left out")
        return
    subprocess.run([unpack, "-x", str(archives[0]), str(cache)], check=True)
    shutil.rmtree(folder)
    stamp.touch()


def _sixteen_bits(audio: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2")


def _made(name: str, samples: NDArray[np.float64]) -> Clip:
    return Clip(
        id=f"made-{name}",
        seconds=samples.size / RATE,
        language=NO_SPEECH,
        reference="",
        group="generated",
        kind="nonspeech",
        licence="none",
        samples=samples.astype(np.float32),
    )


def noise(rng: np.random.Generator, seconds: float, exponent: float) -> NDArray[np.float64]:
    """Return noise whose amplitude falls with frequency to the power ``exponent``; its root mean square is 1."""
    count = int(seconds * RATE)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequencies = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 20.0)
    noise: NDArray[np.float64] = np.fft.irfft(spectrum / frequencies**exponent, count)
    noise /= np.sqrt(np.mean(noise**2))
    return noise


def _skip(message: str) -> None:
    print(f"corpus: {message}", file=sys.stderr)
