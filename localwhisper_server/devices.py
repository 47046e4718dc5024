"""Where a model runs and in what precision: the choice, and its reason. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """Where and in what precision a model runs, and why."""

    name: str
    compute_type: str
    reason: str


def choose_device(device: str, compute_type: str, *, cuda_devices: int) -> Device:
    """Settle "auto" into a device and a compute type.

    float16 is CUDA's default because int8 fails on some cards (RTX 50 with cuBLAS before 12.8), float16 on none.
    """
    if device == "auto":
        name = "cuda" if cuda_devices else "cpu"
        reason = f"{cuda_devices} CUDA device(s) found" if cuda_devices else "no CUDA device found"
    else:
        name, reason = device, "as set"
    if compute_type == "auto":
        compute_type = "float16" if name == "cuda" else "int8"
    return Device(name, compute_type, reason)
