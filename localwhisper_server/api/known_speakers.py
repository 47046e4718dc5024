"""Known speakers in a form: their names, and recordings of their voices as data URLs. Pure."""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

from localwhisper_server.errors import InvalidRequest
from localwhisper_server.types import KnownSpeaker

NAMES: Final = "known_speaker_names"
REFERENCES: Final = "known_speaker_references"
MOST_KNOWN: Final = 4
LONGEST_NAME: Final = 100
# The media type is not compared with anything: many programs name a wrong one, and the decoder finds the right one.
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def read(names: Sequence[str], references: Sequence[str]) -> tuple[KnownSpeaker, ...]:
    """Return the known speakers: the first name with the first reference, and so on.

    Raises:
        InvalidRequest: there are more than four, not as many names as references, a name twice, or no data URL.

    """
    if len(names) != len(references):
        raise _invalid(
            f"There are {len(names)} names and {len(references)} references. Send one for each other.", NAMES
        )
    if len(names) > MOST_KNOWN:
        raise _invalid(f"There are {len(names)} known speakers. {MOST_KNOWN} are the most.", NAMES)
    stripped = [name.strip() for name in names]
    if len(set(stripped)) < len(names) or not all(0 < len(name) <= LONGEST_NAME for name in stripped):
        raise _invalid(f"The names must differ, and have 1 to {LONGEST_NAME} characters.", NAMES)
    return tuple(KnownSpeaker(name, _decoded(url)) for name, url in zip(stripped, references, strict=True))


def _decoded(url: str) -> bytes:
    head = _DATA_URL.match(url)
    if head is None:
        raise _invalid("Expected a data URL with base64: data:audio/wav;base64,…", REFERENCES)
    # The `base64` command breaks its lines, and "+", "/" and "=" may be escaped in a URL.
    data = "".join(url[head.end() :].split())
    try:
        return base64.b64decode(unquote(data) if "%" in data else data, validate=True)
    except (binascii.Error, ValueError) as failure:
        raise _invalid("The data URL's base64 is not valid.", REFERENCES) from failure


def _invalid(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_value")
