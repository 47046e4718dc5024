"""What an SDK request is for: speech-to-text, a realtime session or neither; and the fields that it will send."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

_SPEECH_TO_TEXT = frozenset({"audio/transcriptions", "audio/translations"})
_REALTIME = frozenset({"realtime", "live"})
# These paths end a session and send no audio.
_ENDINGS = frozenset({"hangup", "reject"})
_AFTER_A_NAME = re.compile(r"[;?#].*", re.DOTALL)
_UNSEEN = re.compile(r"[\x00-\x20\x7f]")


def segments(path: str) -> list[str]:
    """Return the segments of a path as a server may read them, in lower case.

    A server may take `/audio/x/../Transcriptions;a` or `/audio%2Ftranscriptions` for the speech-to-text endpoint.
    """
    # A path that is encoded twice may be decoded twice on its way.
    while (plain := unquote(path)) != path:
        path = plain
    found: list[str] = []
    for part in path.lower().replace("\\", "/").split("/"):
        name = _UNSEEN.sub("", _AFTER_A_NAME.sub("", part))
        if name == "..":
            del found[-1:]
        elif name not in ("", "."):
            found.append(name)
    return found


def endpoint(client: Any, options: Any) -> str | None:
    """Return the speech-to-text endpoint of a request, such as `/audio/transcriptions`; None for any other request."""
    if options.method.lower() != "post":
        return None
    base, path = urlsplit(str(client.base_url)).path, urlsplit(options.url).path
    last = "/".join(segments(f"{base}/{path}")[-2:])
    return f"/{last}" if last in _SPEECH_TO_TEXT else None


def is_realtime(url: str) -> bool:
    """Whether a WebSocket at this URL is a realtime session of OpenAI's API, on any host."""
    path = segments(urlsplit(url).path)
    before = zip(["", *path], path, strict=False)
    return path[-1:] == ["realtime"] or any(name in _REALTIME and of in ("v1", "openai") for of, name in before)


def starts_realtime(options: Any) -> bool:
    """Whether a request opens a realtime session, or makes the key with which another program opens one."""
    path = segments(urlsplit(options.url).path)
    here = bool(path) and (path[0] in _REALTIME or is_realtime(options.url))
    return here and options.method.lower() == "post" and path[-1] not in _ENDINGS


def fields(options: Any) -> Mapping[str, Any]:
    """Return the fields of a request's body; empty if the program wrote the body itself."""
    return options.json_data if isinstance(options.json_data, Mapping) else {}


def as_sent(options: Any, omit: type) -> Any:
    """Return a request with the fields that it will send: those in `extra_body` override the arguments.

    `omit` is the SDK's class for a field that is left out.
    """
    if options.json_data is not None and not isinstance(options.json_data, Mapping):
        return options
    if getattr(options, "content", None) is not None:
        return options
    sent = copy.copy(options)
    merged = {**fields(options), **(options.extra_json or {})}
    sent.json_data = {name: value for name, value in merged.items() if not isinstance(value, omit)}
    sent.extra_json = None
    if isinstance(stream := sent.json_data.get("stream"), str):
        sent.json_data["stream"] = stream.strip().lower() in ("true", "1")
    return sent
