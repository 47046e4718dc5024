"""Every container and codec that FFmpeg writes, and films with all their tracks, transcribed by the base model.

`tests/server/audio/test_media.py` compares samples; these tests compare words. They take minutes: `nox -s media`.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import av.error
import jiwer
import pytest

from localwhisper_server.audio.pool import Pool, decode
from localwhisper_server.errors import ServerError
from localwhisper_server.transcription.scheduler import Scheduler
from localwhisper_server.transcription.transcriber import StepRunner, Transcriber
from localwhisper_server.types import BatchLimits, Decoding, Options, Transcript
from localwhisper_server.whisper import weights
from localwhisper_server.whisper.chunks import find_speech
from localwhisper_server.whisper.devices import Device, Workers
from localwhisper_server.whisper.engine import Engine
from tests.server import media
from tests.server.sound import encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localwhisper_server.types import Samples

pytestmark = [
    pytest.mark.model,
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    pytest.mark.skipif("MEDIA" not in os.environ, reason="nox -s media runs it"),
]

WORDS = "please buy milk and bread on the way home and call me when you are there"
MOST_WRONG = 0.25  # the word error rate of 8 kbit/s and one-bit codecs (real_144, dfpwm)
# A codec's delay before the first sound, and the precision of the model.
FIRST_WORD_SECONDS = 0.3
# FFmpeg writes wrong timestamps into these: the second packet is ten packets late.
WRONG_TIMESTAMPS = {("wtv", "flac"), ("asf", "flac")}


@pytest.fixture(scope="module")
def speech(voices: dict[str, Path]) -> Samples:
    """Give five seconds of speech."""
    with voices["demo"].open("rb") as file:
        return decode(file, max_seconds=60)


@pytest.fixture(scope="module")
def transcriber(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcriber]:
    """Give a transcriber with real confined workers and the base model."""
    folder = weights.find("base", cache_dir=tmp_path_factory.mktemp("models"))
    engine = Engine(folder, Device("cpu", "int8", "test"), Workers(1, 2))
    limits = BatchLimits(items=4, frames=6000, share=6000)
    scheduler = Scheduler(engine.run, capacity=4, limits=limits, clock=lambda: 0.0)
    with closing(Pool(environ=os.environ)) as pool:
        yield Transcriber(
            scheduler=scheduler,
            prepare=engine.prepare,
            find_speech=find_speech,
            blocks=pool.blocks,
            steps=StepRunner(clock=lambda: 0.0),
            max_seconds=600,
        )
    assert scheduler.close(60)


async def _fault(transcriber: Transcriber, data: bytes, *, at: float = 0.0, language: str | None = "en") -> str | None:
    """Return what is wrong with the transcript, or None; the speech begins `at` seconds in."""
    options = Options(Decoding(words=True, language=language))
    try:
        items = [item async for item in transcriber.transcribe(io.BytesIO(data), options)]
    except ServerError as failure:
        return failure.message
    transcript = items[-1]
    assert isinstance(transcript, Transcript)
    heard = " ".join(re.findall(r"\w+", transcript.text.lower().replace("you're", "you are")))
    wrong = jiwer.wer(WORDS, heard)
    if wrong > MOST_WRONG:
        return f"{wrong:.0%} of the words are wrong: {heard!r}"
    first = next(word.start for segment in transcript.segments for word in segment.words)
    return f"begins at {first:.2f}" if abs(first - at) > FIRST_WORD_SECONDS else None


@pytest.mark.parametrize("container", media.muxers())
async def test_every_codec(transcriber: Transcriber, speech: Samples, container: str) -> None:
    """What FFmpeg can write and decode is transcribed, and its first word has the right time."""
    faults, right = {}, []
    for codec in media.encoders():
        try:
            data = media.recording(speech, container, codec)
        except (av.error.FFmpegError, ValueError, OverflowError):
            continue  # not a codec for this container
        fault = await _fault(transcriber, data)
        if fault is None:
            right.append(codec)
        elif (plain := media.plainly(data)) is not None and media.found_at(speech, plain)[1] > 0.9:
            faults[codec] = fault
    print(f"\n| {container} | {len(right)} | {' '.join(right)} |")  # noqa: T201 - the table is the purpose of the run
    assert {codec: fault for codec, fault in faults.items() if (container, codec) not in WRONG_TIMESTAMPS} == {}


FILMS = {
    "mkv": "-c:v mpeg4 -c:a libopus",
    "webm": "-c:v libvpx -deadline realtime -c:a libopus",
    "mp4": "-c:v mpeg4 -c:a aac",
    "mov": "-c:v mpeg4 -c:a pcm_s16le",
    "3gp": "-c:v mpeg4 -c:a aac",
    "m4v": "-c:v mpeg4 -c:a aac -f mp4",
    "ts": "-c:v mpeg2video -c:a mp2",
    "mpg": "-c:v mpeg2video -c:a mp2",
    "vob": "-c:v mpeg2video -c:a ac3",
    "flv": "-c:v flv -c:a aac -ar 44100",
    "wmv": "-c:v wmv2 -c:a wmav2",
    "avi": "-c:v mpeg4 -c:a libmp3lame",
    "nut": "-c:v mpeg4 -c:a flac",
    "ogv": "-c:v libtheora -c:a libvorbis",
    "mxf": "-c:v mpeg2video -c:a pcm_s16le -ar 48000",
}
TEXTS = {"mkv": ("srt", "ass", "webvtt"), "mp4": ("mov_text",), "mov": ("mov_text",), "m4v": ("mov_text",)}
TEXTS |= {"webm": ("webvtt",), "ts": ("dvbsub",)}
COVERS = {
    "mp3": "-c:a libmp3lame",
    "m4a": "-c:a aac",
    "flac": "-c:a flac",
    "wma": "-c:a wmav2",
    "aiff": "-write_id3v2 1",
}
CHAPTERS = {"mkv": FILMS["mkv"], "mp4": FILMS["mp4"], "m4b": "-c:a aac -f ipod", "mp3": "-c:a libmp3lame"}
CHAPTERS |= {
    "ogg": "-c:a libvorbis",
    "opus": "-c:a libopus",
    "mka": "-c:a flac",
    "wma": "-c:a wmav2",
    "nut": "-c:a mp2",
}
# FFmpeg writes no offset of a track into these.
NO_OFFSET = {"avi", "mxf"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech: Samples) -> Path:
    """Give a folder with the parts of films: speech, a tone, a picture, subtitles, chapters."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here")
    made = tmp_path_factory.mktemp("films")
    (made / "speech.wav").write_bytes(encode(speech[None]))
    (made / "text.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nHello\n")
    (made / "chapters.txt").write_text(
        ";FFMETADATA1\ntitle=A\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=2000\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=2000\nEND=4800\ntitle=Two\n"
    )
    _ffmpeg(made, "-f lavfi -i testsrc=size=128x96:rate=1:duration=1 -frames:v 1 cover.png")
    _ffmpeg(made, "-f lavfi -i sine=440:duration=5 -ar 16000 tone.wav")
    return made


