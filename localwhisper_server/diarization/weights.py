"""The files of the two networks: a folder of one's own, or pinned files of the Hugging Face hub.

The hub's checksums are those that several public projects pin for these revisions. Each file is checked after it is
found, so a download that differs is refused.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Callable
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


def require_installed() -> None:
    """Check that the packages of the extra `diarize` are there. Imports none of them.

    Raises:
        NoDiarization: one is missing.

    """
    if any(importlib.util.find_spec(name) is None for name in ("onnxruntime", "sherpa_onnx")):
        raise NoDiarization(f"This server cannot tell speakers apart: the extra 'diarize' is missing. {INSTALL}")


def load_networks(folder: Path | None) -> OnnxNetworks:
    """Return the networks; see `find`."""
    files = find(folder)
    return OnnxNetworks(files.segmentation, files.embedding)


def find(folder: Path | None, *, fetch: Callable[..., str] = huggingface_hub.hf_hub_download) -> NetworkFiles:
    """Return the networks' files: those in `folder`, or the hub's, downloaded if necessary.

    `fetch` is the hub's download, with its arguments.

    Raises:
        NoDiarization: a file is missing, cannot be downloaded, or has the wrong checksum.

    """
    if folder is not None:
        missing = [name for name in (SEGMENTATION, EMBEDDING) if not (folder / name).is_file()]
        if missing:
            raise NoDiarization(f"{folder} (--diarization-models) holds no {' and no '.join(missing)}.")
        return NetworkFiles(folder / SEGMENTATION, folder / EMBEDDING)
    return NetworkFiles(_from_hub(SEGMENTATION_FILE, fetch), _from_hub(EMBEDDING_FILE, fetch))


def _from_hub(file: HubFile, fetch: Callable[..., str]) -> Path:
    try:
        try:
            path = Path(fetch(file.repository, file.name, revision=file.revision, local_files_only=True))
        except (huggingface_hub.errors.LocalEntryNotFoundError, OSError):
            logger.info("downloading %s from %s", file.name, file.repository)
            path = Path(fetch(file.repository, file.name, revision=file.revision))
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalEntryNotFoundError, OSError) as failure:
        reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
        raise NoDiarization(
            f"The networks that tell speakers apart are not on this machine and cannot be downloaded ({reason}). "
            f"Either connect the server to the hub, or start it with --diarization-models FOLDER, with "
            f"{SEGMENTATION} (from {SEGMENTATION_FILE.repository}: {SEGMENTATION_FILE.name}) and "
            f"{EMBEDDING} (from {EMBEDDING_FILE.repository}: {EMBEDDING_FILE.name}) in it."
        ) from failure
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
            raise NoDiarization(
                f"{path} has the wrong checksum. Delete it, so that it is downloaded again, or start the server with "
                "--diarization-models FOLDER."
            )
    return path
