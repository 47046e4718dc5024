"""Where CUDA's libraries are, and how to have them in the process before CTranslate2 asks for them.

CTranslate2 opens cuBLAS (and, up to 4.6.2, cuDNN) by name alone, at the first work on a GPU. The wheels of `[cuda]`
put them into site-packages, where no loader looks; so people are told to set LD_LIBRARY_PATH. A library that is
already loaded is found by its name, so it is enough to load it by its full path first.
"""

import ctypes
import functools
import importlib.util
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The wheels' folders under site-packages/nvidia, the libraries that are opened from each, and what each one opens in
# turn comes before it. NVRTC is what cuDNN compiles kernels with while it runs.
_LINUX = {
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
_WINDOWS = {
    "cublas": ("bin/cublasLt64_12.dll", "bin/cublas64_12.dll"),
    "cuda_nvrtc": ("bin/nvrtc64_120_0.dll",),
    "cudnn": (
        "bin/cudnn_graph64_9.dll",
        "bin/cudnn_ops64_9.dll",
        "bin/cudnn_cnn64_9.dll",
        "bin/cudnn_adv64_9.dll",
        "bin/cudnn64_9.dll",
    ),
}
_CUDNN = frozenset({"cuda_nvrtc", "cudnn"})

Open = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Library:
    """One library: its file name and where it was loaded from.

    `path` is the wheel's file, the bare name where the system's own loader found it, or None where nobody did;
    `problem` is then what the loader said.
    """

    name: str
    path: str | None
    problem: str = ""


def load(
    *,
    platform: str = sys.platform,
    folders: Sequence[Path] | None = None,
    needs_cudnn: bool | None = None,
    open_library: Open | None = None,
) -> list[Library]:
    """Load what CTranslate2 will ask for, wheels first, and say where each library came from.

    Never raises: a missing library is CTranslate2's to complain of, and `doctor`'s to explain. `folders` are those of
    the package `nvidia`; `open_library` is `ctypes.CDLL` with global symbols.
    """
    wheels: Mapping[str, tuple[str, ...]] = {"linux": _LINUX, "win32": _WINDOWS}.get(platform, {})
    folders = _wheel_folders() if folders is None else folders
    needs_cudnn = asks_for_cudnn() if needs_cudnn is None else needs_cudnn
    open_library = open_library or functools.partial(ctypes.CDLL, mode=ctypes.RTLD_GLOBAL)
    return [
        _load_one(file, package, folders, open_library)
        for package, files in wheels.items()
        if needs_cudnn or package not in _CUDNN
        for file in files
    ]


def _load_one(file: str, package: str, folders: Sequence[Path], open_library: Open) -> Library:
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
    """Return whether the installed CTranslate2 opens cuDNN: later ones do without, and it is 1 GB to load for nothing.

    Asked of the binary itself, since it names what it opens.
    """
    return any(_contains(binary, b"cudnn") for binary in (_ctranslate2_binaries() if binaries is None else binaries))


def _contains(binary: Path, text: bytes) -> bool:
    with binary.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _ctranslate2_binaries() -> list[Path]:
    """Return CTranslate2's own library, without importing the package."""
    return [
        file
        for folder in _package_folders("ctranslate2")
        for pattern in ("../ctranslate2.libs/libctranslate2*", "ctranslate2*.dll")
        for file in sorted(folder.glob(pattern))
    ]


def _wheel_folders() -> list[Path]:
    return _package_folders("nvidia")


def _package_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
