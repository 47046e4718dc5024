"""OpenAI's realtime protocol for transcription, as one session speaks it: events in, events and work out. Pure.

The caller runs what `next_pass` returns and gives the outcome to `take`; it calls `hear` while there is `unheard` sound
and the session is not `full`, and only then gives it the next event; and it calls `tick` at `deadline`.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from localwhisper_server.errors import InvalidRequest, ServerError
from localwhisper_server.realtime.configuration import Configuration, ParseDecoding, update
from localwhisper_server.realtime.item import Completed, Delta, Failed, Item, Outcome, Pass
from localwhisper_server.realtime.sound import Format, SoundDecoder
from localwhisper_server.realtime.turns import Committed, Detect, Happening, SpeechStarted, SpeechStopped, Turns
from localwhisper_server.types import TokenLogprob

LONGEST_SECONDS: Final = 3600.0
IDLE_SECONDS: Final = 600.0
# How long a session that ends waits for the texts of committed items, and how long if the server stops.
LAST_SECONDS: Final = 10.0
STOP_SECONDS: Final = 5.0
# Characters of base64 in one `append`: OpenAI's limit.
MOST_AUDIO: Final = 15 * 1024 * 1024
LEAST_COMMIT_SECONDS: Final = 0.1
# Sound that is not transcribed yet. A client that sends faster than this machine transcribes is read no further.
MOST_BACKLOG_SECONDS: Final = 60.0
# Sound that one call of `hear` takes.
SLICE_SECONDS: Final = 2.0
# Models whose answer lists the languages.
LISTING: Final = ("gpt-transcribe", "gpt-live-transcribe")
# Events of conversations, which a transcription session has no use for.
_ACTIONS: Final = ("input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear")
_UPDATES: Final = ("session.update", "transcription_session.update")
_TRANSCRIPTION: Final = "conversation.item.input_audio_transcription"

Event = dict[str, Any]


class Session:
    """One session. `new_detector` gives a speech detector, `parse` checks the options of a transcription.

    `knows` says whether a name is of the session's model; `model` is the one to begin with. With `beta` the session
    object has the beta's form until an update has the other. `now` is in seconds from any start, `unix_time` the time
    of day. `new_id` makes an id that begins with a prefix.
    """

    def __init__(
        self,
        *,
        new_detector: Callable[[], Detect],
        parse: ParseDecoding,
        knows: Callable[[str], bool],
        model: str,
        beta: bool,
        now: float,
        unix_time: int,
        new_id: Callable[[str], str],
    ) -> None:
        self._parse, self._knows, self._new_id = parse, knows, new_id
        self._beta = beta
        self._set = Configuration(model, Format(rate=16_000) if beta else Format(), parse({}))
        self._turns = Turns(new_detector, lambda: new_id("item_"), self._set.decoding, self._set.voice)
        self._decode = SoundDecoder(self._set.form)
        self._id = new_id("sess_")
        self._expires_at = unix_time + int(LONGEST_SECONDS)
        self._expires, self._last_event = now + LONGEST_SECONDS, now
        self._unheard, self._at = b"", 0
        self._ends: tuple[float, ServerError | None] | None = None  # until when, and the error that says why
        self.over = False
        self.stopping = False  # with the server

    @property
    def unheard(self) -> bool:
        """Whether sound was sent that `hear` has not taken yet."""
        return self._at < len(self._unheard)

    @property
    def unheard_bytes(self) -> int:
        """How much of it the next `hear` takes."""
        return min(len(self._unheard) - self._at, int(self._set.form.bytes_per_second * SLICE_SECONDS))

    @property
    def full(self) -> bool:
        """Whether so much sound waits to be transcribed that no more is taken."""
        return self._turns.backlog > MOST_BACKLOG_SECONDS

    @property
    def deadline(self) -> float:
        """When to call `tick`."""
        if self._ends is not None:
            return self._ends[0]
        return min(self._expires, self._last_event + IDLE_SECONDS)

    def open(self) -> list[Event]:
        """Return the first event."""
        kind = "transcription_session.created" if self._beta else "session.created"
        return [self._event(kind, session=self._session())]

    def receive(self, text: str | None, now: float) -> list[Event]:
        """Take a message, None for one that is not text; return the events that answer it."""
        self._last_event = now
        if self._ends is not None:
            return []
        event_id: str | None = None
        try:
            event = _parsed(text)
            given = event.get("event_id")
            event_id = given[:512] if isinstance(given, str) else None
            return self._act(event)
        except ServerError as error:
            return [self.error(error, event_id)]

    def _act(self, event: Mapping[str, Any]) -> list[Event]:
        match event.get("type"):
            case "input_audio_buffer.append":
                self._unheard, self._at = _audio(event.get("audio")), 0
                return []
            case "input_audio_buffer.commit":
                seconds = self._turns.uncommitted
                if seconds < LEAST_COMMIT_SECONDS:
                    raise InvalidRequest(
                        "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but "
                        f"buffer only has {seconds * 1000:.2f}ms of audio.",
                        code="input_audio_buffer_commit_empty",
                    )
                return self._events(self._turns.commit())
            case "input_audio_buffer.clear":
                self._turns.clear()
                self._decode = SoundDecoder(self._set.form)
                return [self._event("input_audio_buffer.cleared")]
            case "session.update" | "transcription_session.update" as kind:
                return self._update(kind, event.get("session"))
            case kind:
                supported = ", ".join(f"'{name}'" for name in (*_UPDATES, *_ACTIONS))
                raise InvalidRequest(
                    f"Invalid value: '{str(kind)[:64]}'. A transcription session supports: {supported}.",
                    param="type",
                    code="invalid_value",
                )

    def _update(self, kind: str, sent: Any) -> list[Event]:
        beta = kind == "transcription_session.update"
        before = self._set
        self._set = update(before, sent, parse=self._parse, knows=self._knows, beta=beta)
        self._beta = beta
        self._turns.decoding = self._set.decoding
        if self._set.voice != before.voice:
            self._turns.configure(self._set.voice)
        if self._set.form != before.form:
            self._decode = SoundDecoder(self._set.form)
        updated = "transcription_session.updated" if beta else "session.updated"
        return [self._event(updated, session=self._session())]

    def hear(self) -> list[Event]:
        """Take the next SLICE_SECONDS of the sound that was sent; this may take some milliseconds."""
        end = self._at + int(self._set.form.bytes_per_second * SLICE_SECONDS)
        piece, self._at = self._unheard[self._at : end], end
        if not self.unheard:
            self._unheard, self._at = b"", 0
        return [*self._events(self._turns.hear(self._decode(piece))), *self._commit_last()]

    def next_pass(self) -> Pass | None:
        """Return the next work, once; None if none is due, or the last is not back."""
        return self._turns.next_pass()

    def take(self, work: Pass, outcome: Outcome) -> list[Event]:
        """Take what a pass gave."""
        return [*self._events(self._turns.take(work, outcome)), *self._end_if_done()]

    def tick(self, now: float) -> list[Event]:
        """End the session if it is too old or idle; `over` is then set, at once or after the last texts."""
        if self._ends is not None:
            return self._end() if now >= self._ends[0] else []
        if now >= self._expires:
            message = "Your session hit the maximum duration of 60 minutes."
            return self._begin_end(now, "session_expired", message)
        if now >= self._last_event + IDLE_SECONDS:
            message = f"Your session ended because it sent nothing for {IDLE_SECONDS / 60:.0f} minutes."
            return self._begin_end(now, "session_idle_timeout", message)
        return []

    def stop(self, now: float) -> list[Event]:
        """End the session with the server: commit the speech that was sent, and be `over` once its text is sent.

        That takes STOP_SECONDS at most.
        """
        until, error = self._ends or (now + STOP_SECONDS, None)
        self._ends = min(until, now + STOP_SECONDS), error
        self.stopping = True
        return self._commit_last()

    def _commit_last(self) -> list[Event]:
        if not self.stopping or self.unheard:
            return []
        return [*self._events(self._turns.commit_speech()), *self._end_if_done()]

    def _begin_end(self, now: float, code: str, message: str) -> list[Event]:
        self._ends = now + LAST_SECONDS, InvalidRequest(message, code=code)
        self._unheard, self._at = b"", 0
        self._turns.clear()
        return self._end_if_done()

    def _end_if_done(self) -> list[Event]:
        done = self._ends is not None and self._turns.idle and not self.unheard
        return self._end() if done and not self.over else []

    def _end(self) -> list[Event]:
        assert self._ends is not None  # noqa: S101 - only called then
        self.over = True
        _, error = self._ends
        return [] if error is None else [self.error(error)]

    def error(self, error: ServerError, event_id: str | None = None) -> Event:
        """Return the event for an error; `event_id` is that of the client's event that caused it."""
        return self._event("error", error={**described(error), "event_id": event_id})

    def _events(self, happenings: Sequence[Happening]) -> list[Event]:
        return [self._said(happening) for happening in happenings]

    def _said(self, happening: Happening) -> Event:
        item = happening.item
        match happening:
            case SpeechStarted(ms=ms):
                return self._event("input_audio_buffer.speech_started", audio_start_ms=ms, item_id=item.id)
            case SpeechStopped(ms=ms):
                return self._event("input_audio_buffer.speech_stopped", audio_end_ms=ms, item_id=item.id)
            case Committed(previous=previous):
                return self._event("input_audio_buffer.committed", previous_item_id=previous, item_id=item.id)
            case Delta(text=text, logprobs=logprobs):
                shown = {"logprobs": _logprobs(logprobs)} if item.decoding.logprobs else {}
                return self._event(f"{_TRANSCRIPTION}.delta", item_id=item.id, content_index=0, delta=text, **shown)
            case Failed(error=error):
                return self._event(f"{_TRANSCRIPTION}.failed", item_id=item.id, content_index=0, error=described(error))
            case Completed():
                return self._event(
                    f"{_TRANSCRIPTION}.completed",
                    item_id=item.id,
                    content_index=0,
                    transcript=item.text,
                    usage={"type": "duration", "seconds": math.ceil(item.seconds)},
                    **self._extras(item),
                )

    def _extras(self, item: Item) -> Event:
        shown: Event = {}
        if self._set.model.removeprefix("openai/") in LISTING:
            languages = item.decoding.languages or item.languages
            shown["languages"] = [{"code": code} for code in languages]
        if item.decoding.logprobs:
            shown["logprobs"] = _logprobs(item.logprobs)
        return shown

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "event_id": self._new_id("event_"), **fields}

    def _session(self) -> Event:
        return {
            "id": self._id,
            "object": "realtime.transcription_session",
            "expires_at": self._expires_at,
            **self._set.shown(beta=self._beta),
        }


