"""Subtitles of real recordings, through a server: whether each cue keeps the limits, and FFmpeg reads the files.

    python benchmarks/subtitles.py --corpus FOLDER [--split test] [--language en …] [--keep FOLDER]

Long recordings of the corpus (`corpus/build.py`) are sent as they are; short clips of one language are joined to about
a minute, 0.7 s apart. Where espeak-ng is installed, a synthetic Arabic recording is added, since the corpus has no
Arabic. Each recording is asked for as srt, as vtt, and as verbose_json with the same limits of 42 columns and two
lines: the latter has the text that the cues must have. The server keeps the transcript, so all three are of one.

Bars, for every cue: no line over the width unless it is a single word, at most two lines, no break inside a word, no
overlap, no word lost, at most 7 s, at least 1 s where the next cue leaves the time, at most 21 columns a second where
the speech is not faster. FFmpeg must read srt and vtt without a word on stderr, and give the same cues. How many cues
end at punctuation or in a pause is reported without a bar.
"""

import argparse
import html
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import openai

from localwhisper_client.server_process import serving

COLUMNS, LINES = 42, 2
LONGEST, SHORTEST, FASTEST = 7.0, 1.0, 21.0
ROUNDING = 0.0015
"""Seconds by which times in milliseconds may be off."""
GAP_SECONDS = 0.7
JOINED_SECONDS = 60.0
PER_LANGUAGE = 420.0
"""At most so many seconds of a language, so that English is not most of it."""
KINDS = {"clean", "spontaneous", "long", "made"}
UNSPACED = re.compile(r"CJK|HIRAGANA|KATAKANA|IDEOGRAPHIC|FULLWIDTH|THAI|LAO|MYANMAR")
"""In the names of letters of scripts that have no spaces between words."""
PUNCTUATION = '.,!?…;:—–。、！？；：،؛؟،"”’»)]」』）-'  # noqa: RUF001 - these signs are meant
ARABIC = (
    "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً، وعليهم أن يعامل بعضهم بعضاً بروح "
    "الإخاء. لكل إنسان حق التمتع بكافة الحقوق والحريات الواردة في هذا الإعلان، دون أي تمييز. لكل فرد الحق في الحياة "
    "والحرية وسلامة شخصه. لا يجوز استرقاق أو استعباد أي شخص، ويحظر الاسترقاق وتجارة الرقيق بكافة أوضاعهما."
)
"""From the Universal Declaration of Human Rights."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What is sent, and in which language."""

    name: str
    language: str
    sound: bytes


@dataclass(frozen=True, slots=True)
class Cue:
    """One cue of a file."""

    start: float
    end: float
    lines: tuple[str, ...]


def recordings(folder: Path, split: str, languages: Sequence[str]) -> Iterator[Recording]:
    """Yield the recordings of a split, or of both for "all"."""
    clips = [clip for part in (("tune", "test") if split == "all" else (split,)) for clip in corpus.built(folder, part)]
    spoken = [clip for clip in clips if clip.reference and clip.group in KINDS]
    by_language: dict[str, list[corpus.Clip]] = defaultdict(list)
    for clip in sorted(spoken, key=lambda clip: clip.id):
        by_language[clip.language].append(clip)
    for language, found in sorted(by_language.items()):
        if languages and language not in languages:
            continue
        total = 0.0
        for name, samples in _joined(found):
            seconds = samples.size / corpus.RATE
            if seconds > 20 and total + seconds < PER_LANGUAGE:
                total += seconds
                yield Recording(f"{language}-{name}", language, corpus.wav(samples))
    if shutil.which("espeak-ng") and (not languages or "ar" in languages):
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            subprocess.run(["espeak-ng", "-v", "ar", "-s", "140", "-w", file.name, ARABIC], check=True)  # noqa: S607 - it is in the path
            yield Recording("ar-synthetic", "ar", Path(file.name).read_bytes())


