"""The checks of Python, the GPU and its libraries, and the model. Pure: facts in, findings out.

Sources: NVIDIA's table of minimum drivers (CUDA 12 needs 525, https://docs.nvidia.com/deploy/cuda-compatibility), its
guide to Blackwell (compute capability 12 needs CUDA 12.8 and driver 570), and CTranslate2's binaries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from localwhisper_client._version import install
from localwhisper_server.operations.doctor.machine import Machine, Output
from localwhisper_server.operations.doctor.report import Finding, fault, ok, warning
from localwhisper_server.operations.host import is_wsl
from localwhisper_server.settings import Settings
from localwhisper_server.whisper.devices import PRECISIONS

SMI_FIELDS = "name,driver_version,compute_cap,memory.total,memory.free"
SMI_PLACES = ("/usr/lib/wsl/lib/nvidia-smi", "/usr/lib/wsl/drivers/*/nvidia-smi")
NVIDIA_PCI = "/sys/bus/pci/devices/*/vendor"
NVIDIA_VENDOR = "0x10de"
MIN_PYTHON = (3, 11)
MIN_GLIBC = (2, 28)  # manylinux_2_28, which CTranslate2's wheels are built for
MIN_DRIVER = 525
BLACKWELL = 12.0  # compute capability of an RTX 50
BLACKWELL_DRIVER = 570
BLACKWELL_CUBLAS = (12, 8)
GIB = 1 << 30
MIB = 1 << 20
# For activations and the beams of a batch, in addition to the weights.
WORKING_BYTES = GIB
INSTALL_CUDA = install("cuda")


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first card, as nvidia-smi describes it; memory in bytes."""

    name: str
    driver: str
    capability: float
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The facts that the checks judge. `answer` is what `machine.inspect_engine` returned, None if its process died."""

    machine: Machine
    settings: Settings
    gpu: Gpu | None
    smi: str | None
    smi_output: Output | None
    answer: dict[str, Any] | None
    probe_output: Output

    @property
    def wsl(self) -> bool:
        """Whether this is WSL."""
        return is_wsl(self.machine.read)

    @property
    def cuda_devices(self) -> int:
        """How many CUDA devices CTranslate2 finds."""
        return int((self.answer or {}).get("cuda_devices", 0))


def make_survey(machine: Machine, settings: Settings) -> Survey:
    """Collect the facts that take time, once."""
    smi = machine.which("nvidia-smi") or next((path for place in SMI_PLACES for path in machine.find(place)), None)
    output = machine.run([smi, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]) if smi else None
    answer, ended = machine.probe(
        {
            "model": settings.model,
            "device": settings.device,
            "compute_type": settings.compute_type,
            "cache_dir": str(settings.cache_dir) if settings.cache_dir else None,
        }
    )
    return Survey(machine, settings, _first_gpu(output), smi, output, answer, ended)


def _first_gpu(output: Output | None) -> Gpu | None:
    if output is None or output.status != 0 or not output.text.strip():
        return None
    values = [value.strip() for value in output.text.strip().splitlines()[0].split(",")]
    try:
        name, driver, capability, total, free = values
        return Gpu(name, driver, float(capability), int(total) * MIB, int(free) * MIB)
    except ValueError:
        return None


def check(survey: Survey) -> Iterable[Finding]:
    """Make all checks of this module, each before those that depend on it."""
    for each in (
        check_python,
        check_engine,
        check_gpu,
        check_device,
        check_libraries,
        check_precision,
        check_model,
    ):
        yield from each(survey)


def check_python(survey: Survey) -> Iterable[Finding]:
    """Check the version of Python, and the C library that CTranslate2's wheels need."""
    machine = survey.machine
    version = ".".join(map(str, machine.python))
    library, number = machine.libc
    described = f"{version}, {machine.bits} bit, {machine.architecture}" + (f", {library} {number}" if library else "")
    if machine.python < MIN_PYTHON or machine.bits != 64:  # noqa: PLR2004 - as in "64 bit"
        yield fault("Python", described, "localwhisper needs a 64-bit Python 3.11 or later.")
    elif machine.platform == "linux" and library != "glibc":
        yield fault(
            "Python",
            f"{described}: this system has no glibc (Alpine?), and CTranslate2 is not built for any other",
            "Use Debian, Ubuntu or Fedora, or a container of one: python:3.12-slim.",
        )
    elif machine.platform == "linux" and _numbers(number) < MIN_GLIBC:
        yield fault(
            "Python",
            f"{described}: glibc is older than {_dotted(MIN_GLIBC)}, which CTranslate2 is built for",
            "Upgrade the system: Ubuntu 20.04, Debian 10 and later are new enough.",
        )
    else:
        yield ok("Python", described)


