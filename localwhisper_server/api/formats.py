"""A transcript as the bytes of an answer: json, verbose_json, text, srt, vtt and server-sent events. Pure.

Field names, their order and the end of each body are OpenAI's; where OpenAI's are unknown, what the SDKs read best.
JSON is compact and has no final newline.
"""

import json
import math
import string
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from localwhisper_client.shared import languages
from localwhisper_server.types import Segment, TokenLogprob, Transcript, Word

JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
SSE_TYPE: Final = "text/event-stream; charset=utf-8"

# OpenAI's words have no punctuation at their ends ("don't" keeps its apostrophe).
_PUNCTUATION = string.punctuation + "¿¡«»“”‘’„‚…—–。、，！？：；「」『』（）《》〈〉・"  # noqa: RUF001 - other scripts have their own


def to_json(value: Any) -> bytes:
    """Encode compactly, as OpenAI does, with letters outside ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def usage(transcript: Transcript) -> dict[str, Any]:
    """Return usage of the kind `duration`, in whole seconds, rounded up."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def render_json(
    transcript: Transcript, *, logprobs: bool = False, list_languages: bool = False, hints: Sequence[str] = ()
) -> bytes:
    """Render `json`; `list_languages` adds gpt-transcribe's `languages`: the `hints`, else the detected one."""
    return to_json(_json_body(transcript, logprobs=logprobs, list_languages=list_languages, hints=hints))


def _json_body(
    transcript: Transcript, *, logprobs: bool = False, list_languages: bool = False, hints: Sequence[str] = ()
) -> dict[str, Any]:
    body: dict[str, Any] = {"text": transcript.text}
    found = _all_logprobs(transcript.segments) if logprobs else []
    if found:  # absent for silence
        body["logprobs"] = found
    if list_languages:
        spoken = (hints or [transcript.language]) if transcript.segments and transcript.language else ()
        body["languages"] = [{"code": code} for code in spoken]
    body["usage"] = usage(transcript)
    return body


def render_verbose_json(transcript: Transcript, *, segments: bool = True, words: bool = False) -> bytes:
    """Render `verbose_json` with segments, top-level words, or both, as the granularities asked."""
    return to_json(_verbose_body(transcript, segments=segments, words=words))


def _verbose_body(transcript: Transcript, *, segments: bool, words: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": transcript.task,
        # A translation's text is English, whatever language was spoken.
        "language": "english" if transcript.task == "translate" else languages.NAMES[transcript.language or "en"],
        "duration": _float32(transcript.duration),
        "text": transcript.text,
    }
    if words:
        body["words"] = [_word(word) for segment in transcript.segments for word in segment.words if _bare(word)]
    if segments:
        body["segments"] = [_segment(number, segment) for number, segment in enumerate(transcript.segments)]
    body["usage"] = usage(transcript)
    return body


def render_text(transcript: Transcript) -> bytes:
    """Render `text`: the words and a newline, as Whisper's own writer ends a text file."""
    return f"{transcript.text}\n".encode()


def render_srt(transcript: Transcript) -> bytes:
    """Render SubRip: cues numbered from 1, a blank line between them, the body ending in three newlines."""
    cues = (
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_cue_text(segment)}\n\n"
        for number, segment in enumerate(_cues(transcript), start=1)
    )
    return ("".join(cues) + "\n").encode()


def render_vtt(transcript: Transcript) -> bytes:
    """Render WebVTT, hours always, the body ending in two newlines."""
    cues = (
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{_cue_text(segment)}\n\n"
        for segment in _cues(transcript)
    )
    return ("WEBVTT\n\n" + "".join(cues)).encode()


def event(payload: dict[str, Any]) -> bytes:
    """Frame one server-sent event; OpenAI sends `data:` lines alone, without `event:`."""
    return b"data: " + to_json(payload) + b"\n\n"


def delta_event(text: str, segment: Segment, *, logprobs: bool = False, times: bool = False) -> bytes:
    """Render `transcript.text.delta`; `text` is what this segment adds to the whole.

    `times` adds `start` and `end` in seconds, which OpenAI's API does not have.
    """
    payload: dict[str, Any] = {"type": "transcript.text.delta", "delta": text}
    if logprobs:
        payload["logprobs"] = _all_logprobs([segment])
    if times:
        payload |= {"start": segment.start, "end": segment.end}
    return event(payload)


def done_event(transcript: Transcript, **shown: Any) -> bytes:
    """Render `transcript.text.done` with the whole text; `shown` as for `render_json`."""
    return event({"type": "transcript.text.done"} | _json_body(transcript, **shown))


def verbose_done_event(transcript: Transcript, *, segments: bool = True, words: bool = False) -> bytes:
    """Render `transcript.text.done` with all of `verbose_json`, which OpenAI's API cannot stream."""
    return event({"type": "transcript.text.done"} | _verbose_body(transcript, segments=segments, words=words))


Renderer = Callable[[Transcript], bytes]

# The formats that take no options, with their content type.
PLAIN: dict[str, tuple[str, Renderer]] = {
    "text": (TEXT_TYPE, render_text),
    "srt": (TEXT_TYPE, render_srt),
    "vtt": (TEXT_TYPE, render_vtt),
}


def _float32(value: float) -> float:
    """Widen a single-precision number, as OpenAI's answers show them (8.47 → 8.470000267028809)."""
    (widened,) = struct.unpack("f", struct.pack("f", value))
    return float(widened)


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": segment.seek,
        "start": _float32(segment.start),
        "end": _float32(segment.end),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": _float32(segment.temperature),
        "avg_logprob": _float32(segment.avg_logprob),
        "compression_ratio": _float32(segment.compression_ratio),
        "no_speech_prob": _float32(segment.no_speech_prob),
    }


def _bare(word: Word) -> str:
    return word.text.strip().strip(_PUNCTUATION)


def _word(word: Word) -> dict[str, Any]:
    return {"word": _bare(word), "start": _float32(word.start), "end": _float32(word.end)}


def _all_logprobs(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    return [_logprob(token) for segment in segments for token in segment.logprobs]


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.data.decode(errors="replace"), "logprob": token.logprob, "bytes": list(token.data)}


def _cues(transcript: Transcript) -> Iterable[Segment]:
    return (segment for segment in transcript.segments if segment.text.strip())


def _cue_text(segment: Segment) -> str:
    # An arrow or a blank line inside a cue would end it early for a player's parser.
    return " ".join(segment.text.split()).replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    """Format seconds as HH:MM:SS and integer milliseconds; `point` is "," for srt and "." for vtt."""
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
