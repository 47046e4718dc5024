"""A transcript as the bytes of an answer: json, verbose_json, text, srt, vtt, diarized_json, events. Pure.

Field names, their order and the end of each body are OpenAI's; where OpenAI's are unknown, what the SDKs read best.
JSON is compact and has no final newline.
"""

import json
import math
import re
import string
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from localwhisper_client.shared import languages
from localwhisper_server.api import subtitle_lines
from localwhisper_server.api.subtitle_lines import Cue, LineLimits
from localwhisper_server.types import Segment, Transcript, Word

JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain; charset=utf-8"
SSE_TYPE: Final = "text/event-stream; charset=utf-8"
# Of each `response_format`. The first is the default.
CONTENT_TYPES: Final = {
    "json": JSON_TYPE,
    "text": TEXT_TYPE,
    "srt": TEXT_TYPE,
    "verbose_json": JSON_TYPE,
    "vtt": TEXT_TYPE,
    "diarized_json": JSON_TYPE,
}

# OpenAI's words have no punctuation at their ends ("don't" keeps its apostrophe).
_PUNCTUATION = string.punctuation + "¿¡«»“”‘’„‚…—–。、，！？：；「」『』（）《》〈〉・"  # noqa: RUF001 - other scripts have their own


# What a player of vtt takes for a character reference.
_REFERENCE = re.compile(r"&(?=#?\w+;)")


@dataclass(frozen=True, slots=True)
class Format:
    """How a transcript is written: a `response_format`, and what verbose_json and json have in them.

    verbose_json has `segments`, top-level `words`, or both. json may have `logprobs`, and gpt-transcribe's `languages`:
    those that the caller hinted, else the detected one; None: no such field. `lines` limits the lines of srt and vtt,
    and adds `cues` to verbose_json; None: a cue is a segment, as with OpenAI.
    """

    name: str = "json"
    segments: bool = True
    words: bool = False
    logprobs: bool = False
    languages: tuple[str, ...] | None = None
    lines: LineLimits | None = None


def to_json(value: Any) -> bytes:
    """Encode compactly, as OpenAI does, with letters outside ASCII as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def usage(transcript: Transcript) -> dict[str, Any]:
    """Return usage of the kind `duration`, in whole seconds, rounded up."""
    return {"type": "duration", "seconds": math.ceil(transcript.duration)}


def render(transcript: Transcript, shape: Format) -> bytes:
    """Return the body of an answer."""
    match shape.name:
        case "text":  # as Whisper's own writer ends a text file
            return f"{transcript.text}\n".encode()
        case "srt":  # ends in three newlines
            cues = (f"{number}\n{cue}" for number, cue in enumerate(_cues(transcript, ",", shape), start=1))
            return ("".join(cues) + "\n").encode()
        case "vtt":
            return ("WEBVTT\n\n" + "".join(_cues(transcript, ".", shape))).encode()
        case "verbose_json":
            return to_json(_verbose_json(transcript, shape))
        case "diarized_json":
            return to_json(_diarized_json(transcript))
        case _:
            return to_json(_json(transcript, shape))


def event(payload: dict[str, Any]) -> bytes:
    """Frame one server-sent event; OpenAI sends `data:` lines alone, without `event:`."""
    return b"data: " + to_json(payload) + b"\n\n"


def delta_event(text: str, segment: Segment, shape: Format) -> bytes:
    """Render `transcript.text.delta`; `text` is what this segment adds to the whole.

    OpenAI cannot stream verbose_json. Here its deltas have `start` and `end`, in seconds.
    """
    payload: dict[str, Any] = {"type": "transcript.text.delta", "delta": text}
    if shape.logprobs:
        payload["logprobs"] = _logprobs([segment])
    if shape.name == "verbose_json":
        payload |= {"start": segment.start, "end": segment.end}
    return event(payload)


def segment_events(transcript: Transcript) -> list[bytes]:
    """Render each segment of a diarized transcript as `transcript.text.segment`."""
    return [event(segment) for segment in _diarized(transcript)]


def done_event(transcript: Transcript, shape: Format) -> bytes:
    """Render `transcript.text.done`, which has the whole text and all that json has, or all of verbose_json."""
    body = _verbose_json(transcript, shape) if shape.name == "verbose_json" else _json(transcript, shape)
    return event({"type": "transcript.text.done"} | body)


def _json(transcript: Transcript, shape: Format) -> dict[str, Any]:
    body: dict[str, Any] = {"text": transcript.text}
    found = _logprobs(transcript.segments) if shape.logprobs else []
    if found:  # absent for silence
        body["logprobs"] = found
    if shape.languages is not None:
        spoken = (shape.languages or [transcript.language]) if transcript.segments and transcript.language else ()
        body["languages"] = [{"code": code} for code in spoken]
    body["usage"] = usage(transcript)
    return body


def _verbose_json(transcript: Transcript, shape: Format) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": transcript.task,
        # A translation's text is English, whatever language was spoken.
        "language": "english" if transcript.task == "translate" else languages.NAMES[transcript.language or "en"],
        "duration": _float32(transcript.duration),
        "text": transcript.text,
    }
    if shape.words:
        body["words"] = [_word(word) for segment in transcript.segments for word in segment.words if _bare(word)]
    if shape.segments:
        body["segments"] = [_segment(number, segment) for number, segment in enumerate(transcript.segments)]
    if shape.lines is not None:
        body["cues"] = [
            {"start": round(cue.start, 3), "end": round(cue.end, 3), "lines": cue.lines}
            for cue in subtitle_lines.cues(transcript.segments, shape.lines)
        ]
    body["usage"] = usage(transcript)
    return body


def _diarized_json(transcript: Transcript) -> dict[str, Any]:
    return {
        "task": transcript.task,
        "duration": _float32(transcript.duration),
        "text": transcript.text,
        "segments": _diarized(transcript),
        "usage": usage(transcript),
    }


def _diarized(transcript: Transcript) -> list[dict[str, Any]]:
    spoken = (segment for segment in transcript.segments if segment.text.strip())
    return [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{number:03d}",
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "text": segment.text.strip(),
            "speaker": segment.speaker,
        }
        for number, segment in enumerate(spoken, start=1)
    ]


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


def _logprobs(segments: Iterable[Segment]) -> list[dict[str, Any]]:
    return [
        {"token": token.data.decode(errors="replace"), "logprob": token.logprob, "bytes": list(token.data)}
        for segment in segments
        for token in segment.logprobs
    ]


def _cues(transcript: Transcript, point: str, shape: Format) -> Iterable[str]:
    """Yield cues: the segments with words, or lines within limits; `point` separates seconds from milliseconds."""
    made: Iterable[Cue]
    if shape.lines is None:
        made = (Cue(segment.start, segment.end, (segment.text,)) for segment in transcript.segments)
    else:
        made = subtitle_lines.cues(transcript.segments, shape.lines)
    for cue in made:
        # An arrow or a blank line inside a cue would end it early for a player's parser.
        text = "\n".join(" ".join(line.split()) for line in cue.lines).replace("-->", "->")
        if shape.lines is not None and point == ".":
            # A player takes "<" in vtt for a tag and shows nothing of it. OpenAI's own files have it as it is.
            text = _REFERENCE.sub("&amp;", text).replace("<", "&lt;")
        if text:
            yield f"{_clock(cue.start, point)} --> {_clock(cue.end, point)}\n{text}\n\n"


def _clock(seconds: float, point: str) -> str:
    """Format seconds as HH:MM:SS and integer milliseconds; `point` is "," for srt and "." for vtt."""
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"
