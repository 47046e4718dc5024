"""On which device a model runs, in what precision and with how many threads, and the libraries that CUDA needs.

CTranslate2 is imported only to ask for devices and precisions, because `doctor` also runs where it cannot be imported.
"""

import contextlib
import ctypes
import importlib.util
import math
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# A step of the decoder is too small to be shared by a CPU's threads: one thread decodes a chunk faster than two do, and
# two decode two chunks in the same time (BENCHMARKS.md). So there are two workers with half of the threads each, up to
# this many.
CPU_WORKERS = 2
THREADS_PER_CPU_WORKER = 4
# The workers of a card share the weights; each has a stream of its own. So one batch can be encoded, which keeps the
# card's arithmetic busy, while another is decoded, which waits for memory. Whether that pays is measured at the start.
CUDA_WORKERS = 2
# Best first. int8 fails on some cards (RTX 50 with cuBLAS before 12.8), so float16 comes first; cards older than Volta
# run float16 slowly or not at all, and do not list it.
PRECISIONS = ("float16", "int8_float16", "bfloat16", "int8_float32", "int8", "float32")
SMALLEST = "int8_float16"
# How CTranslate2, CUDA and C++ say it.
OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "bad_alloc")
# Microseconds of processor time in each period of so many (Linux, Documentation/admin-guide/cgroup-v2.rst).
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# The wheels' folders under site-packages/nvidia, with the libraries that are opened from each, dependencies first.
# cuDNN compiles kernels with NVRTC while it runs.
CUBLAS = {"cublas": ("lib/libcublasLt.so.12", "lib/libcublas.so.12")}
CUDNN = {
    "cuda_nvrtc": ("lib/libnvrtc.so.12",),
    "cudnn": tuple(f"lib/libcudnn{part}.so.9" for part in ("_graph", "_ops", "_cnn", "_adv", "")),
}


@dataclass(frozen=True, slots=True)
class Device:
    """Where and in what precision a model runs, and why."""

    name: str
    compute_type: str
    reason: str


def is_out_of_memory(failure: BaseException) -> bool:
    """Return whether an error of CTranslate2 means that memory ran out; it has no class of its own for that."""
    return isinstance(failure, MemoryError) or any(sign in str(failure).lower() for sign in OUT_OF_MEMORY)


def device_count() -> int:
    """Count the CUDA devices that the driver shows; 0 without a driver."""
    import ctranslate2  # noqa: PLC0415 - see the top

    return int(ctranslate2.get_cuda_device_count())


def compute_types(device: str) -> frozenset[str]:
    """Return the precisions that "cpu" or "cuda" can run.

    Raises:
        RuntimeError: this machine has no such device.

    """
    import ctranslate2  # noqa: PLC0415 - see the top

    return frozenset(ctranslate2.get_supported_compute_types(device))


def cuda_compute_types() -> frozenset[str]:
    """Return the precisions that the first CUDA device can run; none without a device or a working driver."""
    try:
        return compute_types("cuda") if device_count() else frozenset()
    except (RuntimeError, ValueError):  # loading the model will raise the driver's own message
        return frozenset()


def choose_device(device: str, compute_type: str, *, cuda_devices: int, cuda_types: frozenset[str]) -> Device:
    """Replace "auto" by a device and a precision; `cuda_types` are those the card can run, empty if not known."""
    if device == "auto":
        name = "cuda" if cuda_devices else "cpu"
        reason = f"{cuda_devices} CUDA device(s) found" if cuda_devices else "no CUDA device found"
    else:
        name, reason = device, "as set"
    if compute_type == "auto":
        offered = [kind for kind in PRECISIONS if kind in cuda_types] or ["float16"]
        compute_type = offered[0] if name == "cuda" else "int8"
    return Device(name, compute_type, reason)


def smaller_precision(device: Device, cuda_types: frozenset[str]) -> str | None:
    """Return the precision that takes about half of a card's memory; None if there is none, as on a CPU."""
    possible = device.name == "cuda" and device.compute_type != SMALLEST and SMALLEST in cuda_types
    return SMALLEST if possible else None


@dataclass(frozen=True, slots=True)
class Workers:
    """How many batches a model decodes at the same time, with how many threads each; 0 is CTranslate2's choice."""

    count: int = 1
    threads: int = 0


ONE_WORKER = Workers()


def usable_cores(quota: Path = CGROUP_QUOTA) -> int:
    """Count the cores this process may use; `quota` limits a container's (`docker run --cpus 2`)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = map(int, quota.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no cgroups here, or "max" for no limit
        return count
    return max(1, min(count, math.ceil(microseconds / period)))


def choose_workers(device: str, threads: int, *, cores: int) -> Workers:
    """Return the most workers of a model, with so many threads in all; 0 for as many as suit the cores."""
    if device != "cpu":
        return Workers(CUDA_WORKERS, threads)
    threads = threads or min(cores, CPU_WORKERS * THREADS_PER_CPU_WORKER)
    count = min(CPU_WORKERS, threads)
    return Workers(count, threads // count)


@dataclass(frozen=True, slots=True)
class Library:
    """One library: its file name and where it was loaded from.

    `path` is the wheel's file, or the bare name if the system's own loader found it, or None if it was not found;
    `problem` then holds the loader's message.
    """

    name: str
    path: str | None
    problem: str = ""


def _open_globally(name: str) -> object:
    return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)


def load_libraries(
    *,
    platform: str = sys.platform,
    folders: Sequence[Path] | None = None,
    needs_cudnn: bool | None = None,
    open_library: Callable[[str], object] = _open_globally,
) -> list[Library]:
    """Load the libraries that CTranslate2 will open, wheels first, and return where each came from.

    CTranslate2 opens cuBLAS (and, up to 4.6.2, cuDNN) by name alone, at the first work on a GPU. The wheels of `[cuda]`
    install them into site-packages, where the system's loader does not look. A library that is already loaded is found
    by its name, so each is loaded by its full path first. A missing one is no error here: CTranslate2 raises one when
    it needs it, and `doctor` explains it. `folders` are those of the package `nvidia`. Only Linux has such wheels.
    """
    if platform != "linux":
        return []
    folders = _package_folders("nvidia") if folders is None else folders
    needs_cudnn = opens(b"cudnn") if needs_cudnn is None else needs_cudnn
    found = []
    for package, files in (CUBLAS | CUDNN if needs_cudnn else CUBLAS).items():
        for file in files:
            name = Path(file).name
            wheels = [str(path) for folder in folders if (path := folder / package / file).is_file()]
            found.append(_load_library(name, [*wheels, name], open_library))
    return found


def _load_library(name: str, candidates: Sequence[str], open_library: Callable[[str], object]) -> Library:
    problem = ""
    for candidate in candidates:
        try:
            open_library(candidate)
        except OSError as failure:
            problem = problem or str(failure)
        else:
            return Library(name, candidate)
    return Library(name, None, problem)


def opens(library: bytes, binaries: Sequence[Path] | None = None) -> bool:
    """Return whether the installed CTranslate2 opens a library: its binary contains the names of those it opens.

    It is asked for cuDNN, which is 1 GB; later versions do without it.
    """
    if binaries is None:
        folders = _package_folders("ctranslate2")
        binaries = [file for folder in folders for file in folder.glob("../ctranslate2.libs/libctranslate2*")]
    for binary in binaries:
        with binary.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(library) >= 0:
                return True
    return False


def return_free_memory(*, platform: str = sys.platform) -> None:
    """Give memory that was freed back to the system. Linux's C library keeps it otherwise: 110 MB of a base model."""
    if platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _package_folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
