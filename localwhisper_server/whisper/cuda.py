"""CUDA on this machine: devices, the precisions they can run, and the libraries that CTranslate2 needs.

CTranslate2 opens cuBLAS (and, up to 4.6.2, cuDNN) by name alone, at the first work on a GPU. The wheels of `[cuda]`
install them into site-packages, where the system's loader does not look, unless LD_LIBRARY_PATH is set. A library that
is already loaded is found by its name, so each is loaded by its full path first.
"""

import ctypes
import functools
import importlib.util
import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ctranslate2

# The wheels' folders under site-packages/nvidia, with the libraries that are opened from each, dependencies first.
# cuDNN compiles kernels with NVRTC while it runs.
_LIBRARIES = {
    "cublas": ("lib/libcublasLt.so.12", "lib/libcublas.so.12"),
    "cuda_nvrtc": ("lib/libnvrtc.so.12",),
    "cudnn": (
        "lib/libcudnn_graph.so.9",
        "lib/libcudnn_ops.so.9",
        "lib/libcudnn_cnn.so.9",
        "lib/libcudnn_adv.so.9",
        "lib/libcudnn.so.9",
    ),
}
_CUDNN = frozenset({"cuda_nvrtc", "cudnn"})


def device_count() -> int:
    """Count the CUDA devices that the driver shows; 0 without a driver."""
    return int(ctranslate2.get_cuda_device_count())


def cuda_compute_types() -> frozenset[str]:
    """Return the precisions that the first CUDA device can run; none without a device or a working driver."""
    try:
        return compute_types("cuda") if device_count() else frozenset()
    except (RuntimeError, ValueError):  # loading the model will raise the driver's own message
        return frozenset()


def compute_types(device: str) -> frozenset[str]:
    """Return the precisions that "cpu" or "cuda" can run.

    Raises:
        RuntimeError: this machine has no such device.

    """
    return frozenset(ctranslate2.get_supported_compute_types(device))


@dataclass(frozen=True, slots=True)
class Library:
    """One library: its file name and where it was loaded from.

    `path` is the wheel's file, or the bare name if the system's own loader found it, or None if it was not found;
    `problem` then holds the loader's message.
    """

    name: str
    path: str | None
    problem: str = ""


def load_libraries(
    *,
    platform: str = sys.platform,
    folders: Sequence[Path] | None = None,
    needs_cudnn: bool | None = None,
    open_library: Callable[[str], object] | None = None,
) -> list[Library]:
    """Load the libraries that CTranslate2 will open, wheels first, and return where each came from.

    A missing library is no error here: CTranslate2 raises one when it needs it, and `doctor` explains it. `folders` are
    those of the package `nvidia`; `open_library` is `ctypes.CDLL` with global symbols. Only Linux has such wheels.
    """
    if platform != "linux":
        return []
    folders = _package_folders("nvidia") if folders is None else folders
    needs_cudnn = asks_for_cudnn() if needs_cudnn is None else needs_cudnn
    open_library = open_library or functools.partial(ctypes.CDLL, mode=ctypes.RTLD_GLOBAL)
    return [
        _load_library(file, package, folders, open_library)
        for package, files in _LIBRARIES.items()
        if needs_cudnn or package not in _CUDNN
        for file in files
    ]


def _load_library(file: str, package: str, folders: Sequence[Path], open_library: Callable[[str], object]) -> Library:
    name = Path(file).name
    candidates = [str(path) for folder in folders if (path := folder / package / file).is_file()]
    problem = ""
    for candidate in [*candidates, name]:
        try:
            open_library(candidate)
        except OSError as failure:
            problem = problem or str(failure)
        else:
            return Library(name, candidate)
    return Library(name, None, problem)


def asks_for_cudnn(binaries: Sequence[Path] | None = None) -> bool:
    """Return whether the installed CTranslate2 opens cuDNN, which is 1 GB; later versions do without it."""
    binaries = ctranslate2_binaries() if binaries is None else binaries
    return any(contains(binary, b"cudnn") for binary in binaries)


def contains(binary: Path, text: bytes) -> bool:
    """Return whether a file contains `text`: a library contains the names of those it opens."""
    with binary.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def ctranslate2_binaries() -> list[Path]:
    """Return the files of CTranslate2's own library."""
    return [
        file
        for folder in _package_folders("ctranslate2")
        for file in sorted(folder.glob("../ctranslate2.libs/libctranslate2*"))
    ]


def _package_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
