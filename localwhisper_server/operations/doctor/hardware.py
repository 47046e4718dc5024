"""What `doctor` says of Python, the GPU and its libraries, and the model. Pure: facts in, findings out.

Sources: NVIDIA's table of minimum drivers (CUDA 12 needs 525, https://docs.nvidia.com/deploy/cuda-compatibility), its
guide to Blackwell (compute capability 12 needs CUDA 12.8 and driver 570), and CTranslate2's binaries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from localwhisper_server.operations.doctor.machine import Machine, Output
from localwhisper_server.operations.doctor.report import Finding, fault, ok, warning
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
# Whisper's activations and the beams of a batch, beside the weights.
WORKING_BYTES = GIB
INSTALL_CUDA = "pip install 'localwhisper-lan[cuda]'"


@dataclass(frozen=True, slots=True)
class Gpu:
    """What nvidia-smi says of the first card; memory in bytes."""

    name: str
    driver: str
    capability: float
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything the checks look at. `answer` is what doctor_probe printed, None if it ended without a word."""

    machine: Machine
    settings: Settings
    gpu: Gpu | None
    smi: str | None
    smi_output: Output | None
    answer: dict[str, Any] | None
    probe_output: Output

    @property
    def wsl(self) -> bool:
        """Whether this is Linux under Windows."""
        return is_wsl(self.machine)

    @property
    def cuda_devices(self) -> int:
        """How many devices CTranslate2 sees."""
        return int((self.answer or {}).get("cuda_devices", 0))


def is_wsl(machine: Machine) -> bool:
    """Return whether a machine is Linux under Windows."""
    return machine.platform == "linux" and "microsoft" in (machine.read("/proc/version") or "").lower()


def survey(machine: Machine, settings: Settings) -> Survey:
    """Ask the slow questions once."""
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


def check_python(seen: Survey) -> Iterable[Finding]:
    """Judge Python's version and build, and the C library that the wheels are built for."""
    machine = seen.machine
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


def check_engine(seen: Survey) -> Iterable[Finding]:
    """Say whether the server's parts are installed and can be loaded at all."""
    versions = {name: seen.machine.version(name) for name in ("localwhisper-lan", "ctranslate2", "faster-whisper")}
    missing = [name for name, version in versions.items() if version is None]
    described = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    if missing:
        yield fault("Engine", f"not installed: {', '.join(missing)}", "pip install 'localwhisper-lan[server]'")
    elif seen.answer is None:
        end = seen.probe_output
        how = (
            "hung while it asked the driver for devices"
            if end.status is None
            else f"ended with status {end.status}: {_last_line(end.text)}"
        )
        yield fault(
            "Engine",
            f"CTranslate2 {how}",
            "Restart the machine (in WSL: 'wsl --shutdown' in Windows); if it stays, update the graphics driver.",
            "Until then the CPU does it: localwhisper-server --device cpu",
        )
    elif "error" in seen.answer:
        yield fault(
            "Engine",
            f"cannot be loaded: {seen.answer['error']}",
            "pip install --upgrade --force-reinstall 'localwhisper-lan[server]'",
        )
    else:
        yield ok("Engine", described)


def check_gpu(seen: Survey) -> Iterable[Finding]:
    """Judge the card and its driver, as nvidia-smi sees them."""
    if seen.settings.device == "cpu":
        yield ok("GPU", "not used, with --device cpu")
        return
    if seen.gpu is None:
        yield _no_gpu(seen)
        return
    gpu = seen.gpu
    found = "" if seen.machine.which("nvidia-smi") else f" (by {seen.smi}, which is not in PATH; that does no harm)"
    described = f"{gpu.name}, {gpu.total / GIB:.0f} GB, driver {gpu.driver}{found}"
    driver = _numbers(gpu.driver)[0]
    needed = BLACKWELL_DRIVER if gpu.capability >= BLACKWELL else MIN_DRIVER
    if driver < needed:
        yield fault("GPU", f"{described}: needs driver {needed} or later", *_update_driver(seen))
    else:
        yield ok("GPU", described)