def check_engine(survey: Survey) -> Iterable[Finding]:
    """Check that the server's packages are installed and can be imported."""
    versions = {name: survey.machine.version(name) for name in ("localwhisper-lan", "ctranslate2", "faster-whisper")}
    missing = [name for name, version in versions.items() if version is None]
    described = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        yield fault("Engine", f"not installed: {', '.join(missing)}", install("server"))
    elif survey.answer is None:
        end = survey.probe_output
        how = (
            "hung while it asked the driver for devices"
            if end.status is None
            else f"ended with status {end.status}: {_last_line(end.text)}"
        )
        yield fault(
            "Engine",
            f"CTranslate2 {how}",
            "Restart the machine (for WSL: 'wsl --shutdown' in Windows). If that does not help, update the driver.",
            "Without the GPU: localwhisper-server --device cpu",
        )
    elif "error" in survey.answer:
        yield fault(
            "Engine",
            f"cannot be loaded: {survey.answer['error']}",
            install("server", "--upgrade", "--force-reinstall"),
        )
    else:
        yield ok("Engine", described)


def check_gpu(survey: Survey) -> Iterable[Finding]:
    """Check the card and its driver with nvidia-smi."""
    if survey.settings.device == "cpu":
        yield ok("GPU", "not used, with --device cpu")
        return
    if survey.gpu is None:
        yield _no_gpu(survey)
        return
    gpu = survey.gpu
    found = "" if survey.machine.which("nvidia-smi") else f" (by {survey.smi}, which is not in PATH and need not be)"
    described = f"{gpu.name}, {gpu.total / GIB:.0f} GB, driver {gpu.driver}{found}"
    driver = _numbers(gpu.driver)[0]
    needed = BLACKWELL_DRIVER if gpu.capability >= BLACKWELL else MIN_DRIVER
    if driver < needed:
        yield fault("GPU", f"{described}: needs driver {needed} or later", *_update_driver(survey))
    else:
        yield ok("GPU", described)


def _no_gpu(survey: Survey) -> Finding:
    machine, output = survey.machine, survey.smi_output
    wanted = fault if survey.settings.device == "cuda" else warning
    if output is not None:
        said = "did not answer" if output.status is None else f"says: {_last_line(output.text)}"
        return fault("GPU", f"{survey.smi} {said}", *_update_driver(survey))
    if survey.wsl:
        return wanted(
            "GPU",
            "WSL has no NVIDIA GPU (nvidia-smi is neither in PATH nor under /usr/lib/wsl)",
            "If the PC has one, install its driver in Windows: see docs/wsl2.md",
        )
    if any((machine.read(path) or "").strip() == NVIDIA_VENDOR for path in machine.find(NVIDIA_PCI)):
        return wanted(
            "GPU",
            "there is an NVIDIA device without a driver",
            "Install the driver: see docs/linux.md",
        )
    if survey.settings.device == "cuda":
        return fault("GPU", "none, and --device cuda asks for one", "localwhisper-server --device auto")
    return ok("GPU", "none; the model runs on the CPU")


def _update_driver(survey: Survey) -> tuple[str, ...]:
    if survey.wsl:
        return ("Update the driver in Windows, then in PowerShell 'wsl --update' and 'wsl --shutdown'.",)
    return ("If the driver was just updated, restart the machine; else install a newer one: see docs/linux.md",)


def check_device(survey: Survey) -> Iterable[Finding]:
    """Check that the model runs on the GPU if there is one."""
    if survey.answer is None or "error" in survey.answer:
        return
    if survey.cuda_devices or survey.settings.device == "cpu":
        yield ok("Device", f"{survey.answer['device']}; CTranslate2 sees {survey.cuda_devices} CUDA device(s)")
        return
    if survey.gpu is not None:
        yield fault("Device", "nvidia-smi sees a GPU, but CTranslate2 does not", *_why_unseen(survey))
    elif survey.settings.device == "cuda":
        yield fault("Device", "--device cuda is set, but CTranslate2 sees no CUDA device", "Fix the GPU first.")
    else:
        yield ok("Device", "cpu")


def _why_unseen(survey: Survey) -> tuple[str, ...]:
    machine = survey.machine
    visible = machine.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (f"CUDA_VISIBLE_DEVICES is set to '{visible}': unset it, or set it to 0.",)
    if machine.architecture in {"aarch64", "arm64"}:
        return ("CTranslate2's packages for ARM have no CUDA: build it from source, or use the CPU.",)
    if survey.wsl and not machine.find("/usr/lib/wsl/lib/libcuda.so*"):
        return ("/usr/lib/wsl/lib/libcuda.so.1 is missing. In PowerShell: wsl --update, and wsl --shutdown",)
    if survey.wsl:
        return (
            "A Linux driver in WSL hides the driver of Windows. Remove it:",
            "    sudo apt purge 'nvidia-driver-*' 'libnvidia-compute-*'",
        )
    return ("A container needs '--gpus all' and the NVIDIA Container Toolkit; otherwise restart the machine.",)


