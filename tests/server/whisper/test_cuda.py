"""CUDA's libraries: found in the wheels, loaded by full path, and only those that CTranslate2 asks for."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from localwhisper_server.whisper import cuda, devices, engine

LINUX = ("libcublasLt.so.12", "libcublas.so.12")


def wheels(folder: Path, *files: str) -> Path:
    """Lay out site-packages/nvidia as the wheels do."""
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


class Loader:
    """Stands for ctypes.CDLL: knows some names, remembers what it was asked for."""

    def __init__(self, *system: str) -> None:
        self.system = system
        self.opened: list[str] = []

    def __call__(self, name: str) -> None:
        """Load, or raise as the real one does."""
        self.opened.append(name)
        if not Path(name).is_absolute() and name not in self.system:
            raise OSError(f"{name}: cannot open shared object file")


def test_wheels_are_loaded_by_full_path_and_in_order(tmp_path):
    """CuBLAS needs cuBLASLt, so that comes first; the system's loader is not asked."""
    folder = wheels(tmp_path, "cublas/lib/libcublas.so.12", "cublas/lib/libcublasLt.so.12")
    loader = Loader()
    found = cuda.load_libraries(platform="linux", folders=[folder], needs_cudnn=False, open_library=loader)
    assert loader.opened == [str(folder / "cublas/lib" / name) for name in LINUX]
    assert [(library.name, library.path) for library in found] == list(zip(LINUX, loader.opened, strict=True))


def test_cudnn_is_loaded_only_where_it_is_asked_for(tmp_path):
    """Only for a CTranslate2 that needs it, since it is 1 GB; its parts come before the whole."""
    load = {"platform": "linux", "folders": [], "open_library": Loader()}
    assert not [one for one in cuda.load_libraries(needs_cudnn=False, **load) if "cudnn" in one.name]
    names = [one.name for one in cuda.load_libraries(needs_cudnn=True, **load)]
    assert "libnvrtc.so.12" in names
    assert names[-1] == "libcudnn.so.9"


def test_the_system_is_asked_where_there_is_no_wheel():
    """It finds a CUDA toolkit that an administrator has installed."""
    found = cuda.load_libraries(platform="linux", folders=[], needs_cudnn=False, open_library=Loader(*LINUX))
    assert [library.path for library in found] == list(LINUX)


def test_a_missing_library_is_no_error():
    """A machine without CUDA starts; `doctor` shows the loader's message."""
    found = cuda.load_libraries(platform="linux", folders=[], needs_cudnn=False, open_library=Loader())
    assert [library.path for library in found] == [None, None]
    assert found[1].problem == "libcublas.so.12: cannot open shared object file"


def test_a_damaged_wheel_gives_way_to_the_system(tmp_path):
    """If the system finds the library, the damaged file does not matter."""
    folder = wheels(tmp_path, "cublas/lib/libcublas.so.12", "cublas/lib/libcublasLt.so.12")

    def refuse_wheels(name: str) -> None:
        if Path(name).is_absolute():
            raise OSError(f"{name}: file too short")

    found = cuda.load_libraries(platform="linux", folders=[folder], needs_cudnn=False, open_library=refuse_wheels)
    assert [library.path for library in found] == list(LINUX)


def test_a_mac_has_no_cuda():
    """Nothing is loaded there."""
    assert cuda.load_libraries(platform="darwin", open_library=Loader()) == []


@pytest.mark.parametrize(("content", "asks"), [(b"..libcublas.so.12\0libcudnn.so.9\0", True), (b"libcublas", False)])
def test_the_binary_is_asked_what_it_opens(tmp_path, content, asks):
    """Without a table of versions: the binary contains the names of the libraries it opens."""
    binary = tmp_path / "libctranslate2.so"
    binary.write_bytes(content)
    assert cuda.asks_for_cudnn([binary]) is asks


def test_the_installed_ctranslate2_asks_for_the_cublas_that_is_pinned():
    """The extra `[cuda]` has the version that CTranslate2's binary names; one for CUDA 13 would fail here."""
    if sys.platform != "linux":
        pytest.skip("the binary is looked at on Linux, where the wheels are built with CUDA")
    binaries = cuda.ctranslate2_binaries()
    assert binaries
    assert any(cuda.contains(binary, b"libcublas.so.12\0") for binary in binaries)


def test_loading_without_wheels_or_cuda_is_quiet():
    """The real loader on this machine, whatever is installed."""
    assert all(library.path or library.problem for library in cuda.load_libraries())


@pytest.mark.parametrize(("device", "steps"), [("cuda", ["libraries", "model"]), ("cpu", ["model"])])
def test_the_engine_loads_them_before_the_model(tmp_path, device, steps):
    """CTranslate2 needs them on a GPU alone."""
    taken: list[str] = []

    def load_model(*_args, **_options):
        taken.append("model")
        raise RuntimeError("far enough")

    with pytest.raises(RuntimeError, match="far enough"):
        engine.Engine(
            tmp_path,
            devices.Device(device, "float32", "as set"),
            load_model=load_model,
            load_libraries=lambda: taken.append("libraries"),
        )
    assert taken == steps


def test_counting_devices_needs_no_driver():
    """Without a GPU there are no devices and no precisions, and no error."""
    assert cuda.device_count() >= 0
    assert bool(cuda.cuda_compute_types()) == bool(cuda.device_count())


REAL = """
import ctypes, json, sys
from localwhisper_server.whisper import cuda
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
loaded = cuda.load_libraries(needs_cudnn=True)
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
def test_the_wheels_really_load_without_a_gpu():
    """Once loaded by path, they are found by the bare names that CTranslate2 uses, with no LD_LIBRARY_PATH."""
    finished = subprocess.run(
        [sys.executable, "-c", REAL], env={}, check=True, capture_output=True, text=True, timeout=120
    )
    result = json.loads(finished.stdout)
    assert result["before"] == []
    assert result["lost"] == []
    assert result["after"] == result["names"]
    assert result["mapped"]
    assert all("/nvidia/cublas/lib/" in path for path in result["mapped"])