def _no_gpu(seen: Survey) -> Finding:
    machine, output = seen.machine, seen.smi_output
    wanted = fault if seen.settings.device == "cuda" else warning
    if output is not None:
        said = "did not answer" if output.status is None else f"says: {_last_line(output.text)}"
        return fault("GPU", f"{seen.smi} {said}", *_update_driver(seen))
    if seen.wsl:
        return wanted(
            "GPU",
            "WSL shows no NVIDIA GPU (nvidia-smi is neither in PATH nor under /usr/lib/wsl)",
            "If the PC has one: install NVIDIA's driver in Windows, never in WSL, then in PowerShell:",
            "    wsl --update",
            "    wsl --shutdown",
        )
    if any((machine.read(path) or "").strip() == NVIDIA_VENDOR for path in machine.find(NVIDIA_PCI)):
        return wanted(
            "GPU",
            "an NVIDIA device is built in, but has no driver",
            "On Ubuntu: sudo ubuntu-drivers install, then restart the machine.",
        )
    if seen.settings.device == "cuda":
        return fault("GPU", "none, and --device cuda asks for one", "localwhisper-server --device auto")
    return ok("GPU", "none; the model runs on the CPU")


def _update_driver(seen: Survey) -> tuple[str, ...]:
    if seen.wsl or seen.machine.platform == "win32":
        return (
            "Install the latest driver in Windows: https://www.nvidia.com/drivers",
            "then in PowerShell: wsl --update, and wsl --shutdown",
        )
    return (
        "Restart the machine if the driver was just updated; else install a newer one:",
        "    sudo ubuntu-drivers install",
    )


def check_device(seen: Survey) -> Iterable[Finding]:
    """Say where the model would run, and whether that is where it should."""
    if seen.answer is None or "error" in seen.answer:
        return
    if seen.cuda_devices or seen.settings.device == "cpu":
        yield ok("Device", f"{seen.answer['device']}; CTranslate2 sees {seen.cuda_devices} CUDA device(s)")
        return
    if seen.gpu is not None:
        yield fault("Device", "nvidia-smi sees a GPU, but CTranslate2 does not", *_why_unseen(seen))
    elif seen.settings.device == "cuda":
        yield fault("Device", "--device cuda is set, but CTranslate2 sees no CUDA device", "Mend the GPU first, above.")
    else:
        yield ok("Device", "cpu")


def _why_unseen(seen: Survey) -> tuple[str, ...]:
    machine = seen.machine
    visible = machine.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (f"CUDA_VISIBLE_DEVICES is set to '{visible}': unset it, or set it to 0.",)
    if machine.architecture in {"aarch64", "arm64"}:
        return ("CTranslate2's packages for ARM are built without CUDA; build it from source, or use the CPU.",)
    if seen.wsl and not machine.find("/usr/lib/wsl/lib/libcuda.so*"):
        return ("/usr/lib/wsl/lib/libcuda.so.1 is missing. In PowerShell: wsl --update, and wsl --shutdown",)
    if seen.wsl:
        return (
            "A Linux driver inside WSL hides the one that Windows brings. Remove it:",
            "    sudo apt purge 'nvidia-driver-*' 'libnvidia-compute-*'",
        )
    return ("In a container, it needs '--gpus all' and the NVIDIA container toolkit; else restart the machine.",)


