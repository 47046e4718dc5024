"""Doubles for live sessions: a detector that goes by loudness, a decoder whose words last half a second, a client."""

from __future__ import annotations

import base64
import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from localwhisper_server.realtime.session import Session
from localwhisper_server.types import SAMPLE_RATE, Decoding, Segment, TokenLogprob, Transcript, Voice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from localwhisper_server.errors import ServerError
    from localwhisper_server.realtime.item import Pass
    from localwhisper_server.types import Samples, Span

LOUD = 0.5
MODELS = ("base", "whisper-1", "gpt-4o-transcribe", "gpt-transcribe", "gpt-live-transcribe")


def detect(samples: Samples) -> list[float]:
    """Take loud windows for speech."""
    return [float(np.abs(window).max() > LOUD / 2) for window in samples.reshape(-1, 512)]


def sound(*stretches: float, rate: int = SAMPLE_RATE) -> Samples:
    """Return stretches of so many seconds: silence, speech, silence, speech, and so on."""
    parts = [
        np.full(round(seconds * rate), LOUD if number % 2 else 0.0, np.float32)
        for number, seconds in enumerate(stretches)
    ]
    return np.concatenate(parts)


def pcm(samples: Samples) -> bytes:
    """Return samples as 16-bit PCM."""
    return (samples * 32767).astype("<i2").tobytes()


def words(samples: Samples) -> str:
    """Return one word for each half second of speech: " w0 w1 …"."""
    spoken = np.count_nonzero(np.abs(samples) > LOUD / 2) / SAMPLE_RATE
    return "".join(f" w{number}" for number in range(round(spoken * 2)))


def transcript(text: str, language: str = "en", *, logprobs: bool = False) -> Transcript:
    """Return a transcript of one segment, each letter of which is a token."""
    tokens = tuple(TokenLogprob(letter.encode(), -0.5) for letter in text) if logprobs else ()
    return Transcript("transcribe", language, 1.0, (Segment(0.0, 1.0, text, logprobs=tokens),) if text else ())


def answer(samples: Samples, decoding: Decoding) -> Transcript:
    """Decode as the double does."""
    return transcript(words(samples), decoding.language or "en", logprobs=decoding.logprobs)


def parse(asked: Mapping[str, Any]) -> Decoding:
    """Take every option as it is."""
    return Decoding(
        language=asked.get("language"),
        languages=tuple(asked.get("languages") or ()),
        prompt=asked.get("prompt") or "",
        hotwords=", ".join(asked.get("keywords") or ()),
        logprobs=bool(asked.get("logprobs")),
    )


@dataclass
class Client:
    """Drives a session without sockets: what it sends goes in, passes run at once, events pile up.

    With `answers` None, passes wait in `work` until `finish` is called.
    """

    now: float = 0.0
    beta: bool = False
    answers: Callable[[Pass], Transcript | ServerError | None] | None = lambda work: answer(work.samples, work.decoding)
    events: list[dict[str, Any]] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    work: Pass | None = None

    def __post_init__(self) -> None:
        numbers = itertools.count(1)
        self.session = Session(
            new_detector=lambda: detect,
            parse=parse,
            knows=lambda model: model in MODELS,
            model="base",
            beta=self.beta,
            now=self.now,
            unix_time=1_800_000_000,
            new_id=lambda prefix: f"{prefix}{next(numbers)}",
        )
        self.events += self.session.open()

    def send(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """Send an event; return those that answer it, and what follows from it."""
        return self.send_text(json.dumps({"type": kind, **fields}))

    def send_text(self, text: str | None) -> list[dict[str, Any]]:
        """Send a message."""
        first = len(self.events)
        self.events += self.session.receive(text, self.now)
        self.run()
        return self.events[first:]

    def run(self) -> None:
        """Hear what was sent, and run the passes."""
        while True:
            if (work := self.session.next_pass()) is not None:
                self.work = work
                self.passes.append(work)
            if self.work is not None and self.answers is not None:
                self.finish(self.answers(self.work))
            elif self.session.unheard and not self.session.full:
                self.events += self.session.hear()
            else:
                return

    def finish(self, outcome: Transcript | ServerError | None) -> None:
        """End the pass in flight."""
        assert self.work is not None
        work, self.work = self.work, None
        self.events += self.session.take(work, outcome)

    def speak(self, *stretches: float, piece: float = 0.1) -> list[dict[str, Any]]:
        """Send silence and speech in pieces of so many seconds; return what came."""
        rate = 16_000 if self.beta else 24_000
        data, size = pcm(sound(*stretches, rate=rate)), round(piece * rate) * 2
        first = len(self.events)
        for at in range(0, len(data), size):
            self.send("input_audio_buffer.append", audio=base64.b64encode(data[at : at + size]).decode())
        return self.events[first:]

    def kinds(self, *, deltas: bool = False) -> list[str]:
        """Return the types of all events so far, without the long prefix; deltas only if asked for."""
        short = [event["type"].removeprefix("conversation.item.input_audio_transcription.") for event in self.events]
        return [kind for kind in short if deltas or kind != "delta"]

    def said(self) -> dict[str, str]:
        """Return the sum of the deltas of each item."""
        texts: dict[str, str] = {}
        for event in self.events:
            if event["type"].endswith(".delta"):
                texts[event["item_id"]] = texts.get(event["item_id"], "") + event["delta"]
        return texts

    def completed(self) -> dict[str, str]:
        """Return the transcript of each completed item."""
        return {event["item_id"]: event["transcript"] for event in self.events if event["type"].endswith(".completed")}


class LiveTranscriber:
    """Live sessions of `driving.FakeTranscriber`: decodes as `answer` does, unless a test's `no_room` refuses.

    `open` counts the sessions that were not closed.
    """

    def __init__(self, no_room: ServerError | None = None) -> None:
        self.no_room = no_room
        self.open = 0
        self.opened = 0

    def live(self) -> LiveTranscriber:
        """Open a session."""
        if self.no_room is not None:
            raise self.no_room
        self.open += 1
        self.opened += 1
        return self

    def close(self) -> None:
        """Close one."""
        self.open -= 1

    async def decode(
        self, samples: Samples, speech: Sequence[Span], decoding: Decoding, *, thorough: bool
    ) -> Transcript | None:
        """Decode at once."""
        return answer(samples, decoding)

    def new_detector(self) -> Callable[[Samples], list[float]]:
        """Return the detector that goes by loudness."""
        return detect


VOICE = Voice(silence_duration_ms=500)
