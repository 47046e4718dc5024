"""The service's settings file: NAME=value lines that both systemd and the server read.

Users edit the file. All that they wrote stays, comments included; only the settings that change are written.
"""

import re
import textwrap
from collections.abc import Mapping

from localwhisper_server.settings import ENV_PREFIX, Settings, written

_ASSIGNMENT = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]*")
# systemd and python-dotenv read these differently, even between single quotes.
_UNSAFE = re.compile(r"[\x00-\x1f'\\]")

_HEAD = """\
# Settings of localwhisper-server as a service. To change one, remove the # in front of it. Then run this command,
# which restarts the service:
#     localwhisper-server service install
# Other variables can be set here as well: HF_HOME, HF_ENDPOINT, CUDA_VISIBLE_DEVICES.
"""


def template() -> str:
    """Return a settings file that explains each setting and sets none."""
    blocks = [_HEAD]
    for name, field in Settings.model_fields.items():
        comment = "\n".join(f"# {line}" for line in textwrap.wrap(field.description or "", 110))
        blocks.append(f"{comment}\n#{variable(name)}={written(field.default)}\n")
    return "\n".join(blocks)


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def merged(text: str, changes: Mapping[str, str]) -> str:
    """Return `text` with the variables in `changes` set: in their lines, or after their comments, or at the end.

    Raises:
        ValueError: systemd and python-dotenv would read a value differently.

    """
    # Not str.splitlines, which also splits at separators such as U+2028 that may be in a comment.
    lines = re.split(r"\r\n|\n|\r", text)
    if not lines[-1]:
        lines.pop()
    for name, value in changes.items():
        assignment = f"{name}={_quoted(name, value)}"
        places = [number for number, line in enumerate(lines) if _assigned(line) == name]
        hints = [number for number, line in enumerate(lines) if _assigned(line.lstrip("# ")) == name]
        if places:
            # systemd and dotenv use the last one.
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
