from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import huggingface_hub.errors
import pytest

from localwhisper_server.diarization import weights
from localwhisper_server.diarization.diarizer import Diarizer
from localwhisper_server.errors import NoDiarization
from tests.server.diarization.networks_double import voice

if TYPE_CHECKING:
    from pathlib import Path

    from localwhisper_server.diarization.networks import OnnxNetworks


class Hub:
    """A hub that can be cut off; counts how often it was tried, and at which time."""

    def __init__(self, download: Path | None = None) -> None:
        self.now = 0.0
        self.tried: list[float] = []
        self.asked: list[tuple[str, str, str, bool]] = []
        self._download = download

    def loader(self, folder: Path | None = None) -> weights.NetworkLoader:
        """Return a loader that knows this hub alone."""
        return weights.NetworkLoader(folder, clock=lambda: self.now, fetch=self._fetch, reach=self._reach)

    def _reach(self, _: weights.HubFile) -> None:
        self.tried.append(self.now)
        if self._download is None:
            raise OSError("no route to the hub")

    def _fetch(self, repository: str, name: str, *, revision: str, local_files_only: bool = False) -> str:
        self.asked.append((repository, name, revision, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(self._download)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    """Both files are needed; the message names what is missing, and nothing is downloaded or remembered."""
    hub = Hub()
    loader = hub.loader(tmp_path)
    (tmp_path / "segmentation.onnx").touch()
    with pytest.raises(NoDiarization, match=r"holds no embedding\.onnx"):
        loader.find()
    (tmp_path / "embedding.onnx").touch()
    assert loader.find() == weights.NetworkFiles(tmp_path / "segmentation.onnx", tmp_path / "embedding.onnx")
    assert (hub.asked, hub.tried) == ([], [])


def test_without_a_hub_the_message_names_both_ways() -> None:
    """A server in a network without internet: which commands to run, and with which option to start."""
    with pytest.raises(NoDiarization) as failure:
        Hub().loader().find()
    message = failure.value.message
    assert "no route to the hub" in message
    assert "--diarization-models FOLDER" in message
    for file, name in ((weights.SEGMENTATION_FILE, "segmentation.onnx"), (weights.EMBEDDING_FILE, "embedding.onnx")):
        assert f"hf download {file.repository} {file.name} --revision {file.revision}" in message
        assert f"mv FOLDER/{file.name} FOLDER/{name}" in message
    assert (failure.value.status, failure.value.param) == (400, "response_format")


@pytest.mark.skipif(not weights.installed(), reason="the extra diarize is not installed")
def test_a_failed_download_is_remembered_for_a_while() -> None:
    """Until RETRY_SECONDS after the attempt, requests are refused before anything is decoded; then one tries again."""
    hub = Hub()
    loader = hub.loader()
    loader.check()
    with pytest.raises(NoDiarization) as first:
        loader.find()
    hub.now = weights.RETRY_SECONDS - 1
    for refused in (loader.check, loader.find):
        with pytest.raises(NoDiarization) as again:
            refused()
        assert again.value.message == first.value.message
    hub.now = weights.RETRY_SECONDS
    loader.check()
    with pytest.raises(NoDiarization):
        loader.find()
    assert hub.tried == [0.0, weights.RETRY_SECONDS]


@pytest.mark.anyio
async def test_requests_at_the_same_time_share_one_attempt() -> None:
    """Each gets the message of the one attempt."""
    hub = Hub()
    loader = hub.loader()

    def load() -> OnnxNetworks:
        loader.find()
        raise AssertionError("there is no hub")

    diarizer = Diarizer(load)
    requests = [diarizer.begin() for _ in range(3)]
    for request in requests:
        request.add(voice(0, seconds=1))
    for request in requests:
        with pytest.raises(NoDiarization, match="no route to the hub"):
            await request.timeline()
    diarizer.close()
    assert len(hub.tried) == 1


def test_another_file_is_refused(tmp_path: Path) -> None:
    """The checksum decides, wherever the file came from. The next request looks again: the file may be deleted."""
    (tmp_path / "model.onnx").write_bytes(b"another")
    hub = Hub(tmp_path / "model.onnx")
    loader = hub.loader()
    pinned = weights.SEGMENTATION_FILE
    where = (pinned.repository, pinned.name, pinned.revision)
    for _ in range(2):
        hub.asked.clear()
        with pytest.raises(NoDiarization, match="wrong checksum"):
            loader.find()
        assert hub.asked == [(*where, True), (*where, False)]


def test_every_pin_is_whole() -> None:
    """A commit and a SHA-256: a branch's name could be moved."""
    for file in (weights.SEGMENTATION_FILE, weights.EMBEDDING_FILE):
        assert (len(bytes.fromhex(file.revision)), len(bytes.fromhex(file.sha256))) == (20, 32)


def test_a_hub_that_refuses_the_connection_is_tried_once() -> None:
    """The hub's own download would try for 23 s."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(Exception, match="refused"):
            weights.reach_hub(weights.SEGMENTATION_FILE, endpoint=endpoint)
    assert time.monotonic() - started < weights.REACH_SECONDS


def test_a_hub_that_does_not_answer_is_given_up() -> None:
    """The connection is accepted, and nothing follows."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Exception, match=r"(?i)timed out|no answer"):
            weights.reach_hub(weights.SEGMENTATION_FILE, seconds=0.2, endpoint=endpoint)