def check_libraries(seen: Survey) -> Iterable[Finding]:
    """Say which of CUDA's libraries are needed, and where they were found. The CUDA toolkit itself is not needed."""
    if seen.answer is None or "error" in seen.answer:
        return
    if seen.settings.device == "cpu" or not (seen.cuda_devices or seen.gpu):
        yield ok("CUDA", "its libraries are not needed on the CPU")
        return
    libraries = seen.answer["libraries"]
    for title, part, wanted in (("cuBLAS", "cublas", True), ("cuDNN", "cudnn", seen.answer["needs_cudnn"])):
        if not wanted:
            yield ok(title, f"not needed by CTranslate2 {seen.machine.version('ctranslate2')}")
            continue
        mine = [library for library in libraries if part in library["name"]]
        lost = [library for library in mine if library["path"] is None]
        if lost or not mine:
            problem = lost[0]["problem"] if lost else f"CTranslate2 has no CUDA on {seen.machine.platform}"
            yield fault(title, problem, INSTALL_CUDA)
        elif part == "cublas" and _cublas_too_old(seen):
            version = seen.machine.version("nvidia-cublas-cu12")
            yield fault(
                title,
                f"{version} is too old for this card, which needs {_dotted(BLACKWELL_CUBLAS)}",
                f"pip install --upgrade 'nvidia-cublas-cu12>={_dotted(BLACKWELL_CUBLAS)},<13'",
            )
        else:
            yield ok(title, f"{seen.machine.version(f'nvidia-{part}-cu12') or ''} from {mine[-1]['path']}".strip())


def _cublas_too_old(seen: Survey) -> bool:
    version = seen.machine.version("nvidia-cublas-cu12")
    return bool(version and seen.gpu and seen.gpu.capability >= BLACKWELL and _numbers(version) < BLACKWELL_CUBLAS)


def check_precision(seen: Survey) -> Iterable[Finding]:
    """Say whether the device can compute in the chosen precision."""
    if seen.answer is None or "error" in seen.answer:
        return
    if seen.answer["device"] == "cuda" and not seen.cuda_devices:
        return  # said by check_device; the precisions known are another device's
    chosen, possible = seen.answer["compute_type"], seen.answer["compute_types"]
    if chosen not in possible:
        better = next((precision for precision in PRECISIONS if precision in possible), "auto")
        yield fault(
            "Precision",
            f"{chosen} does not run on this device; it can do {', '.join(possible)}",
            f"localwhisper-server --compute-type {better}",
        )
    elif (
        seen.gpu and seen.answer["device"] == "cuda" and seen.gpu.capability >= BLACKWELL and chosen.startswith("int8")
    ):
        yield warning(
            "Precision",
            f"{chosen}: some versions of CTranslate2 fail with it on an RTX 50 (CUBLAS_STATUS_NOT_SUPPORTED)",
            "If so: localwhisper-server --compute-type float16",
        )
    else:
        yield ok("Precision", f"{chosen} (this device can do {', '.join(possible)})")


def check_model(seen: Survey) -> Iterable[Finding]:
    """Say whether the model's weights are here, and whether they fit the card."""
    if seen.answer is None or "error" in seen.answer:
        return
    answer = seen.answer
    if answer["folder"]:
        yield ok("Model", f"{answer['model']}, {answer['model_bytes'] / GIB:.1f} GB, in {answer['folder']}")
        yield from _memory(seen)
    elif answer["downloadable"] and seen.machine.environ.get("HF_HUB_OFFLINE", "0") in {"", "0"}:
        free = seen.machine.free_bytes(seen.machine.environ.get("HF_HOME") or "~")
        room = f"; {free / GIB:.0f} GB are free here" if free is not None else ""
        yield warning(
            "Model",
            f"{answer['model']} is not here yet; the first start downloads it (up to 3 GB{room})",
            "Without a way to the internet: pip install 'localwhisper-lan[offline]' and --model base",
        )
    else:
        first, *rest = str(answer["model_problem"]).splitlines() or ["not found"]
        yield fault("Model", first, *(rest or ["Another one: localwhisper-server --model base"]))


def _memory(seen: Survey) -> Iterable[Finding]:
    answer, gpu = seen.answer or {}, seen.gpu
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
            f"{described}. Does a game run, or this server already?",
            "A smaller footprint: --model large-v3-turbo, or --compute-type int8_float16",
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