def _ffmpeg(folder: Path, arguments: str) -> None:
    done = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-y", *arguments.split()], cwd=folder, capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"this ffmpeg does not write it: {done.stderr.decode()[-200:]}")


PICTURES = "-f lavfi -i testsrc=size=352x288:rate=25:duration=10"


def _film(folder: Path, name: str, inputs: str, options: str) -> bytes:
    _ffmpeg(folder, f"{inputs} {options} {name}")
    return (folder / name).read_bytes()


@pytest.mark.parametrize("extension", FILMS)
async def test_a_film(transcriber: Transcriber, folder: Path, extension: str) -> None:
    """With a video track."""
    data = _film(folder, f"film.{extension}", f"{PICTURES} -i speech.wav", FILMS[extension])
    assert await _fault(transcriber, data) is None


@pytest.mark.parametrize("extension", [extension for extension in FILMS if extension not in NO_OFFSET])
async def test_sound_that_begins_later(transcriber: Transcriber, folder: Path, extension: str) -> None:
    """Five seconds after the video."""
    inputs = f"{PICTURES} -itsoffset 5 -i speech.wav"
    assert await _fault(transcriber, _film(folder, f"later.{extension}", inputs, FILMS[extension]), at=5.0) is None


@pytest.mark.parametrize(("extension", "kind"), [(name, kind) for name, kinds in TEXTS.items() for kind in kinds])
async def test_subtitles(transcriber: Transcriber, folder: Path, extension: str, kind: str) -> None:
    """Of every kind that the container may have."""
    inputs = f"{PICTURES} -i speech.wav -i text.srt"
    data = _film(folder, f"text-{kind}.{extension}", inputs, f"{FILMS[extension]} -c:s {kind} -map 0 -map 1 -map 2")
    assert await _fault(transcriber, data) is None


@pytest.mark.parametrize("extension", COVERS)
async def test_a_cover(transcriber: Transcriber, folder: Path, extension: str) -> None:
    """A picture beside the audio track."""
    options = f"{COVERS[extension]} -map 0 -map 1 -c:v png -disposition:v attached_pic"
    assert await _fault(transcriber, _film(folder, f"cover.{extension}", "-i speech.wav -i cover.png", options)) is None


@pytest.mark.parametrize("extension", CHAPTERS)
async def test_chapters(transcriber: Transcriber, folder: Path, extension: str) -> None:
    """A recording in two chapters."""
    options = f"-map 0 -map_metadata 1 -map_chapters 1 {CHAPTERS[extension]}"
    data = _film(folder, f"chapters.{extension}", "-i speech.wav -i chapters.txt", options)
    assert await _fault(transcriber, data) is None


@pytest.mark.parametrize("extension", ["mkv", "mp4", "mov", "ts", "mpg", "wmv", "avi", "nut", "ogv", "mxf", "webm"])
@pytest.mark.parametrize("spoken", [0, 1], ids=["the first", "the second"])
async def test_a_second_track(transcriber: Transcriber, folder: Path, extension: str, spoken: int) -> None:
    """The first is used, or the second if it is in the requested language and the container says so."""
    tracks = ("-i speech.wav -i tone.wav", "-i tone.wav -i speech.wav")[spoken]
    options = f"{FILMS[extension]} -map 0 -map 1 -map 2 -metadata:s:a:{spoken} language=eng"
    options += f" -metadata:s:a:{1 - spoken} language=ger"
    data = _film(folder, f"two-{spoken}.{extension}", f"{PICTURES} {tracks}", options)
    with av.open(io.BytesIO(data)) as container:
        named = [track.metadata.get("language") for track in container.streams.audio]
    if spoken and named[1] != "eng":
        pytest.skip("it does not keep the language")
    assert await _fault(transcriber, data) is None
