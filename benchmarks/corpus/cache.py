"""Spoken prompts and test recordings with transcripts that Debian ships, kept in a cache folder.

Each package is fetched by name with ``apt-get download`` into a folder outside the repository, and unpacked without
being installed. What cannot be had is left out with a message.

- ``asterisk-core-sounds-{en,es,fr,it}-g722`` with the transcripts in ``asterisk-core-sounds-{en,es,fr,it}``: telephone
  prompts, one speaker per language, mostly 2 to 8 s, 16 kHz. CC-BY-SA-3.0, Allison Smith (en, es), June Wallack (fr);
  the Italian ones (Carlo Flezza) are GPL-2+.
- ``asterisk-core-sounds-ru-g722``: the same in Russian. CC-BY-3.0, Maxim Topal.
- ``pocketsphinx-testdata``: LibriVox sentences (public domain), BSD-2-Clause packaging.
- ``asterisk-moh-opsound-g722``: music on hold. CC-BY-SA-3.0 (Macroform, Manolo Camp, Reno Project).
- ``sound-theme-freedesktop``: desktop sounds, of which those without a voice are used. CC-BY-SA-3.0, GPL-2+,
  CC-BY-3.0 by file (see its copyright file).

Prompts whose transcript does not say unambiguously which words are spoken are left out, since no normaliser can be
fair to them: single letters, digits and units, key symbols (``*``, ``#``), stage directions, dotted fragments of under
four words, and the few whose transcript is not what the recording says. Plain misspellings in the transcripts are
repaired (`REPAIRS`). Whisper writes "1" where a prompt says "one"; the English normaliser maps both to the same, the
one for other languages does not, so there a prompt with any digit is left out.

Prompts are one voice each. They measure whether a shortened window changes the words, not how well Whisper does.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

from faster_whisper.audio import decode_audio

from corpus.clips import RATE, Clip, skip, without_speech

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

MIN_WORDS = 4
"""Shorter prompts ("Goodbye.") make a rate of errors out of a matter of taste."""

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


def debian(cache: Path) -> Iterator[Clip]:
    """Fetch what is missing in ``cache`` and yield the prompts, sentences and sounds of `PACKAGES`."""
    for package in PACKAGES:
        _fetch(package, cache)
    for language in VOICES:
        yield from _prompts(cache, language)
    yield from _librivox(cache)
    yield from _sounds(cache)


def _prompts(cache: Path, language: str) -> Iterator[Clip]:
    transcript = cache / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    sounds = cache / f"usr/share/asterisk/sounds/{VOICES[language]}"
    if not (transcript.is_file() and sounds.is_dir()):
        skip(f"no prompts in {language!r}: they are left out")
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
        skip("no pocketsphinx test data: it is left out")
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
        skip("music on hold or desktop sounds are missing and left out")
    for path in tracks:
        track: NDArray[np.float32] = decode_audio(str(path), sampling_rate=RATE)
        # From the tenth second on: an intro is often silence.
        samples = track[10 * RATE : 10 * RATE + int(MUSIC_SECONDS * RATE)]
        yield without_speech(f"music-{path.stem}", samples, "debian", "CC-BY-SA-3.0")
    for path in desktop:
        if not path.stem.startswith("audio-channel-"):  # a voice names the loudspeaker
            samples = decode_audio(str(path), sampling_rate=RATE)
            yield without_speech(f"desktop-{path.stem}", samples, "debian", "CC-BY-SA-3.0 or GPL-2+ or CC-BY-3.0")


def _fetch(package: str, cache: Path) -> None:
    """Unpack ``package`` into ``cache`` once; say so and go on where it cannot be had."""
    stamp = cache / "packages" / package
    if stamp.exists():
        return
    download, unpack = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if download is None or unpack is None:
        skip(f"no apt-get here: {package} is left out")
        return
    folder = cache / "packages" / f"{package}.download"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run([download, "download", package], cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.deb"))
    if done.returncode or not archives:
        skip(f"apt-get download {package} failed ({done.stderr.strip()[-200:]}): it is left out")
        return
    subprocess.run([unpack, "-x", str(archives[0]), str(cache)], check=True)
    shutil.rmtree(folder)
    stamp.touch()
