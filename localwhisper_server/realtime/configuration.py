"""The configuration of a realtime session: OpenAI's fields, in the present form and in that of the beta. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from localwhisper_server.errors import InvalidRequest
from localwhisper_server.realtime.sound import G711_RATE, Encoding, Format
from localwhisper_server.types import Decoding, Voice

LOGPROBS = "item.input_audio_transcription.logprobs"
# Milliseconds of silence that end a turn: OpenAI's default, and what its `eagerness` is mapped to.
SILENCE_MS = 500
PAUSES_MS = {"low": 1500, "medium": 800, "auto": 800, "high": 400}
RATES = (16_000, 24_000)
G711: dict[str, Encoding] = {"audio/pcmu": "pcmu", "audio/pcma": "pcma", "g711_ulaw": "pcmu", "g711_alaw": "pcma"}
# The beta's `pcm16` names no rate. Its last users are voice assistants, which record at 16 kHz and send that.
BETA_RATE = 16_000
LONGEST_LIST = 100
# Fields that change nothing here, and the most characters that they are shown with in each answer to an update.
SHOWN_ALONE = ("type", "strength", "delay")
LONGEST_SHOWN = 64
# What the beta called the fields.
BETA_FIELDS = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}

ParseDecoding = Callable[[Mapping[str, Any]], Decoding]
"""Checks `language`, `languages`, `prompt`, `keywords` and `logprobs`; raises InvalidRequest with `param`."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a session is set to. `transcription` and `noise_reduction` are shown as they were sent."""

    model: str
    form: Format = field(default_factory=Format)
    decoding: Decoding = field(default_factory=Decoding)
    voice: Voice | None = field(default_factory=lambda: Voice(silence_duration_ms=SILENCE_MS))
    transcription: Mapping[str, Any] = field(default_factory=dict)
    noise_reduction: Mapping[str, Any] | None = None
    logprobs: bool = False

    def shown(self, *, beta: bool) -> dict[str, Any]:
        """Return the fields of the session object, in either form."""
        detection = self.voice and {
            "type": "server_vad",
            "threshold": self.voice.threshold,
            "prefix_padding_ms": self.voice.prefix_padding_ms,
            "silence_duration_ms": self.voice.silence_duration_ms,
        }
        transcription = {"model": self.model, **self.transcription}
        include = [LOGPROBS] if self.logprobs else None
        if beta:
            names = {"pcm": "pcm16", "pcmu": "g711_ulaw", "pcma": "g711_alaw"}
            return {
                "input_audio_format": names[self.form.encoding],
                "input_audio_rate": self.form.rate,
                "input_audio_transcription": transcription,
                "input_audio_noise_reduction": self.noise_reduction,
                "turn_detection": detection,
                "include": include,
            }
        form: dict[str, Any] = {"type": f"audio/{self.form.encoding}"}
        if self.form.encoding == "pcm":
            form["rate"] = self.form.rate
        audio = {
            "format": form,
            "transcription": transcription,
            "noise_reduction": self.noise_reduction,
            "turn_detection": detection,
        }
        return {"type": "transcription", "audio": {"input": audio}, "include": include}


def update(
    before: Configuration, sent: Any, *, parse: ParseDecoding, knows: Callable[[str], bool], beta: bool
) -> Configuration:
    """Return the configuration after `session` of an update; fields that are not sent stay as they are.

    `knows` says whether a name is of the session's model. With `beta`, `pcm16` is at 16 kHz.

    Raises:
        InvalidRequest: a field is malformed or cannot be honoured; `param` names it.

    """
    session = _object(sent, "session")
    if session.get("type", "transcription") != "transcription":
        raise InvalidRequest(
            "This server transcribes; it holds no conversations. Send a session of type 'transcription'.",
            param="session.type",
            code="invalid_value",
        )
    audio = dict(_object(_object(session.get("audio"), "session.audio").get("input"), "session.audio.input"))
    names = {key: f"session.audio.input.{key}" for key in BETA_FIELDS.values()}
    for old, new in BETA_FIELDS.items():
        if old in session:
            audio[new], names[new] = session[old], f"session.{old}"
    after = before
    if audio.get("format") is not None:
        rate = session.get("input_audio_rate", BETA_RATE if beta else Format().rate)
        after = replace(after, form=_format(audio["format"], rate, names["format"]))
    if "turn_detection" in audio:
        after = replace(after, voice=_voice(audio["turn_detection"], names["turn_detection"]))
    if "noise_reduction" in audio:
        reduction = audio["noise_reduction"]
        shown = None if reduction is None else _object(reduction, names["noise_reduction"])
        after = replace(after, noise_reduction=_without_unknown(shown, ("type", "strength")) if shown else None)
    if "include" in session:
        after = replace(after, logprobs=_include(session["include"]))
    if "transcription" in audio:
        sent_fields = _object(audio["transcription"], names["transcription"])
        model = sent_fields.get("model") or after.model
        if not isinstance(model, str) or not knows(model):
            raise InvalidRequest(
                f"This session's model is '{after.model}', not '{str(model)[:128]}'. Open a session for each model.",
                param=f"{names['transcription']}.model",
                code="model_not_found",
            )
        known = ("language", "languages", "prompt", "keywords", "delay")
        after = replace(after, model=model, transcription=_without_unknown(sent_fields, known))
    asked = {**after.transcription, "logprobs": after.logprobs}
    return replace(after, decoding=parse(_checked(asked, names["transcription"])))


