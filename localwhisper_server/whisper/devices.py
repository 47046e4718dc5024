"""Where a model runs and in what precision: the choice, and its reason."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

# On a CPU a step of the decoder is too small to be shared by threads: one thread decodes a chunk faster than two do,
# and two decode two chunks in the time of one (BENCHMARKS.md). So there are two workers, each with half of the threads,
# and so many each at most.
CPU_WORKERS = 2
CPU_THREADS = 4
# What to take on a card, best first.
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
    """Settle "auto" into a device and a compute type; `cuda_types`: what the card runs, none where that is not known.

    float16 comes first because int8 fails on some cards (RTX 50 with cuBLAS before 12.8); cards older than Volta run
    it not at all or slowly, and do not offer it.
    """
    if device == "auto":
        name = "cuda" if cuda_devices else "cpu"
        reason = f"{cuda_devices} CUDA device(s) found" if cuda_devices else "no CUDA device found"
    else:
        name, reason = device, "as set"
    if compute_type == "auto":
        offered = [kind for kind in PRECISIONS if kind in cuda_types] or ["float16"]
        compute_type = offered[0] if name == "cuda" else "int8"
    return Device(name, compute_type, reason)


def smaller(device: Device, cuda_types: frozenset[str]) -> str | None:
    """Return the precision that takes about half of a card's memory; None where there is none, as on a CPU."""
    possible = device.name == "cuda" and device.compute_type != SMALLEST and SMALLEST in cuda_types
    return SMALLEST if possible else None


@dataclass(frozen=True, slots=True)
class Workers:
    """How many batches a model decodes side by side, with how many threads each; 0: as CTranslate2 likes."""

    count: int = 1
    threads: int = 0


ONE_WORKER = Workers()


def cores(quota: Path = CGROUP_QUOTA) -> int:
    """Count the cores this process may use; a container's share of them (`docker run --cpus 2`) is in `quota`."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = map(int, quota.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # another system, or "max", which is no limit
        return count
    return max(1, min(count, math.ceil(microseconds / period)))


def workers(device: str, threads: int, *, cores: int) -> Workers:
    """Return a model's workers, with so many threads in all; 0 fits the cores."""
    if device != "cpu":
        return Workers(1, threads)
    wanted = threads or min(cores, CPU_WORKERS * CPU_THREADS)
    count = min(CPU_WORKERS, wanted)
    return Workers(count, wanted // count)
