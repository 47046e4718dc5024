"""The keys that callers may show: where they are read from, and how they are compared."""

import contextlib
import hmac
import re
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from localwhisper_server.api.asgi import header_values
from localwhisper_server.errors import MissingKey, WrongKey

# The key by a name of its own, for callers whose `Authorization` is meant for the server behind this one.
KEY_HEADER = b"x-localwhisper-key"
# What stands between the words of a header. A key with one of these in it could not be told from two words.
_SEPARATORS = re.compile(rb'[\s,;"]+')
_USABLE = re.compile(r"[!#-+\--:<-~]+")  # ASCII that is seen, without the separators


def require_usable(key: str) -> None:
    """Raise ValueError for a key that cannot be told apart in a header; the message does not show it."""
    if not _USABLE.fullmatch(key):
        raise ValueError(
            "a key may hold letters, digits and signs of ASCII alone, no blank, comma, semicolon or quotation mark, "
            "since it could not be told apart in a header"
        )


def holds_one_of(keys: Sequence[str], value: bytes) -> bool:
    """Whether a header's value, or a part of a query, has one of the keys for a word, in any usual form."""
    words: set[bytes] = set()
    for form in (value.strip(), unquote_to_bytes(value), unquote_to_bytes(value.replace(b"+", b" "))):
        words |= {form, *_SEPARATORS.split(form)}
    scheme, _, encoded = value.strip().partition(b" ")
    if scheme.lower() == b"basic":
        with contextlib.suppress(ValueError):
            user, _, password = b64decode(encoded).partition(b":")
            words |= {user, password}
    # `token="KEY"` and `api_key=KEY` as well; a key may have an equals sign at its end.
    words |= {word.partition(b"=")[2] for word in words}
    return any(is_one_of(word, keys) for word in words)


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
