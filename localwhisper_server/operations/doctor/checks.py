"""The doctor's checks: each is a function of the facts that returns one line of the report.

Sources: NVIDIA's table of minimum drivers (CUDA 12 needs 525, https://docs.nvidia.com/deploy/cuda-compatibility), its
guide to Blackwell (compute capability 12 needs CUDA 12.8 and driver 570), and Microsoft's page on WSL networking
(https://learn.microsoft.com/windows/wsl/networking).
"""

import contextlib
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from localwhisper_server.operations.doctor.machine import Machine, Output
from localwhisper_server.operations.host import is_wsl, server_url
from localwhisper_server.operations.mdns import reachable_at
from localwhisper_server.settings import Settings

SMI_FIELDS = "name,driver_version,compute_cap,memory.total,memory.free"
SMI_PLACES = ("/usr/lib/wsl/lib/nvidia-smi", "/usr/lib/wsl/drivers/*/nvidia-smi")
MIN_DRIVER = 525
BLACKWELL = 12.0  # compute capability of an RTX 50
BLACKWELL_DRIVER = 570
GIB = 1 << 30
MIB = 1 << 20
# For activations and the beams of a batch, in addition to the weights.
WORKING_BYTES = GIB
# The addresses of WSL's NAT and of Docker's bridges; few home networks use this range.
VIRTUAL = ipaddress.ip_network("172.16.0.0/12")
RULE = "localwhisper"  # its name in Windows' firewall
DAY = 24 * 3600.0

LINUX = "docs/linux.md"
WSL = "docs/wsl2.md"
TROUBLE = "docs/troubleshooting.md"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report: what was checked, its state, and, unless it is ok, the page that says how to fix it."""

    name: str
    status: Literal["ok", "warning", "fault"]
    message: str
    page: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first card, as nvidia-smi describes it; memory in bytes, `driver` is the version's first number."""

    name: str
    driver: int
    capability: float
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the checks judge.

    `smi` is what nvidia-smi printed, None if there is none. `engine` is what `machine.inspect_engine` found out; if it
    is empty, `failure` says why.
    """

    machine: Machine
    settings: Settings
    smi: Output | None
    gpu: Gpu | None
    engine: dict[str, Any]
    failure: str

    @property
    def wsl(self) -> bool:
        """Whether this is WSL."""
        return is_wsl(self.machine.read)

    @property
    def wsl_mode(self) -> str:
        """The network of WSL: nat, mirrored, none or virtioproxy; by the addresses if WSL is too old to say."""
        output = self.machine.run(["wslinfo", "--networking-mode"])
        if output is not None and output.status == 0 and output.text.strip():
            return output.text.strip().lower()
        return "nat" if any(map(_is_virtual, self.machine.addresses)) else "mirrored"

    @property
    def on_gpu(self) -> bool:
        """Whether the model would run on a GPU that CTranslate2 sees."""
        return bool(self.engine["device"] == "cuda" and self.engine["cuda_devices"])

    @property
    def hosts(self) -> list[str]:
        """The addresses at which other machines reach the server, those of virtual bridges last."""
        try:
            return sorted(reachable_at(self.settings.host, self.machine.addresses), key=_is_virtual)
        except ValueError:
            return [] if self.settings.host == "localhost" else [self.settings.host]

    def url(self, host: str) -> str:
        """Return the server's URL at a host, without /v1."""
        return server_url(host, self.settings.port, tls=self.settings.certfile is not None)

    @property
    def local_url(self) -> str:
        """The server's URL for programs on this machine."""
        return self.url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host))


