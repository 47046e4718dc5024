"""How soon words arrive over the realtime route, and how right they are, beside the file route of the same server.

Ten recordings of one speaker are fed at real time, one after the other, as a microphone would, by OpenAI's own client::

    python benchmarks/realtime.py [--model base] [--recordings ls-other-1998] [--speakers 1] [--server URL]

It prints, over all recordings:

- first words: from the moment that the first word of a recording ends until a delta has it (median, 95th percentile);
- all words: the same for every word that both routes heard;
- final: from the end of speech, and from the moment that the pause is over, until `completed`;
- the error rates of both routes, with Whisper's normaliser;
- deltas taken back: transcripts that are not the sum of their deltas.

When a word ends is what the file route's word timestamps say. The recordings are those of ``../shared/speech`` whose
names begin with --recordings; constants were chosen on others (`lj-`, `jfk-`). With --speakers, so many sessions are
fed at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import csv
import dataclasses
import difflib
import io
import statistics
import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jiwer
import numpy as np
from faster_whisper.audio import decode_audio
from openai import AsyncOpenAI, OpenAI
from whisper_normalizer.english import EnglishTextNormalizer

from localwhisper_client.server_process import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openai.resources.realtime.realtime import AsyncRealtimeConnection

SHARED = Path(__file__).parents[2] / "shared" / "speech"
RATE = 24_000
CHUNK_SECONDS = 0.04
SILENCE_SECONDS = 2.0
PAUSE_MS = 500
COUNT = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """A recording at 24 kHz, and what is said in it."""

    name: str
    reference: str
    sound: bytes


@dataclasses.dataclass(slots=True)
class Heard:
    """What came back: deltas and texts with their times, in seconds from the first sound."""

    deltas: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    stopped: list[float] = dataclasses.field(default_factory=list)
    finals: list[float] = dataclasses.field(default_factory=list)
    taken_back: int = 0


def recordings(prefix: str) -> list[Recording]:
    """Return the first ten recordings with such names."""
    with (SHARED / "manifest.tsv").open(encoding="utf-8") as manifest:
        rows = [row for row in csv.DictReader(manifest, delimiter="\t") if row["id"].startswith(prefix)]
    found = []
    for row in rows[:COUNT]:
        samples = decode_audio(str(SHARED / row["file"]), sampling_rate=RATE)
        sound = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        found.append(Recording(row["id"], row["reference_text"], sound))
    return found


async def speak(client: AsyncOpenAI, recording: Recording) -> Heard:
    """Feed one recording and some silence at real time; return what came back."""
    heard = Heard()
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        detection = {"type": "server_vad", "silence_duration_ms": PAUSE_MS}
        audio: Any = {"input": {"transcription": {"model": "whisper-1", "language": "en"}, "turn_detection": detection}}
        await connection.session.update(session={"type": "transcription", "audio": audio})
        while (await connection.recv()).type != "session.updated":
            pass
        started = time.perf_counter()
        listening = asyncio.create_task(listen(connection, started, heard))
        sound = recording.sound + bytes(int(SILENCE_SECONDS * RATE) * 2)
        size = int(CHUNK_SECONDS * RATE) * 2
        for number, at in enumerate(range(0, len(sound), size), 1):
            # A microphone has a piece when it is over.
            await asyncio.sleep(max(0.0, started + number * CHUNK_SECONDS - time.perf_counter()))
            await connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + size]).decode())
        while len(heard.finals) < len(heard.stopped) and not listening.done():  # noqa: ASYNC110 - a script
            await asyncio.sleep(0.05)
        if not listening.done():
            listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    return heard


async def listen(connection: AsyncRealtimeConnection, started: float, heard: Heard) -> None:
    """Note what comes back."""
    said = dict[str, str]()
    async for event in connection:
        now = time.perf_counter() - started
        if event.type == "conversation.item.input_audio_transcription.delta":
            heard.deltas.append((now, event.delta or ""))
            said[event.item_id] = said.get(event.item_id, "") + (event.delta or "")
        elif event.type == "input_audio_buffer.speech_stopped":
            heard.stopped.append(event.audio_end_ms / 1000)
        elif event.type == "conversation.item.input_audio_transcription.completed":
            heard.finals.append(now)
            heard.texts.append(event.transcript)
            heard.taken_back += event.transcript != said.get(event.item_id, "")
        elif event.type == "error":
            print(event.error.message)


def by_file(client: OpenAI, recording: Recording) -> tuple[str, list[tuple[str, float]]]:
    """Return the file route's text, and its words with the times at which they end."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(recording.sound)
    answer = client.audio.transcriptions.create(
        file=("clip.wav", file.getvalue()),
        model="whisper-1",
        language="en",
        response_format="verbose_json",
        timestamp_granularities=["word"],
    )
    return answer.text, [(word.word, word.end) for word in answer.words or ()]


def latencies(heard: Heard, words: Sequence[tuple[str, float]]) -> list[float]:
    """Return, for each word that both routes heard, the seconds from its end until a delta had it."""
    came = [(word, at) for at, delta in heard.deltas for word in delta.split()]
    plain = [["".join(filter(str.isalnum, word)).lower() for word, _ in part] for part in (words, came)]
    blocks = difflib.SequenceMatcher(None, *plain, autojunk=False).get_matching_blocks()
    return [came[block.b + number][1] - words[block.a + number][1] for block in blocks for number in range(block.size)]


def shown(name: str, seconds: Sequence[float]) -> str:
    """Return one line of the report."""
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    return f"{name:34} p50 {statistics.median(ordered):5.2f} s   p95 {late:5.2f} s   n {len(ordered)}"


async def measure(base_url: str, prefix: str, speakers: int) -> None:
    """Feed the recordings and print the report."""
    files = OpenAI(base_url=base_url, api_key="none", max_retries=0)
    first, every, after_speech, after_pause = list[float](), list[float](), list[float](), list[float]()
    references, live, filed, taken_back = list[str](), list[str](), list[str](), 0
    normalize = EnglishTextNormalizer()
    chosen = recordings(prefix)
    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        for at in range(0, len(chosen), speakers):
            group = chosen[at : at + speakers]
            for recording, heard in zip(
                group, await asyncio.gather(*(speak(client, one) for one in group)), strict=True
            ):
                text, words = await asyncio.to_thread(by_file, files, recording)
                found = latencies(heard, words)
                first += found[:1]
                every += found
                after_pause += [final - end for final, end in zip(heard.finals, heard.stopped, strict=True)]
                after_speech += [
                    final - end + PAUSE_MS / 1000 for final, end in zip(heard.finals, heard.stopped, strict=True)
                ]
                taken_back += heard.taken_back
                references.append(normalize(recording.reference))
                live.append(normalize(" ".join(heard.texts)))
                filed.append(normalize(text))
                print(f"{recording.name}: {' | '.join(heard.texts)}", flush=True)
    print(shown("first word after it was spoken", first))
    print(shown("every word after it was spoken", every))
    print(shown("final after the end of speech", after_speech))
    print(shown(f"final after the pause of {PAUSE_MS} ms", after_pause))
    print(f"error rate: realtime {jiwer.wer(references, live):.2%}, file {jiwer.wer(references, filed):.2%}")
    print(f"transcripts that are not the sum of their deltas: {taken_back}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base")
    parser.add_argument("--recordings", default="ls-other-1998")
    parser.add_argument("--speakers", type=int, default=1)
    parser.add_argument("--server", help="base URL of a running server")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = options.server or stack.enter_context(serving("--model", options.model)).base_url
        asyncio.run(measure(url, options.recordings, options.speakers))


if __name__ == "__main__":
    main()
