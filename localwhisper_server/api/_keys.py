"""This server's keys in the headers and queries of requests: how a key is checked, and how it is found."""

import contextlib
import hmac
import re
from base64 import b64decode
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers

from localwhisper_server.errors import MissingKey, WrongKey

# For callers whose `Authorization` header is meant for the upstream.
KEY_HEADER = "x-localwhisper-key"
# A browser cannot set headers for a WebSocket: OpenAI's SDK sends the key as one of the sub-protocols.
KEY_SUBPROTOCOL = "openai-insecure-api-key."
# What separates the words of a header; no key has one of these in it.
_SEPARATORS = re.compile(rb'[\s,;"]+')


def check_key(headers: Headers, keys: Sequence[str]) -> None:
    """Raise MissingKey or WrongKey unless the headers have one of the keys."""
    key = headers.get(KEY_HEADER, "").strip(" \t")
    if KEY_HEADER not in headers:
        scheme, _, token = headers.get("authorization", "").strip(" \t").partition(" ")
        key = token.strip(" \t") if scheme.lower() == "bearer" else _subprotocol_key(headers)
    if not key:
        raise MissingKey
    if not _is_one_of(key.encode("latin-1"), keys):
        raise WrongKey(key)


def _subprotocol_key(headers: Headers) -> str:
    """Return the key among the sub-protocols of a WebSocket; empty where there is none."""
    offered = ",".join(headers.getlist("sec-websocket-protocol")).split(",")
    keys = [name.strip()[len(KEY_SUBPROTOCOL) :] for name in offered if name.strip().startswith(KEY_SUBPROTOCOL)]
    return keys[0] if keys else ""


def contains_key(value: bytes, keys: Sequence[str]) -> bool:
    """Whether a header's value, or a part of a query, has one of the keys as a word, in any usual form."""
    words: set[bytes] = set()
    for form in (value.strip(), unquote_to_bytes(value), unquote_to_bytes(value.replace(b"+", b" "))):
        words |= {form, *_SEPARATORS.split(form)}
    scheme, _, encoded = value.strip().partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(ValueError):
            user, _, password = b64decode(encoded).partition(b":")
            words |= {user, password}
    # `token="KEY"` and `api_key=KEY` as well. A key may end in an equals sign.
    words |= {word.partition(b"=")[2] for word in words}
    return any(_is_one_of(word, keys) for word in words)


def _is_one_of(key: bytes, keys: Sequence[str]) -> bool:
    """Whether `key` is among `keys`; the time that this takes does not depend on which."""
    found = False
    for own in keys:  # compares all of them, also after one that is equal
        found |= hmac.compare_digest(key, own.encode())
    return found