def gather(machine: Machine, settings: Settings) -> Facts:
    """Collect the facts that take time, once."""
    query = (f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits")
    places = ["nvidia-smi", *(path for place in SMI_PLACES for path in machine.find(place))]
    output = next((output for place in places if (output := machine.run([place, *query]))), None)
    gpu = None
    with contextlib.suppress(ValueError):
        name, driver, capability, total, free = (output.text if output else "").strip().partition("\n")[0].split(", ")
        gpu = Gpu(name, int(driver.partition(".")[0]), float(capability), int(total) * MIB, int(free) * MIB)
    cache_dir = str(settings.cache_dir) if settings.cache_dir else None
    asked = {"model": list(settings.model), "device": settings.device, "compute_type": settings.compute_type}
    engine, ended = machine.inspect_engine(asked | {"cache_dir": cache_dir})
    failure = ""
    if engine is None:
        failure = "hung" if ended.status is None else f"ended with status {ended.status}: {ended.last_line}"
    elif "error" in engine:
        failure = f"cannot be loaded: {engine['error']}"
    return Facts(machine, settings, output, gpu, {} if failure else engine or {}, failure)


def check_engine(facts: Facts) -> Finding:
    """Check that CTranslate2 can be asked, in the versions that are installed."""
    machine = facts.machine
    if facts.failure:
        return Finding("Engine", "fault", f"CTranslate2 {facts.failure}", f"{TROUBLE}#ctranslate2-does-not-work")
    versions = ", ".join(f"{name} {version}" for name, version in facts.engine["versions"].items())
    return Finding("Engine", "ok", f"{versions}, Python {machine.python} on {machine.architecture}")


def check_gpu(facts: Facts) -> Finding:
    """Check the card and its driver with nvidia-smi."""
    page = f"{WSL}#1-windows-install-the-driver-and-wsl" if facts.wsl else f"{LINUX}#1-check-the-gpus-driver"
    machine, device, gpu = facts.machine, facts.settings.device, facts.gpu
    if device == "cpu":
        return Finding("GPU", "ok", "not used, with --device cpu")
    if gpu is not None:
        described = f"{gpu.name}, {gpu.total / GIB:.0f} GB, driver {gpu.driver}"
        needed = BLACKWELL_DRIVER if gpu.capability >= BLACKWELL else MIN_DRIVER
        if gpu.driver < needed:
            return Finding("GPU", "fault", f"{described}: needs driver {needed} or later", page)
        return Finding("GPU", "ok", described)
    if facts.smi is not None:
        said = "did not answer" if facts.smi.status is None else f"says: {facts.smi.last_line}"
        return Finding("GPU", "fault", f"nvidia-smi {said}", page)
    vendors = [(machine.read(path) or "").strip() for path in machine.find("/sys/bus/pci/devices/*/vendor")]
    card = facts.wsl or "0x10de" in vendors  # NVIDIA's number
    if card or device == "cuda":
        return Finding("GPU", "fault" if device == "cuda" else "warning", "no NVIDIA driver was found", page)
    return Finding("GPU", "ok", "none; the model runs on the CPU")


def check_device(facts: Facts) -> Finding:
    """Check that the model runs on the GPU if there is one, in a precision that it can do."""
    engine, device = facts.engine, facts.engine["device"]
    wanted = device == "cuda" or (facts.gpu is not None and facts.settings.device != "cpu")
    if wanted and not facts.on_gpu:
        visible = facts.machine.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is set to '{visible}'"
        page = f"{TROUBLE}#ctranslate2-sees-no-cuda-device"
        return Finding("Device", "fault", f"CTranslate2 sees no CUDA device{hidden}", page)
    chosen, possible = engine["compute_type"], engine["compute_types"]
    described = f"{chosen} on {device}, which can do {', '.join(possible)}"
    if chosen not in possible:
        return Finding("Device", "fault", described, f"{TROUBLE}#the-device-cannot-do-this-precision")
    return Finding("Device", "ok", described)


def check_libraries(facts: Facts) -> Finding | None:
    """Check for CUDA's libraries. The CUDA toolkit is not needed."""
    if not facts.on_gpu:
        return None
    libraries = facts.engine["libraries"]
    problems = [library["problem"] for library in libraries if library["path"] is None]
    if problems:
        return Finding("CUDA", "fault", problems[0], f"{TROUBLE}#library-libcublasso12-is-not-found-or-libcudnn")
    return Finding("CUDA", "ok", ", ".join(library["path"] for library in libraries))


def check_models(facts: Facts) -> Finding:
    """Check each model; of several findings, return one of the worst, or all of them as one if all are ok."""
    found = [_check_model(facts, model) for model in facts.engine["models"]]
    worst = max(found, key=lambda finding: ("ok", "warning", "fault").index(finding.status))
    return Finding("Model", "ok", "; ".join(each.message for each in found)) if worst.status == "ok" else worst


def _check_model(facts: Facts, model: dict[str, Any]) -> Finding:
    """Check that a model is on this machine, and that it fits into the memory of the card."""
    engine, gpu, page = facts.engine, facts.gpu, f"{TROUBLE}#the-model-cannot-be-downloaded"
    if not model["folder"]:
        if model["downloadable"] and facts.machine.environ.get("HF_HUB_OFFLINE", "0") in {"", "0"}:
            message = f"{model['model']} is not downloaded yet; the first start does it (up to 3 GB)"
            return Finding("Model", "warning", message, page)
        return Finding("Model", "fault", model["problem"].partition("\n")[0], page)
    message = f"{model['model']}, in {model['folder']}"
    if gpu is None or not facts.on_gpu:
        return Finding("Model", "ok", message)
    # Conversions hold float16; int8 halves it, float32 doubles it.
    precision = str(engine["compute_type"])
    factor = 0.5 if precision.startswith("int8") else 2.0 if precision == "float32" else 1.0
    needed = int(model["bytes"] * factor) + WORKING_BYTES
    message += f", needs about {needed / GIB:.1f} GB on the card, which has {gpu.free / GIB:.1f} GB free"
    if gpu.free < needed:
        return Finding("Model", "warning", message, f"{TROUBLE}#cuda-out-of-memory")
    return Finding("Model", "ok", message)


def check_wsl(facts: Facts) -> Finding | None:
    """Check WSL's version, and systemd in it."""
    if not facts.wsl:
        return None
    if "wsl2" not in (facts.machine.read("/proc/version") or "").lower():
        return Finding("WSL", "fault", "WSL 1 has no GPU", f"{WSL}#1-windows-install-the-driver-and-wsl")
    if facts.machine.find("/run/systemd/system"):
        return Finding("WSL", "ok", "WSL 2 with systemd")
    page = f"{TROUBLE}#failed-to-connect-to-bus-or-wsl-without-systemd"
    return Finding("WSL", "warning", "WSL 2 without systemd: the server cannot be a service", page)


def check_wsl_network(facts: Facts) -> Finding | None:
    """Check that Windows lets other machines reach the server."""
    if not (facts.wsl and facts.hosts):
        return None
    name, machine, port, mode = "WSL network", facts.machine, str(facts.settings.port), facts.wsl_mode
    if mode == "mirrored":
        command = f"(Get-NetFirewallHyperVRule -Name {RULE}).LocalPorts"
        rule = machine.run(["powershell.exe", "-NoProfile", "-Command", command])
        if rule is not None and rule.status == 0 and port in rule.text.split():
            return Finding(name, "ok", f"mirrored, and Windows' firewall has port {port} open")
    elif mode == "nat":
        inside = next(filter(_is_virtual, machine.addresses), "unknown")
        table = machine.run(["netsh.exe", "interface", "portproxy", "show", "v4tov4"])
        # Its lines are "address port address port".
        rows = [line.split() for line in table.text.splitlines()] if table else []
        targets = [row[2] for row in rows if len(row) == 4 and row[1] == port]  # noqa: PLR2004 - see above
        target = targets[0] if targets else "nothing"
        if target == inside:
            return Finding(name, "ok", f"NAT, and Windows forwards port {port} to {inside}")
        message = f"NAT: Windows forwards port {port} to {target}, not to {inside}, where WSL is now"
        return Finding(name, "warning", message, f"{WSL}#windows-10")
    message = f"{mode}: Windows does not let other machines reach port {port}"
    return Finding(name, "warning", message, f"{WSL}#2-windows-let-other-machines-reach-ubuntu")


def check_port(facts: Facts) -> Finding:
    """Check that the port is free, or that this server has it."""
    settings = facts.settings
    there = f"{settings.host}:{settings.port}"
    problem = facts.machine.bind(settings.host, settings.port)
    if not problem:
        return Finding("Port", "ok", f"{there} is free; the server is not running")
    if answer := facts.machine.health(facts.local_url):
        state, version, model = (answer.get(key, "") for key in ("status", "version", "model"))
        return Finding("Port", "ok", f"localwhisper {version} runs on {there}: {state}, {model}")
    return Finding("Port", "fault", f"cannot listen on {there}: {problem}", f"{TROUBLE}#address-already-in-use")


def check_addresses(facts: Facts) -> Finding:
    """Tell the addresses and the name by which other machines reach the server."""
    machine, hosts = facts.machine, facts.hosts
    if not hosts:
        message = f"{facts.local_url}/v1, from this machine only; others need --host 0.0.0.0 and a network"
        return Finding("Addresses", "ok", message)
    if facts.wsl and facts.wsl_mode == "nat":
        hosts = ["NAME-OF-THE-PC-IN-WINDOWS.local"]
    elif facts.wsl or machine.platform == "darwin" or machine.find("/run/avahi-daemon/socket"):
        hosts.append(f"{machine.hostname.partition('.')[0]}.local")
    urls = " or ".join(f"{facts.url(host)}/v1" for host in hosts)
    return Finding("Addresses", "ok", f"OPENAI_BASE_URL={urls}")


def check_firewall(facts: Facts) -> Finding | None:
    """Tell which firewall may close the port; without root, its rules cannot be read."""
    if facts.wsl or not facts.hosts:
        return None
    if facts.machine.platform == "darwin":
        return Finding("Firewall", "ok", "if macOS asks whether Python may accept connections: allow it")
    state = facts.machine.run(["firewall-cmd", "--state"])
    on = "ufw" if "enabled=yes" in (facts.machine.read("/etc/ufw/ufw.conf") or "").lower() else ""
    on = on or ("firewalld" if state is not None and state.text.strip() == "running" else "")
    if on:
        return Finding("Firewall", "warning", f"{on} is on", f"{LINUX}#3-open-the-firewall")
    return Finding("Firewall", "ok", "neither ufw nor firewalld is on")


def check_clock(facts: Facts) -> Finding:
    """Check the clock: HTTPS needs it, and WSL's stops while the PC sleeps."""
    machine = facts.machine
    time_now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(machine.now))
    page = f"{TROUBLE}#the-clock-is-wrong"
    if machine.now < machine.installed_at - DAY:
        return Finding("Clock", "fault", f"{time_now} is before this program was installed", page)
    output = machine.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if output is not None and output.text.strip() == "no":
        return Finding("Clock", "warning", f"{time_now}, not synchronised with the network", page)
    return Finding("Clock", "ok", time_now)


def _is_virtual(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]) in VIRTUAL
    except ValueError:
        return False


# In the order in which one depends on another. Those of the second list need an engine that answered.
CHECKS: tuple[Callable[[Facts], Finding | None], ...] = (check_engine, check_gpu)
ENGINE_CHECKS = (check_device, check_libraries, check_models)
NETWORK_CHECKS = (check_wsl, check_wsl_network, check_port, check_addresses, check_firewall, check_clock)