def check_libraries(survey: Survey) -> Iterable[Finding]:
    """Check for CUDA's libraries. The CUDA toolkit is not needed."""
    if survey.answer is None or "error" in survey.answer:
        return
    if survey.settings.device == "cpu" or not (survey.cuda_devices or survey.gpu):
        yield ok("CUDA", "not needed on the CPU")
        return
    libraries = survey.answer["libraries"]
    for title, part, wanted in (("cuBLAS", "cublas", True), ("cuDNN", "cudnn", survey.answer["needs_cudnn"])):
        if not wanted:
            yield ok(title, f"not needed by CTranslate2 {survey.machine.version('ctranslate2')}")
            continue
        mine = [library for library in libraries if part in library["name"]]
        lost = [library for library in mine if library["path"] is None]
        if lost or not mine:
            problem = lost[0]["problem"] if lost else f"CTranslate2 has no CUDA on {survey.machine.platform}"
            yield fault(title, problem, INSTALL_CUDA)
        elif part == "cublas" and _cublas_too_old(survey):
            version = survey.machine.version("nvidia-cublas-cu12")
            yield fault(
                title,
                f"{version} is too old for this card, which needs {_dotted(BLACKWELL_CUBLAS)}",
                f"pip install --upgrade 'nvidia-cublas-cu12>={_dotted(BLACKWELL_CUBLAS)},<13'",
            )
        else:
            yield ok(title, f"{survey.machine.version(f'nvidia-{part}-cu12') or ''} from {mine[-1]['path']}".strip())


def _cublas_too_old(survey: Survey) -> bool:
    version = survey.machine.version("nvidia-cublas-cu12")
    return bool(version and _is_blackwell(survey) and _numbers(version) < BLACKWELL_CUBLAS)


def _is_blackwell(survey: Survey) -> bool:
    return survey.gpu is not None and survey.gpu.capability >= BLACKWELL


def check_precision(survey: Survey) -> Iterable[Finding]:
    """Check that the device can compute in the chosen precision."""
    if survey.answer is None or "error" in survey.answer:
        return
    if survey.answer["device"] == "cuda" and not survey.cuda_devices:
        return  # check_device reports it; `compute_types` are the CPU's
    chosen, possible = survey.answer["compute_type"], survey.answer["compute_types"]
    if chosen not in possible:
        better = next((precision for precision in PRECISIONS if precision in possible), "auto")
        yield fault(
            "Precision",
            f"{chosen} does not run on this device; it can do {', '.join(possible)}",
            f"localwhisper-server --compute-type {better}",
        )
    elif survey.answer["device"] == "cuda" and chosen.startswith("int8") and _is_blackwell(survey):
        yield warning(
            "Precision",
            f"{chosen}: some versions of CTranslate2 fail with it on an RTX 50 (CUBLAS_STATUS_NOT_SUPPORTED)",
            "If so, use --compute-type float16: see docs/troubleshooting.md",
        )
    else:
        yield ok("Precision", f"{chosen} (this device can do {', '.join(possible)})")


def check_model(survey: Survey) -> Iterable[Finding]:
    """Check that the model is on this machine and fits into the memory of the card."""
    if survey.answer is None or "error" in survey.answer:
        return
    answer = survey.answer
    if answer["folder"]:
        yield ok("Model", f"{answer['model']}, {answer['model_bytes'] / GIB:.1f} GB, in {answer['folder']}")
        yield from _memory(survey)
    elif answer["downloadable"] and survey.machine.environ.get("HF_HUB_OFFLINE", "0") in {"", "0"}:
        free = survey.machine.free_bytes(survey.machine.environ.get("HF_HOME") or "~")
        room = f"; {free / GIB:.0f} GB are free here" if free is not None else ""
        yield warning(
            "Model",
            f"{answer['model']} is not downloaded yet; the first start does it (up to 3 GB{room})",
            "Without internet: see docs/troubleshooting.md",
        )
    else:
        first, *rest = str(answer["model_problem"]).splitlines() or ["not found"]
        yield fault("Model", first, *(rest or ["Try another model: localwhisper-server --model base"]))


def _memory(survey: Survey) -> Iterable[Finding]:
    answer, gpu = survey.answer or {}, survey.gpu
    if gpu is None or answer["device"] != "cuda":
        return
    # Conversions hold float16; int8 halves it, float32 doubles it.
    precision = str(answer["compute_type"])
    factor = 0.5 if precision.startswith("int8") else 2.0 if precision == "float32" else 1.0
    needed = int(answer["model_bytes"] * factor) + WORKING_BYTES
    described = (
        f"{gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GB free, {answer['model']} needs about {needed / GIB:.1f}"
    )
    if gpu.free < needed:
        yield warning(
            "GPU memory",
            f"{described}. Does a game or this server run already?",
            "For a model that needs less, see docs/troubleshooting.md",
        )
    else:
        yield ok("GPU memory", described)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) or (0,)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing"
