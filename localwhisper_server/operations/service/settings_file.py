"""The service's settings file: NAME=value lines that systemd and the server itself both read.

Kept by the person who runs the service: what they wrote, comments too, stays; only names that are set anew change.
"""

import re
import textwrap
from collections.abc import Mapping

from localwhisper_server.settings import ENV_PREFIX, Settings, written

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")
# Between single quotes, systemd and python-dotenv agree on everything but these.
_UNSAFE = re.compile(r"[\x00-\x1f'\\]")

_HEAD = """\
# Settings of localwhisper-server as a service. Take away the # in front of what you want to change, then run
#     localwhisper-server service install
# again, which restarts it. Other variables may stand here, too: HF_HOME, HF_ENDPOINT, CUDA_VISIBLE_DEVICES.
"""


def template() -> str:
    """Return a settings file that sets nothing and explains everything."""
    blocks = [_HEAD]
    for name, field in Settings.model_fields.items():
        comment = "\n".join(f"# {line}" for line in textwrap.wrap(field.description or "", 110))
        blocks.append(f"{comment}\n#{variable(name)}={written(field.default)}\n")
    return "\n".join(blocks)


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def merged(text: str, changes: Mapping[str, str]) -> str:
    """Return `text` with the variables in `changes` set, each in its old place or, if new, after its commented line.

    Raises:
        ValueError: a value cannot be written so that every reader reads it alike.

    """
    # Only where systemd and dotenv end a line: other separators (U+2028) may stand in a comment.
    lines = re.split(r"\r\n|\n|\r", text)
    if not lines[-1]:
        lines.pop()
    for name, value in changes.items():
        assignment = f"{name}={_quoted(name, value)}"
        places = [number for number, line in enumerate(lines) if _assigned(line) == name]
        hints = [number for number, line in enumerate(lines) if _assigned(line.lstrip("# ")) == name]
        if places:
            # The last one wins where systemd and dotenv read it, so it is the one to change.
            lines[places[-1]] = assignment
        elif hints:
            lines.insert(hints[-1] + 1, assignment)
        else:
            lines.append(assignment)
    return "\n".join(lines) + "\n"


def _assigned(line: str) -> str | None:
    match = _ASSIGNMENT.match(line)
    return match[1] if match else None


def _quoted(name: str, value: str) -> str:
    if _UNSAFE.search(value):
        raise ValueError(f"{name} cannot hold a single quote, a backslash or a line break here.")
    return value if _PLAIN.fullmatch(value) else f"'{value}'"