def _parsed(text: str | None) -> Mapping[str, Any]:
    if text is None:
        raise InvalidRequest("Events are JSON in text frames; this was a binary frame.", code="invalid_event")
    try:
        event = json.loads(text)
        if "\\u" in text:
            # An escape may stand for half a character, which no answer and no tokenizer can have.
            json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise InvalidRequest("We could not parse your event: expected a JSON object.", code="invalid_json")
    return event


def _audio(sent: Any) -> bytes:
    if not isinstance(sent, str):
        message = "Invalid type for 'audio': expected sound in base64."
        raise InvalidRequest(message, param="audio", code="invalid_type")
    if len(sent) > MOST_AUDIO:
        message = f"'audio' is too long: {len(sent)} characters. The limit is {MOST_AUDIO}."
        raise InvalidRequest(message, param="audio", code="string_above_max_length")
    try:
        return base64.b64decode(sent, validate=True)
    except ValueError:
        message = "Invalid 'audio'. Expected base64-encoded audio bytes."
        raise InvalidRequest(message, param="audio", code="invalid_value") from None


def described(error: ServerError) -> Event:
    """Return the error of an event, with the seconds after which to come back if there are any."""
    shown = dict(error.body()["error"])
    retry_after = getattr(error, "retry_after", None)
    if retry_after is None:
        return shown
    return {**shown, "message": f"{shown['message']} (Retry after {retry_after} s.)", "retry_after": retry_after}


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[Event]:
    return [
        {"token": token.data.decode(errors="replace"), "logprob": token.logprob, "bytes": list(token.data)}
        for token in tokens
    ]
