"""The files of the two networks: a folder of one's own, or pinned files of the Hugging Face hub.

The hub's checksums are those that several public projects pin for these revisions. Each file is checked after it is
found, so a download that differs is refused. A download that failed is not tried again for a minute.
"""

import hashlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors

from localwhisper_server.diarization.networks import OnnxNetworks
from localwhisper_server.errors import NoDiarization

logger = logging.getLogger(__name__)

INSTALL = "Install it from the clone: pip install '.[server,diarize]'"
# The names in a folder of one's own.
SEGMENTATION, EMBEDDING = "segmentation.onnx", "embedding.onnx"
# How long the hub may take to answer at all. Its own download tries for 23 s before it gives up.
REACH_SECONDS = 4.0
# How long requests are refused at once after a download failed.
RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at a commit, with its SHA-256."""

    repository: str
    revision: str
    name: str
    sha256: str


# pyannote segmentation 3.0 (MIT), converted by the sherpa-onnx project.
SEGMENTATION_FILE = HubFile(
    "csukuangfj/sherpa-onnx-pyannote-segmentation-3-0",
    "9403a6902bb58e3d5ae8c7e77c3422de279db2e0",
    "model.onnx",
    "220ad67ca923bef2fa91f2390c786097bf305bceb5e261d4af67b38e938e1079",
)
# 3D-Speaker's CAM++ for Chinese and English (Apache-2.0), converted by the sherpa-onnx project.
EMBEDDING_FILE = HubFile(
    "csukuangfj/speaker-embedding-models",
    "0743f301363dec56491a490f6d6cbc9d67f9a3bf",
    "3dspeaker_speech_campplus_sv_zh_en_16k-common_advanced.onnx",
    "aa3cfc16963a10586a9393f5035d6d6b57e98d358b347f80c2a30bf4f00ceba2",
)


@dataclass(frozen=True, slots=True)
class NetworkFiles:
    """Where the two networks lie."""

    segmentation: Path
    embedding: Path


def installed() -> bool:
    """Return whether the packages of the extra `diarize` are there. Imports none of them."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "sherpa_onnx"))


def require_installed() -> None:
    """Check that the packages of the extra `diarize` are there.

    Raises:
        NoDiarization: one is missing.

    """
    if not installed():
        raise NoDiarization(f"This server cannot tell speakers apart: the extra 'diarize' is missing. {INSTALL}")


def reach_hub(file: HubFile, *, seconds: float = REACH_SECONDS, endpoint: str | None = None) -> None:
    """Ask the hub once for a file's metadata; `endpoint` is its address, None for the one that is set.

    Raises:
        TimeoutError: it does not answer within so many seconds.
        Exception: it cannot be reached, or does not have the file; the class is that of its HTTP library.

    """
    url = huggingface_hub.hf_hub_url(file.repository, file.name, revision=file.revision, endpoint=endpoint)
    answer: Future[object] = Future()

    def ask() -> None:
        try:
            answer.set_result(huggingface_hub.get_hf_file_metadata(url, timeout=seconds))
        except Exception as failure:  # noqa: BLE001 - raised by `result` below
            answer.set_exception(failure)

    # In a thread of its own: the system's look-up of a name heeds no time limit.
    threading.Thread(target=ask, name="localwhisper-reach-hub", daemon=True).start()
    try:
        answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer from {url} within {seconds:g} s") from None


class NetworkLoader:
    """Loads the networks of `folder`, or of the hub if there is none.

    `clock` gives seconds from any start. `fetch` is the hub's download, with its arguments; before it, `reach` must
    return, which raises an error if the hub does not answer. `load` is called by one thread at a time, `check` by any.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        clock: Callable[[], float],
        fetch: Callable[..., str] = huggingface_hub.hf_hub_download,
        reach: Callable[[HubFile], object] = reach_hub,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._fetch = fetch
        self._reach = reach
        self._refused: tuple[float, str] | None = None  # until when, and why

    def check(self) -> None:
        """Check that a request for speakers may come: it then needs no decoding to be refused.

        Raises:
            NoDiarization: a package is missing, or a download failed within the last RETRY_SECONDS.

        """
        require_installed()
        self._require_new_attempt()

    def load(self) -> OnnxNetworks:
        """Return the networks.

        Raises:
            NoDiarization: see `find`; or a download failed within the last RETRY_SECONDS.

        """
        files = self.find()
        return OnnxNetworks(files.segmentation, files.embedding)

    def find(self) -> NetworkFiles:
        """Return the networks' files, downloaded if necessary.

        Raises:
            NoDiarization: a file is missing, cannot be downloaded, or has the wrong checksum.

        """
        folder = self._folder
        if folder is not None:
            missing = [name for name in (SEGMENTATION, EMBEDDING) if not (folder / name).is_file()]
            if missing:
                raise NoDiarization(f"{folder} (--diarization-models) holds no {' and no '.join(missing)}.")
            return NetworkFiles(folder / SEGMENTATION, folder / EMBEDDING)
        return NetworkFiles(self._from_hub(SEGMENTATION_FILE), self._from_hub(EMBEDDING_FILE))

    def _from_hub(self, file: HubFile) -> Path:
        try:
            path = Path(self._fetch(file.repository, file.name, revision=file.revision, local_files_only=True))
        except (huggingface_hub.errors.LocalEntryNotFoundError, OSError):
            path = self._download(file)
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                raise NoDiarization(
                    f"{path} has the wrong checksum. Delete it, so that it is downloaded again, or start the server "
                    "with --diarization-models FOLDER."
                )
        return path

    def _require_new_attempt(self) -> None:
        if self._refused is not None and self._clock() < self._refused[0]:
            raise NoDiarization(self._refused[1])

    def _download(self, file: HubFile) -> Path:
        self._require_new_attempt()
        logger.info("downloading %s from %s", file.name, file.repository)
        try:
            self._reach(file)
            return Path(self._fetch(file.repository, file.name, revision=file.revision))
        except Exception as failure:  # the hub's versions use several HTTP libraries, with errors of their own
            message = _not_downloaded(failure)
            logger.warning("%s", message)
            self._refused = self._clock() + RETRY_SECONDS, message
            raise NoDiarization(message) from failure


def _not_downloaded(failure: Exception) -> str:
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    commands = " && ".join(
        f"hf download {file.repository} {file.name} --revision {file.revision} --local-dir FOLDER"
        f" && mv FOLDER/{file.name} FOLDER/{name}"
        for file, name in ((SEGMENTATION_FILE, SEGMENTATION), (EMBEDDING_FILE, EMBEDDING))
    )
    return (
        f"The networks that tell speakers apart are not on this machine and cannot be downloaded ({reason}). "
        f"Either connect the server to the hub: it tries again {RETRY_SECONDS:g} s after this attempt. "
        f"Or run this on a machine with internet: {commands}; "
        "copy FOLDER here, and start the server with --diarization-models FOLDER."
    )