def _joined(clips: Sequence[corpus.Clip]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield long clips alone, then the short ones joined to about a minute."""
    gap = np.zeros(int(GAP_SECONDS * corpus.RATE), np.float32)
    parts: list[np.ndarray] = []
    for clip in clips:
        if clip.seconds > 30:
            yield clip.id, clip.audio
    for clip in clips:
        if clip.seconds <= 30:
            parts += [clip.audio, gap]
            if sum(part.size for part in parts) > JOINED_SECONDS * corpus.RATE:
                yield f"joined-to-{clip.id}", np.concatenate(parts)
                parts = []
    if parts:
        yield "joined-rest", np.concatenate(parts)


def parsed(text: str) -> list[Cue]:
    """Read srt or vtt strictly."""
    text, vtt = text.replace("\r\n", "\n"), text.startswith("WEBVTT")
    blocks = [block for block in re.split(r"\n\n+", text.removeprefix("WEBVTT").strip("\n")) if block]
    found = []
    for block in blocks:
        lines = block.split("\n")
        if "-->" not in lines[0]:
            lines = lines[1:]
        start, end = (_seconds(clock) for clock in lines[0].split(" --> "))
        shown = (html.unescape(line) if vtt else line for line in lines[1:])
        found.append(Cue(start, end, tuple(shown)))
    return found


def _seconds(clock: str) -> float:
    parts = [float(part) for part in clock.strip().replace(",", ".").split(":")]
    return sum(part * 60.0**power for power, part in enumerate(reversed(parts)))


def width(text: str) -> int:
    """Return the columns of a text; written apart from the server's, which is what is checked."""
    return sum(
        0 if unicodedata.combining(letter) or unicodedata.category(letter) in {"Mn", "Me", "Cf"} else
        2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )  # fmt: skip


def faults(cues: Sequence[Cue], segments: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the cues of a text, which is that of the segments together."""
    for before, cue in pairwise(cues):
        if cue.start < before.end - ROUNDING:
            yield f"overlap at {cue.start:.3f}"
    for cue, following in zip_longest(cues, cues[1:]):
        yield from _ill_shaped(cue)
        yield from _ill_timed(cue, following.start if following else cue.start + LONGEST)
    yield from _lost([line for cue in cues for line in cue.lines], segments)


def _ill_shaped(cue: Cue) -> Iterator[str]:
    if not cue.lines or not all(line.strip() == line and line for line in cue.lines):
        yield f"a blank line at {cue.start:.3f}"
    if len(cue.lines) > LINES:
        yield f"{len(cue.lines)} lines at {cue.start:.3f}"
    for line in cue.lines:
        if width(line) > COLUMNS and " " in line:
            yield f"{width(line)} columns: {line}"


def _ill_timed(cue: Cue, until: float) -> Iterator[str]:
    lasts, whole = cue.end - cue.start, " ".join(cue.lines)
    time_left = until - cue.end > ROUNDING
    if lasts > LONGEST + ROUNDING:
        yield f"{lasts:.2f} s: {whole}"
    if lasts < SHORTEST - ROUNDING and time_left:
        yield f"{lasts:.2f} s though the next begins {until - cue.end:.2f} s later: {whole}"
    if fast(cue) and time_left and lasts < LONGEST - 0.1:
        yield f"{width(whole) / lasts:.0f} columns a second though there is time: {whole}"


def fast(cue: Cue) -> bool:
    """Whether a cue has more columns a second than can be read."""
    return width(" ".join(cue.lines)) > (FASTEST + 0.5) * (cue.end - cue.start)


def _lost(lines: Sequence[str], segments: Sequence[str]) -> Iterator[str]:
    text, at = "".join(segments), 0
    # In a script without spaces, nothing separates the segments.
    begins = set(accumulate(map(len, segments)))
    for line in lines:
        start = at
        while at < len(text) and text[at].isspace():
            at += 1
        if start == at and at and at not in begins and not UNSPACED.search(_names(text[at - 1 : at + 1])):
            yield f"a word is cut: {text[max(0, at - 12) : at]}|{text[at : at + 12]}"
        for letter in line:
            if letter.isspace():
                while at < len(text) and text[at].isspace():
                    at += 1
            elif at < len(text) and text[at] == letter:
                at += 1
            else:
                yield f"words differ: {line!r} for {text[max(0, at - 10) : at + 40]!r}"
                return
    if text[at:].strip():
        yield f"words are lost: {text[at:]!r}"


def _names(letters: str) -> str:
    return " ".join(unicodedata.name(letter, "") for letter in letters)


def read_by_ffmpeg(text: str, kind: str) -> Iterator[str]:
    """Yield what FFmpeg says against a file, and how what it reads differs."""
    muxer = {"srt": "srt", "vtt": "webvtt"}[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"subtitles.{kind}"
        path.write_text(text, encoding="utf-8", newline="")
        command = ["ffmpeg", "-v", "warning", "-i", str(path), "-f", muxer, "-"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode or done.stderr.strip():
        yield f"ffmpeg on {kind}: {done.stderr.strip() or done.returncode}"
    elif (again := parsed(done.stdout)) != (cues := parsed(text)):
        differ = next((pair for pair in zip(cues, again, strict=False) if pair[0] != pair[1]), None)
        yield f"ffmpeg reads {len(again)} of {len(cues)} cues of {kind}; first difference: {differ}"


def main() -> int:
    """Print the figures; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--split", choices=["tune", "test", "all"], default="test")
    parser.add_argument("--language", action="append", default=[])
    parser.add_argument("--model", default="base")
    parser.add_argument("--keep", type=Path, help="folder to write the files to")
    asked = parser.parse_args()
    limits = {"max_line_width": COLUMNS, "max_line_count": LINES}
    counted: Counter[str] = Counter()
    wrong: list[str] = []
    with (
        serving("--model", asked.model, "--log-file=none", "--cache=1") as server,
        openai.OpenAI(base_url=server.base_url, api_key="any", timeout=600) as client,
    ):
        for one in recordings(asked.corpus, asked.split, asked.language):
            answers: dict[str, Any] = {}
            for kind in ("verbose_json", "srt", "vtt"):
                answers[kind] = client.audio.transcriptions.create(
                    file=("sound.wav", one.sound),
                    model="whisper-1",
                    language=one.language,
                    response_format=kind,
                    extra_body=limits,
                )
            segments = [segment.text for segment in answers["verbose_json"].segments]
            files = {kind: str(answers[kind]) for kind in ("srt", "vtt")}
            if asked.keep:
                asked.keep.mkdir(parents=True, exist_ok=True)
                for kind, content in files.items():
                    (asked.keep / f"{one.name}.{kind}").write_text(content, encoding="utf-8", newline="")
            cues = parsed(files["srt"])
            found = [*faults(cues, segments), *(fault for kind in files for fault in read_by_ffmpeg(files[kind], kind))]
            if parsed(files["vtt"]) != cues:
                found.append("srt and vtt differ")
            wrong += found
            counted["recordings"] += 1
            counted["cues"] += len(cues)
            counted["lines"] += sum(len(cue.lines) for cue in cues)
            counted["under 1 s"] += sum(cue.end - cue.start < SHORTEST - ROUNDING for cue in cues)
            counted["over 21 columns a second"] += sum(fast(cue) for cue in cues)
            counted["end at punctuation"] += sum(cue.lines[-1][-1] in PUNCTUATION for cue in cues)
            print(f"{one.name}: {len(cues)} cues", *found, sep="\n  ", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counted.items()), f"{len(wrong)} faults", sep=", ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
