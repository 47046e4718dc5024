"""The clips that a ``manifest.tsv`` lists: of the shared recordings, and of a corpus that `build.py` wrote."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from corpus.clips import Clip, skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def built(folder: Path, split: str) -> list[Clip]:
    """Return the clips of one split (tune, test) of a corpus that `build.py` wrote, or of ``all``."""
    return [
        Clip(
            id=(folder / row["path"]).stem,
            seconds=float(row["seconds"]),
            language=row["language"],
            reference=row["text"],
            group=row["group"],
            kind=row["kind"],
            licence=row["licence"],
            path=folder / row["path"],
        )
        for row in _rows(folder / "manifest.tsv")
        if split in {"all", row["split"]}
    ]


def shared(root: Path) -> Iterator[Clip]:
    """Yield the clips that ``root/manifest.tsv`` describes; none, and a message, without it."""
    manifest = root / "manifest.tsv"
    if not manifest.is_file():
        skip(f"no {manifest}: the shared recordings are left out")
        return
    for row in _rows(manifest):
        yield Clip(
            id=row["id"],
            seconds=float(row["seconds"]),
            language=row["language"],
            reference=row["reference_text"],
            group="shared",
            kind=row["kind"],
            licence=row["licence"],
            path=root / row["file"],
        )


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
