from __future__ import annotations

from typing import TYPE_CHECKING, Any

import huggingface_hub.errors
import pytest

from localwhisper_server.diarization import weights
from localwhisper_server.errors import NoDiarization

if TYPE_CHECKING:
    from pathlib import Path


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """Both files are needed; the message names what is missing, and nothing is downloaded."""
    (tmp_path / "segmentation.onnx").touch()
    with pytest.raises(NoDiarization, match=r"holds no embedding\.onnx"):
        weights.find(tmp_path)
    (tmp_path / "embedding.onnx").touch()
    assert weights.find(tmp_path) == weights.NetworkFiles(tmp_path / "segmentation.onnx", tmp_path / "embedding.onnx")


def test_without_a_hub_the_message_names_both_ways() -> None:
    """A server in a network without internet."""

    def fetch(*_: str, local_files_only: bool = False, **__: Any) -> str:
        raise (huggingface_hub.errors.LocalEntryNotFoundError if local_files_only else OSError)("no route to the hub")

    with pytest.raises(NoDiarization) as failure:
        weights.find(None, fetch=fetch)
    assert "no route to the hub" in failure.value.message
    assert "--diarization-models FOLDER" in failure.value.message
    assert weights.SEGMENTATION_FILE.repository in failure.value.message
    assert (failure.value.status, failure.value.param) == (400, "response_format")


def test_another_file_is_refused(tmp_path: Path) -> None:
    """The checksum decides, whoever sent the file."""
    (tmp_path / "model.onnx").write_bytes(b"another")
    asked = []

    def fetch(repository: str, name: str, *, revision: str, local_files_only: bool = False) -> str:
        asked.append((repository, name, revision, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(tmp_path / "model.onnx")

    with pytest.raises(NoDiarization, match="wrong checksum"):
        weights.find(None, fetch=fetch)
    pinned = weights.SEGMENTATION_FILE
    where = (pinned.repository, pinned.name, pinned.revision)
    assert asked == [(*where, True), (*where, False)]


def test_every_pin_is_whole() -> None:
    """A commit and a SHA-256: a branch's name could be moved."""
    for file in (weights.SEGMENTATION_FILE, weights.EMBEDDING_FILE):
        assert (len(bytes.fromhex(file.revision)), len(bytes.fromhex(file.sha256))) == (20, 32)