def _checked(asked: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """Check the types of a transcription's fields; those that are null count as not sent."""
    for key in ("language", "prompt"):
        if not isinstance(asked.get(key) or "", str):
            raise _invalid(f"Invalid type for '{param}.{key}': expected a string.", f"{param}.{key}", "invalid_type")
    for key in ("languages", "keywords"):
        values = asked.get(key) or []
        if (
            not isinstance(values, list)
            or len(values) > LONGEST_LIST
            or not all(isinstance(one, str) for one in values)
        ):
            message = f"Invalid type for '{param}.{key}': expected a list of at most {LONGEST_LIST} strings."
            raise _invalid(message, f"{param}.{key}", "invalid_type")
    return {key: value for key, value in asked.items() if value is not None}


def _format(sent: Any, rate: Any, param: str) -> Format:
    if isinstance(sent, Mapping):
        sent, rate = sent.get("type"), sent.get("rate") or Format().rate
    if isinstance(sent, str) and sent in G711:
        return Format(G711[sent], G711_RATE)
    if sent not in ("audio/pcm", "pcm16"):
        raise _invalid(
            f"Invalid value: '{str(sent)[:64]}'. Supported values are: 'audio/pcm', 'audio/pcmu', 'audio/pcma'.", param
        )
    if rate not in RATES:
        raise _invalid(f"Invalid value for '{param}.rate': expected 24000 or 16000.", f"{param}.rate")
    return Format("pcm", int(rate))  # some languages write 16000 as 16000.0


def _voice(sent: Any, param: str) -> Voice | None:
    if sent is None:
        return None
    asked = _object(sent, param)
    kind = asked.get("type", "server_vad")
    if kind == "semantic_vad":
        eagerness = asked.get("eagerness") or "auto"
        if not isinstance(eagerness, str) or eagerness not in PAUSES_MS:
            raise _invalid(f"Invalid value for '{param}.eagerness'.", f"{param}.eagerness")
        return Voice(silence_duration_ms=PAUSES_MS[eagerness])
    if kind in ("none", "disabled"):
        return None
    if kind != "server_vad":
        message = f"Invalid value: '{str(kind)[:64]}'. Supported values are: 'server_vad', 'semantic_vad'."
        raise _invalid(message, f"{param}.type")

    def number(key: str, default: float, most: float) -> float:
        value = default if asked.get(key) is None else asked[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise _invalid(
                f"Invalid value for '{param}.{key}': expected a number from 0 to {most:g}.", f"{param}.{key}"
            )
        return value

    return Voice(
        threshold=number("threshold", 0.5, 1),
        prefix_padding_ms=int(number("prefix_padding_ms", 300, 5_000)),
        silence_duration_ms=int(number("silence_duration_ms", SILENCE_MS, 30_000)),
    )


def _include(sent: Any) -> bool:
    if sent is None:
        return False
    if not isinstance(sent, list) or any(one != LOGPROBS for one in sent):
        raise _invalid(f"Invalid value. Supported values are: '{LOGPROBS}'.", "session.include")
    return bool(sent)


def _object(value: Any, param: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _invalid(f"Invalid type for '{param}': expected an object.", param, "invalid_type")
    return value


def _without_unknown(sent: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    """Return the known fields. Those that are shown alone are dropped where they are no number or short string."""
    return {
        key: sent[key]
        for key in known
        if key in sent and (key not in SHOWN_ALONE or isinstance(sent[key], int | float) or _is_short(sent[key]))
    }


def _is_short(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= LONGEST_SHOWN)


def _invalid(message: str, param: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(message, param=param, code=code)
