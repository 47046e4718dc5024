from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from localwhisper_server.whisper import devices
from localwhisper_server.whisper.devices import SMALLEST, Device, Workers
from localwhisper_server.whisper.engine import Engine


@pytest.mark.parametrize(
    ("device", "compute_type", "count", "chosen"),
    [
        ("auto", "auto", 0, Device("cpu", "int8", "no CUDA device found")),
        ("auto", "auto", 1, Device("cuda", "float16", "1 CUDA device(s) found")),
        ("auto", "auto", 2, Device("cuda", "float16", "2 CUDA device(s) found")),
        ("auto", "int8_float16", 1, Device("cuda", "int8_float16", "1 CUDA device(s) found")),
        ("auto", "float32", 0, Device("cpu", "float32", "no CUDA device found")),
        ("cpu", "auto", 1, Device("cpu", "int8", "as set")),
        ("cpu", "float32", 0, Device("cpu", "float32", "as set")),
        ("cuda", "auto", 0, Device("cuda", "float16", "as set")),
        ("cuda", "int8", 1, Device("cuda", "int8", "as set")),
    ],
)
def test_device_table(device: str, compute_type: str, count: int, chosen: Device) -> None:
    """What is set is kept; "auto" depends on the driver, and the reason says so."""
    assert devices.choose_device(device, compute_type, cuda_devices=count, cuda_types=frozenset()) == chosen


@pytest.mark.parametrize(
    ("device", "threads", "cores", "chosen"),
    [
        ("cpu", 0, 1, Workers(1, 1)),
        ("cpu", 0, 2, Workers(2, 1)),
        ("cpu", 0, 6, Workers(2, 3)),
        ("cpu", 0, 64, Workers(2, 4)),
        ("cpu", 1, 8, Workers(1, 1)),
        ("cpu", 12, 4, Workers(2, 6)),
        ("cuda", 0, 8, Workers(2, 0)),
    ],
)
def test_there_are_two_workers(device: str, threads: int, cores: int, chosen: Workers) -> None:
    """With half of the threads each. So may a card, which needs no threads."""
    assert devices.choose_workers(device, threads, cores=cores) == chosen


@pytest.mark.parametrize(
    ("written", "most"),
    [("100000 100000", 1), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", None), ("", None), ("9 9 9", None)],
)
def test_a_container_has_its_share_of_the_cores(tmp_path: Path, written: str, most: int | None) -> None:
    """More threads than cores would slow each other down; part of a core counts as one."""
    quota = tmp_path / "cpu.max"
    whole = devices.usable_cores(quota)
    quota.write_text(written)
    assert devices.usable_cores(quota) == (whole if most is None else min(whole, most))


@pytest.mark.parametrize(
    ("device", "compute_type", "types", "smaller"),
    [
        ("cuda", "float16", {SMALLEST}, SMALLEST),
        ("cuda", "float16", {"float16"}, None),
        ("cuda", SMALLEST, {SMALLEST}, None),
        ("cpu", "int8", {SMALLEST}, None),
    ],
)
def test_the_precision_for_want_of_memory(device: str, compute_type: str, types: set[str], smaller: str | None) -> None:
    """Only on a card that can run it, and only if it is smaller."""
    assert devices.smaller_precision(Device(device, compute_type, ""), frozenset(types)) == smaller


def test_counting_devices_needs_no_driver() -> None:
    """Without a GPU there are no devices and no precisions, and no error; nor do missing libraries raise one."""
    assert devices.device_count() >= 0
    assert bool(devices.cuda_compute_types()) == bool(devices.device_count())
    assert all(library.path or library.problem for library in devices.load_libraries())


# CUDA's libraries

CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")  # cuBLAS needs cuBLASLt, so that comes first


class Loader:
    """Stands for ctypes.CDLL: it opens the wheels' files, unless they are damaged, and knows some names."""

    def __init__(self, *names: str, damaged: bool = False) -> None:
        self.names, self.damaged = names, damaged

    def __call__(self, name: str) -> None:
        """Load, or raise as the real one does."""
        if self.damaged if Path(name).is_absolute() else name not in self.names:
            raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("has_wheel", "loader", "places"),
    [
        (True, Loader(*CUBLAS), ["wheel", "wheel"]),
        (True, Loader(*CUBLAS, damaged=True), ["system", "system"]),
        (False, Loader(*CUBLAS), ["system", "system"]),  # a CUDA toolkit that an administrator has installed
        (False, Loader(), [None, None]),  # no error: `doctor` shows the loader's message
    ],
    ids=["wheels", "damaged wheels", "the system's", "none"],
)
def test_libraries_are_loaded_from_wheels_or_else_by_name(
    tmp_path: Path, loader: Loader, places: list[str | None], *, has_wheel: bool
) -> None:
    """By full path from the wheels, in an order in which each finds those that it needs."""
    for name in CUBLAS if has_wheel else ():
        (tmp_path / "cublas/lib").mkdir(parents=True, exist_ok=True)
        (tmp_path / "cublas/lib" / name).touch()
    found = devices.load_libraries(platform="linux", folders=[tmp_path], needs_cudnn=False, open_library=loader)
    paths = {"wheel": f"{tmp_path}/cublas/lib/", "system": ""}
    assert [(one.name, one.path) for one in found] == [
        (name, None if place is None else paths[place] + name) for name, place in zip(CUBLAS, places, strict=True)
    ]
    assert all("cannot open" in one.problem for one in found if one.path is None)


