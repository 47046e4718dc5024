"""The keys that callers may show: where they are read from, and how they are compared."""

import hmac
from collections.abc import Sequence
from pathlib import Path

from localwhisper_server.asgi import header_values
from localwhisper_server.errors import MissingKey, WrongKey

# The key by a name of its own, for callers whose `Authorization` is meant for the server behind this one.
KEY_HEADER = b"x-localwhisper-key"


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys in a file: one a line; empty lines and those that begin with # are none.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no key, or is not text; a server that was to be locked must not stand open.

    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # str.splitlines would take more for the end of a line
    except UnicodeError as failure:
        raise ValueError(f"{path} is not text in UTF-8") from failure
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise ValueError(f"{path} holds no key")
    return keys


def check_key(headers: Sequence[tuple[bytes, bytes]], keys: Sequence[str]) -> None:
    """Compare the caller's key with each of the server's, in constant time.

    Raises:
        MissingKey: there is no key.
        WrongKey: there is another one.

    """
    given = header_values(headers, KEY_HEADER) or header_values(headers, b"authorization")
    key = given[0].strip() if given else b""
    if not header_values(headers, KEY_HEADER):
        key = bearer(key)
    if not key:
        raise MissingKey
    if not is_one_of(key, keys):
        raise WrongKey(key.decode("latin-1"))


def bearer(authorization: bytes) -> bytes:
    """Return the key in an `Authorization` header, empty where it holds none."""
    scheme, _, key = authorization.strip().partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def is_one_of(key: bytes, keys: Sequence[str]) -> bool:
    """Whether `key` is among `keys`; how long this takes does not depend on which."""
    found = False
    for own in keys:  # all of them, not only as far as the first that fits
        found |= hmac.compare_digest(key, own.encode())
    return found
