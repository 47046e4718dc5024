"""The workspace skill `openai-whisper-api`, which takes the place of an assistant's bundled one, and how it is written.

An assistant prefers a skill of its workspace to a bundled one of the same name; so the recordings that it would have
sent to OpenAI go to the LAN server, without a word changed in its settings.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

NAME = "openai-whisper-api"
SOURCE = Path(__file__).with_name("skill_data") / NAME


class SkillExists(Exception):
    """Files of that name are there and say something else; `paths` names them."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(", ".join(map(str, paths)))
        self.paths = paths


def install(skills: Path, *, force: bool = False) -> list[Path]:
    """Write the skill into a folder of skills; return the files written, none where all was as it should be.

    Raises:
        SkillExists: a file there differs, and `force` does not say to replace it; nothing was written.
        OSError: the folder cannot be written to.

    """
    sources = sorted(path for path in SOURCE.rglob("*") if path.is_file())
    targets = {skills / NAME / source.relative_to(SOURCE): source.read_bytes() for source in sources}
    differing = [path for path, content in targets.items() if not _says(path, content)]
    there = [path for path in differing if path.exists()]
    if there and not force:
        raise SkillExists(there)
    for path in differing:
        _write(path, targets[path])
    return differing


def _says(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through a second file: an assistant may be running the script that is being replaced.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    written = Path(name)
    # A wheel need not keep the permission to run.
    written.chmod(0o755 if path.suffix == ".sh" else 0o644)
    written.replace(path)