def test_cudnn_is_loaded_only_where_it_is_asked_for() -> None:
    """Only for a CTranslate2 that needs it, since it is 1 GB; its parts come before the whole. A Mac has no CUDA."""

    def names(platform: str) -> list[str]:
        found = devices.load_libraries(platform=platform, folders=[], needs_cudnn=True, open_library=Loader())
        return [one.name for one in found]

    first, second, nvrtc, *cudnn = names("linux")
    assert (first, second, nvrtc, cudnn[-1]) == (*CUBLAS, "libnvrtc.so.12", "libcudnn.so.9")
    assert names("darwin") == []


def test_the_binary_is_asked_what_it_opens(tmp_path: Path) -> None:
    """Without a table of versions: the binary contains the names of the libraries it opens."""
    binary = tmp_path / "libctranslate2.so"
    binary.write_bytes(b"..libcublas.so.12\0")
    assert devices.opens(b"cublas", [binary])
    assert not devices.opens(b"cudnn", [binary])


@pytest.mark.skipif(sys.platform != "linux", reason="wheels are built with CUDA for Linux")
def test_the_installed_ctranslate2_asks_for_the_cublas_that_is_pinned() -> None:
    """The extra `[cuda]` has the version that CTranslate2's binary names; one for CUDA 13 would fail here."""
    assert devices.opens(b"libcublas.so.12\0")


@pytest.mark.parametrize(("device", "steps"), [("cuda", ["libraries", "model"]), ("cpu", ["model"])])
def test_the_engine_loads_them_before_the_model(tmp_path: Path, device: str, steps: list[str]) -> None:
    """CTranslate2 needs them on a GPU alone."""
    taken: list[str] = []

    def load_model(*_args: object, **_options: object) -> None:
        taken.append("model")
        raise RuntimeError("far enough")

    with pytest.raises(RuntimeError, match="far enough"):
        Engine(
            tmp_path,
            Device(device, "float32", "as set"),
            load_model=load_model,
            load_libraries=lambda: taken.append("libraries"),
        )
    assert taken == steps


REAL = """
import ctypes, json
from localwhisper_server.whisper import devices
names = ["libcublasLt.so.12", "libcublas.so.12", "libcudnn.so.9", "libcudnn_ops.so.9"]
def found_by_name():
    found = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        found.append(name)
    return found
before = found_by_name()
loaded = devices.load_libraries(needs_cudnn=True)
print(json.dumps({
    "before": before, "after": found_by_name(), "names": names,
    "lost": [library.problem for library in loaded if library.path is None],
    "mapped": [line.split()[-1] for line in open("/proc/self/maps") if "libcublas.so" in line],
}))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or importlib.util.find_spec("nvidia") is None,
    reason="needs Linux and the wheels of the extra [cuda] (2 GB): pip install '.[server,cuda]'",
)
def test_the_wheels_really_load_without_a_gpu() -> None:
    """Once loaded by path, they are found by the bare names that CTranslate2 uses, with no LD_LIBRARY_PATH."""
    finished = subprocess.run(
        [sys.executable, "-c", REAL], env={}, check=True, capture_output=True, text=True, timeout=120
    )
    result = json.loads(finished.stdout)
    assert (result["before"], result["lost"], result["after"]) == ([], [], result["names"])
    assert result["mapped"]
    assert all("/nvidia/cublas/lib/" in path for path in result["mapped"])
