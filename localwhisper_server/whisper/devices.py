"""On which device a model runs, in what precision and with how many threads. Imports no CTranslate2, for `doctor`."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

# A step of the decoder is too small to be shared by a CPU's threads: one thread decodes a chunk faster than two do, and
# two decode two chunks in the same time (BENCHMARKS.md). So there are two workers with half of the threads each, up to
# this many.
CPU_WORKERS = 2
THREADS_PER_CPU_WORKER = 4
# Best first. int8 fails on some cards (RTX 50 with cuBLAS before 12.8), so float16 comes first; cards older than Volta
# run float16 slowly or not at all, and do not list it.
PRECISIONS = ("float16", "int8_float16", "bfloat16", "int8_float32", "int8", "float32")
SMALLEST = "int8_float16"
# Microseconds of processor time in each period of so many (Linux, Documentation/admin-guide/cgroup-v2.rst).
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Device:
    """Where and in what precision a model runs, and why."""

    name: str
    compute_type: str
    reason: str


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
    """Return a model's workers, with so many threads in all; 0 for as many as suit the cores."""
    if device != "cpu":
        return Workers(1, threads)
    threads = threads or min(cores, CPU_WORKERS * THREADS_PER_CPU_WORKER)
    count = min(CPU_WORKERS, threads)
    return Workers(count, threads // count)
