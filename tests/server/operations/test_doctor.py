"""`doctor` on described machines: each scenario is a machine, a line of the report, and how to fix it."""
# ruff: noqa: E501 - one scenario a line, so that they read as a table

import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from localwhisper_server.operations.doctor import doctor, network
from localwhisper_server.operations.doctor.machine import Machine, Output, this_machine
from localwhisper_server.operations.doctor.report import Finding, ok
from localwhisper_server.settings import Settings

GIB = 1 << 30
SMI = "/usr/bin/nvidia-smi"
WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"
WSL2 = {"/proc/version": "Linux version 5.15.167.4-microsoft-standard-WSL2"}
WSL2_FILES = {**WSL2, "/run/systemd/system": "", "/usr/lib/wsl/lib/libcuda.so.1": ""}
NETSH = "netsh.exe"
LIBRARIES = [
    {"name": "libcublasLt.so.12", "path": "/site/nvidia/cublas/lib/libcublasLt.so.12", "problem": ""},
    {"name": "libcublas.so.12", "path": "/site/nvidia/cublas/lib/libcublas.so.12", "problem": ""},
]
ON_CPU: dict[str, Any] = {
    "cuda_devices": 0,
    "device": "cpu",
    "compute_type": "int8",
    "compute_types": ["float32", "int8", "int8_float32"],
    "needs_cudnn": False,
    "libraries": [],
    "model": "base",
    "folder": "/models/base",
    "model_bytes": 145217607,
    "model_problem": "",
    "downloadable": False,
}
ON_GPU = ON_CPU | {
    "cuda_devices": 1,
    "device": "cuda",
    "compute_type": "float16",
    "compute_types": ["bfloat16", "float16", "float32", "int8", "int8_float16"],
    "libraries": LIBRARIES,
    "model": "large-v3",
    "model_bytes": 3 * GIB,
}
FINE = Output(0, "")
VERSIONS = {
    "localwhisper-lan": "1.0",
    "ctranslate2": "4.8.5",
    "faster-whisper": "1.2.1",
    "nvidia-cublas-cu12": "12.9.3",
}
RTX_3060 = "NVIDIA GeForce RTX 3060, 560.94, 8.6, 12288, 11500\n"
RTX_5080 = "NVIDIA GeForce RTX 5080, 576.02, 12.0, 16303, 15000\n"
GTX_1060 = "NVIDIA GeForce GTX 1060 6GB, 560.94, 6.1, 6144, 5800\n"


def machine(
    *,
    files: Mapping[str, str] | None = None,
    commands: Mapping[str, Output] | None = None,
    answer: dict[str, Any] | None = ON_CPU,
    ended: Output = FINE,
    versions: Mapping[str, str] = VERSIONS,
    taken: str = "",
    health: dict[str, Any] | None = None,
    **facts: Any,
) -> Machine:
    """Return a Linux PC without a GPU, changed as told. `commands` maps a program's name to what it prints."""
    files, commands = files or {}, commands or {}
    plain: dict[str, Any] = {
        "platform": "linux",
        "architecture": "x86_64",
        "python": (3, 12, 3),
        "libc": ("glibc", "2.39"),
        "environ": {},
        "hostname": "pc.fritz.box",
        "addresses": ["127.0.0.1", "::1", "172.17.0.1", "192.168.1.20", "fe80::1%eth0"],
        "now": 2e9,
        "installed_at": 1.9e9,
        "free_bytes": lambda _: 50 * GIB,
    }
    return Machine(
        **(plain | facts),
        version=versions.get,
        read=files.get,
        find=lambda pattern: [path for path in files if path.startswith(pattern.partition("*")[0])],
        which=lambda name: f"/usr/bin/{name}" if f"/usr/bin/{name}" in commands else None,
        run=lambda line: commands.get(line[0]),
        probe=lambda _: (answer, ended),
        bind=lambda *_: taken,
        health=lambda _: health,
    )


def wsl(mode: str, *, commands: Mapping[str, Output] | None = None, **facts: Any) -> Machine:
    """Return an Ubuntu in WSL 2 on a PC with an RTX 3060."""
    given = {"wslinfo": Output(0, f"{mode}\n"), WSL_SMI: Output(0, RTX_3060), **(commands or {})}
    addresses = ["127.0.0.1", "172.28.5.9"] if mode == "nat" else ["127.0.0.1", "192.168.1.20"]
    plain = {"files": {**WSL2_FILES, WSL_SMI: ""}, "answer": ON_GPU, "addresses": addresses}
    return machine(commands=given, **(plain | facts))


def findings(patient: Machine, **settings: Any) -> dict[str, Finding]:
    """Examine a machine and return the findings by name; nothing is transcribed."""
    made = list(doctor.examine(patient, Settings(**settings), lambda _: None, trial=no_trial))
    assert len({finding.name for finding in made}) == len(made)
    return {finding.name: finding for finding in made}


def no_trial(*_args, say, **_rest) -> Finding:
    """Stand in for the last check: succeed after one word on the progress."""
    say("sending")
    return ok(doctor.TRIAL, "understood")


LAN = {"host": "0.0.0.0"}
MISSING = [{"name": "libcublas.so.12", "path": None, "problem": "libcublas.so.12: cannot open shared object file"}]
CUDNN = [*LIBRARIES, {"name": "libcudnn.so.9", "path": None, "problem": "libcudnn.so.9: cannot open"}]
BUSY = {"taken": "Address already in use"}
OURS = {"ready": True, "status": "ok", "model": "base", "version": "1.0"}
FORWARDED = "Listen on ipv4:  Connect to ipv4:\n\nAddress  Port  Address  Port\n0.0.0.0  5000  {}  5000\n"
HUB = ON_CPU | {
    "folder": None,
    "model_bytes": 0,
    "model_problem": "The model is not here.\nThree ways",
    "downloadable": True,
}

# What it is, the machine, the settings, the line, its status, and words that its message or remedy must have.
SCENARIOS = [
    ("a plain PC", machine(), {}, "Python", "ok", "3.12.3, 64 bit, x86_64, glibc 2.39"),
    ("Python 3.10", machine(python=(3, 10, 1)), {}, "Python", "fault", "Python 3.11 or later"),
    ("32 bit", machine(bits=32), {}, "Python", "fault", "64-bit"),
    ("Alpine", machine(libc=("", "")), {}, "Python", "fault", "no glibc"),
    ("CentOS 7", machine(libc=("glibc", "2.17")), {}, "Python", "fault", "glibc is older than 2.28"),
    ("a Mac", machine(platform="darwin", libc=("", "")), {}, "Python", "ok", "3.12.3"),
    ("parts installed", machine(), {}, "Engine", "ok", "ctranslate2 4.8.5"),
    ("the client alone", machine(versions={"localwhisper-lan": "1"}), {}, "Engine", "fault", "'.[server]'"),
    ("an import fails", machine(answer={"error": "ImportError: x"}), {}, "Engine", "fault", "ImportError: x"),
    ("a crash", machine(answer=None, ended=Output(-6, "a\nCould not load x")), {}, "Engine", "fault", "status -6: Could not"),
    ("a silent crash", machine(answer=None, ended=Output(-11, "")), {}, "Engine", "fault", "status -11: nothing"),
    ("a driver that hangs", machine(answer=None, ended=Output(None, "")), {}, "Engine", "fault", "hung"),
    ("no GPU", machine(), {}, "GPU", "ok", "runs on the CPU"),
    ("no GPU, but asked for", machine(), {"device": "cuda"}, "GPU", "fault", "--device auto"),
    ("an old driver, on the CPU", machine(commands={SMI: Output(0, RTX_3060.replace("560.94", "470.1"))}), {"device": "cpu"}, "GPU", "ok", "not used"),
    ("a hidden GPU, on the CPU", machine(commands={SMI: Output(0, RTX_3060)}), {"device": "cpu"}, "Device", "ok", "cpu"),
    ("no cuBLAS, on the CPU", wsl("nat", answer=ON_CPU | {"cuda_devices": 1, "libraries": MISSING}), {"device": "cpu"}, "CUDA", "ok", "not needed"),
    ("an RTX 3060", machine(commands={SMI: Output(0, RTX_3060)}, answer=ON_GPU), {}, "GPU", "ok", "RTX 3060, 12 GB"),
    ("WSL by ssh", wsl("nat"), {}, "GPU", "ok", f"by {WSL_SMI}, which is not in PATH"),
    ("an old driver", machine(commands={SMI: Output(0, RTX_3060.replace("560.94", "470.1"))}), {}, "GPU", "fault", "driver 525"),
    ("an RTX 50 with an old driver", machine(commands={SMI: Output(0, RTX_5080.replace("576.02", "566.36"))}), {}, "GPU", "fault", "570"),
    ("a failing nvidia-smi", machine(commands={SMI: Output(9, "NVIDIA-SMI has failed")}), {}, "GPU", "fault", "NVIDIA-SMI has failed"),
    ("a hanging nvidia-smi", machine(commands={SMI: Output(None, "")}), {}, "GPU", "fault", "did not answer"),
    ("an odd nvidia-smi", machine(commands={SMI: Output(0, "[N/A]")}), {}, "GPU", "fault", "[N/A]"),
    ("a failing nvidia-smi in WSL", wsl("nat", commands={WSL_SMI: Output(255, "blocked")}), {}, "GPU", "fault", "wsl --shutdown"),
    ("WSL without a GPU", machine(files=WSL2_FILES), {}, "GPU", "warning", "docs/wsl2.md"),
    ("a card without a driver", machine(files={"/sys/bus/pci/devices/1/vendor": "0x10de\n"}), {}, "GPU", "warning", "docs/linux.md"),
    ("a CPU", machine(), {}, "Device", "ok", "cpu"),
    ("a GPU in use", wsl("nat"), {}, "Device", "ok", "cuda; CTranslate2 sees 1"),
    ("cuda, but none", machine(), {"device": "cuda"}, "Device", "fault", "no CUDA device"),
    ("a hidden GPU", machine(commands={SMI: Output(0, RTX_3060)}, environ={"CUDA_VISIBLE_DEVICES": ""}), {}, "Device", "fault", "CUDA_VISIBLE_DEVICES is set to ''"),
    ("a container", machine(commands={SMI: Output(0, RTX_3060)}), {}, "Device", "fault", "--gpus all"),
    ("a Jetson", machine(commands={SMI: Output(0, RTX_3060)}, architecture="aarch64"), {}, "Device", "fault", "have no CUDA"),
    ("WSL without libcuda", wsl("nat", files={**WSL2, WSL_SMI: ""}, answer=ON_CPU), {}, "Device", "fault", "wsl --update"),
    ("a Linux driver in WSL", wsl("nat", answer=ON_CPU), {}, "Device", "fault", "sudo apt purge"),
    ("no need of CUDA", machine(), {}, "CUDA", "ok", "not needed"),
    ("cuBLAS from the wheel", wsl("nat"), {}, "cuBLAS", "ok", "12.9.3 from /site/nvidia/cublas/lib/libcublas.so.12"),
    ("no cuBLAS", wsl("nat", answer=ON_GPU | {"libraries": MISSING}), {}, "cuBLAS", "fault", "'.[cuda]'"),
    ("no CUDA for this system", wsl("nat", answer=ON_GPU | {"libraries": []}), {}, "cuBLAS", "fault", "has no CUDA on linux"),
    ("an old cuBLAS on an RTX 50", machine(commands={SMI: Output(0, RTX_5080)}, answer=ON_GPU, versions={**VERSIONS, "nvidia-cublas-cu12": "12.4.5.8"}), {}, "cuBLAS", "fault", "nvidia-cublas-cu12>=12.8"),
    ("no need of cuDNN", wsl("nat"), {}, "cuDNN", "ok", "not needed by CTranslate2 4.8.5"),
    ("no cuDNN", wsl("nat", answer=ON_GPU | {"needs_cudnn": True, "libraries": CUDNN}), {}, "cuDNN", "fault", "libcudnn.so.9"),
    ("int8 on a CPU", machine(), {}, "Precision", "ok", "int8"),
    ("float16 on a GTX 1060", machine(commands={SMI: Output(0, GTX_1060)}, answer=ON_GPU | {"compute_types": ["float32", "int8", "int8_float32"]}), {}, "Precision", "fault", "--compute-type int8_float32"),
    ("int8 on an RTX 50", machine(commands={SMI: Output(0, RTX_5080)}, answer=ON_GPU | {"compute_type": "int8_float16"}), {}, "Precision", "warning", "--compute-type float16"),
    ("a model here", machine(), {}, "Model", "ok", "base, 0.1 GB, in /models/base"),
    ("a model to download", machine(answer=HUB), {}, "Model", "warning", "50 GB are free"),
    ("a model to download to nowhere", machine(answer=HUB, free_bytes=lambda _: None), {}, "Model", "warning", "up to 3 GB)"),
    ("a model, but offline", machine(answer=HUB, environ={"HF_HUB_OFFLINE": "1"}), {}, "Model", "fault", "Three ways"),
    ("no such model", machine(answer=HUB | {"model_problem": "No model is called 'x'", "downloadable": False}), {}, "Model", "fault", "No model is called 'x'"),
    ("room on the card", wsl("nat"), {}, "GPU memory", "ok", "large-v3 needs about 4.0"),
    ("a game on the card", wsl("nat", commands={WSL_SMI: Output(0, RTX_3060.replace("11500", "2000"))}), {}, "GPU memory", "warning", "game"),
    ("int8 takes half", wsl("nat", answer=ON_GPU | {"compute_type": "int8"}), {}, "GPU memory", "ok", "about 2.5"),
    ("WSL 1", machine(files={"/proc/version": "Linux version 4.4.0-Microsoft"}), {}, "WSL", "fault", "wsl --set-version Ubuntu 2"),
    ("WSL without systemd", machine(files=WSL2), {}, "WSL", "warning", "docs/troubleshooting.md"),
    ("WSL 2", wsl("nat"), {}, "WSL", "ok", "systemd"),
    ("WSL for itself", wsl("nat"), {}, "WSL network", "ok", "only this machine"),
    ("NAT", wsl("nat"), LAN, "WSL network", "warning", "netsh interface portproxy add v4tov4 listenaddress=0.0.0.0 listenport=5000 connectaddress=172.28.5.9 connectport=5000"),
    ("NAT's firewall", wsl("nat"), LAN | {"port": 5055}, "WSL network", "warning", "protocol=TCP localport=5055 profile=private remoteip=localsubnet"),
    ("NAT, forwarded", wsl("nat", commands={NETSH: Output(0, FORWARDED.format("172.28.5.9"))}), LAN, "WSL network", "ok", "forwards port 5000 to 172.28.5.9"),
    ("NAT, forwarded to yesterday", wsl("nat", commands={NETSH: Output(0, FORWARDED.format("172.30.1.1"))}), LAN, "WSL network", "warning", "to 172.30.1.1, but WSL is at 172.28.5.9 now"),
    ("mirrored", wsl("mirrored"), LAN, "WSL network", "warning", "docs/wsl2.md"),
    ("mirrored, another port open", wsl("mirrored", commands={"powershell.exe": Output(0, "50001\r\n")}), LAN, "WSL network", "warning", "does not have port 5000 open"),
    ("mirrored and open", wsl("mirrored", commands={"powershell.exe": Output(0, "5000\r\n")}), LAN, "WSL network", "ok", "has port 5000 open"),
    ("no network", wsl("virtioproxy"), LAN, "WSL network", "warning", "docs/wsl2.md"),
    ("an old WSL", wsl("nat", commands={"wslinfo": Output(127, "")}), LAN, "WSL network", "warning", "NAT"),
    ("an old WSL, mirrored", wsl("mirrored", commands={"wslinfo": Output(127, "")}), LAN, "WSL network", "warning", "mirrored"),
    ("a free port", machine(), {}, "Port", "ok", "127.0.0.1:5000 is free"),
    ("any port", machine(), {"port": 0}, "Port", "warning", "--port 5000"),
    ("our server", machine(**BUSY, health=OURS), {}, "Port", "ok", "ready, base"),
    ("our server, loading", machine(**BUSY, health=OURS | {"ready": False, "status": "loading"}), LAN, "Port", "ok", "loading"),
    ("another server", machine(**BUSY, health={}), {}, "Port", "fault", "--port 5001"),
    ("a mute one", machine(**BUSY), {}, "Port", "fault", "ss -ltnp"),
    ("AirPlay", machine(**BUSY, health={}, platform="darwin"), {}, "Port", "fault", "docs/mac.md"),
    ("port 80", machine(taken="Permission denied"), {"port": 80}, "Port", "fault", "Permission denied"),
    ("for itself", machine(), {}, "Addresses", "ok", "For the whole network: --host 0.0.0.0"),
    ("for itself, by name", machine(), {"host": "localhost"}, "Addresses", "ok", "http://localhost:5000/v1"),
    ("for itself, by IPv6", machine(), {"host": "::1"}, "Addresses", "ok", "http://[::1]:5000/v1"),
    ("for the network", machine(), LAN, "Addresses", "ok", "OPENAI_BASE_URL=http://192.168.1.20:5000/v1"),
    ("on one address", machine(), {"host": "192.168.1.20"}, "Addresses", "ok", "http://192.168.1.20:5000/v1"),
    ("behind NAT", wsl("nat"), LAN, "Addresses", "ok", "ADDRESS-OF-WINDOWS"),
    ("no cable", machine(addresses=["127.0.0.1"]), LAN, "Addresses", "warning", "no network"),
    ("ufw", machine(files={"/etc/ufw/ufw.conf": "ENABLED=yes\n"}), LAN, "Firewall", "warning", "docs/linux.md"),
    ("firewalld", machine(commands={"firewall-cmd": Output(0, "running\n")}), LAN, "Firewall", "warning", "--add-port=5000/tcp"),
    ("no firewall", machine(), LAN, "Firewall", "ok", "neither"),
    ("a Mac's firewall", machine(platform="darwin"), LAN, "Firewall", "ok", "allow it"),
    ("no name", machine(), LAN, "Name", "warning", "docs/finding-the-server.md"),
    ("Avahi", machine(files={"/run/avahi-daemon/socket": ""}), LAN, "Name", "ok", "http://pc.local:5000/v1"),
    ("a Mac's name", machine(platform="darwin"), LAN, "Name", "ok", "http://pc.local:5000/v1"),
    ("WSL's name", wsl("nat"), LAN, "Name", "ok", "NAME-OF-THE-PC.local"),
    ("a clock", machine(), {}, "Clock", "ok", "2033-05-18 03:33 UTC"),
    ("a clock in the past", machine(now=1e9), {}, "Clock", "fault", "before this program was installed"),
    ("a clock without a network", machine(commands={"timedatectl": Output(0, "no\n")}), {}, "Clock", "warning", "timedatectl set-ntp true"),
    ("a clock after a night in WSL", wsl("nat", commands={"timedatectl": Output(0, "no\n")}), {}, "Clock", "warning", "sudo hwclock -s"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_settings_from_here(monkeypatch):
    """No scenario sees the settings of the machine that runs the tests."""
    for name in [name for name in os.environ if name.startswith("LOCALWHISPER_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("patient", "settings", "line", "status", "words"),
    [row[1:] for row in SCENARIOS],
    ids=[row[0] for row in SCENARIOS],
)
def test_each_state_of_a_machine_has_its_finding(patient, settings, line, status, words, pytestconfig):
    """It is named and judged; unless it is ok, there is something to do, and a page that is named exists."""
    finding = findings(patient, **settings)[line]
    text = "\n".join([finding.message, *finding.fix])
    assert finding.status == status
    assert words in text
    assert finding.status == "ok" or finding.fix
    assert all((pytestconfig.rootpath / page).is_file() for page in re.findall(r"docs/[\w-]+\.md", text))


def test_after_a_fault_nothing_is_transcribed():
    """It would fail, and the report says so."""
    made = findings(machine(answer=None, ended=Output(-6, "")))
    assert "not tried" in made[doctor.TRIAL].message


def test_one_fault_is_reported_once():
    """A missing card is not reported as a wrong precision, which was chosen for the card."""
    answer = ON_CPU | {"device": "cuda", "compute_type": "float16"}
    made = findings(machine(answer=answer), device="cuda")
    assert {name for name, finding in made.items() if finding.status == "fault"} == {"GPU", "Device"}
    assert "Precision" not in made


def report(patient: Machine, *, out: io.StringIO | None = None, progress: io.StringIO | None = None, **how: Any) -> Any:
    """Run doctor and return its exit status and what it printed."""
    out = out or io.StringIO()
    settings = {"as_json": False, "progress": progress or io.StringIO(), "trial": no_trial} | how
    return doctor.run(patient, Settings(host="0.0.0.0"), out=out, **settings), out.getvalue()


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_the_report_for_people():
    """Aligned, with the verdict last; no colour and no progress in a pipe; long lines are not wrapped."""
    progress = io.StringIO()
    status, text = report(wsl("nat"), progress=progress)
    assert status == 0
    lines = text.splitlines()
    assert lines[0].startswith("ok       Python       3.12.3")
    (command,) = [line for line in lines if "netsh interface" in line]
    assert command.startswith(" " * 22)
    assert command.endswith("connectport=5000")
    assert lines[-1] == "The server works. 1 warning above."
    assert "\x1b" not in text
    assert progress.getvalue() == ""


def test_a_terminal_has_colour_and_progress(monkeypatch):
    """NO_COLOR turns colour off."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    progress = Terminal()
    assert "\x1b[32mok" in report(machine(), out=Terminal(), progress=progress)[1]
    assert "sending …" in progress.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in report(machine(), out=Terminal())[1]


@pytest.mark.parametrize(
    ("patient", "status", "last"),
    [
        (machine(files={"/run/avahi-daemon/socket": ""}), 0, "Everything is in order."),
        (machine(python=(3, 9)), 1, "1 fault, 2 warnings. Fix the first fault, then run this again."),
    ],
)
def test_the_exit_status_tells_faults(patient, status, last):
    """Warnings are no faults."""
    ended, text = report(patient)
    assert (ended, text.splitlines()[-1]) == (status, last)


def test_the_report_for_programs():
    """JSON, and nothing else on standard output."""
    status, text = report(machine(python=(3, 9)), as_json=True)
    assert status == 1
    made = json.loads(text)
    assert made["ok"] is False
    assert made["findings"][0] == {
        "name": "Python",
        "status": "fault",
        "message": "3.9, 64 bit, x86_64, glibc 2.39",
        "fix": ["localwhisper needs a 64-bit Python 3.11 or later."],
    }


def test_the_local_url_of_a_server_on_all_addresses():
    """This machine connects to its loopback, not to 0.0.0.0 or ::."""
    assert network.local_url(Settings(host="0.0.0.0")) == "http://127.0.0.1:5000"
    assert network.local_url(Settings(host="::")) == "http://[::1]:5000"


def test_the_settings_reach_the_probe():
    """It looks for the server's own model and device."""
    asked: list[Any] = []

    def probe(question):
        asked.append(question)
        return ON_CPU, Output(0, "")

    settings = {"model": "small", "device": "cpu", "compute_type": "float32", "cache_dir": "/cache"}
    findings(dataclasses.replace(machine(), probe=probe), **settings)
    assert asked == [settings]


def test_virtual_bridges_come_last():
    """Docker's bridge is no address for a bot if there is another."""
    assert network.lan_addresses(machine()) == ["192.168.1.20", "172.17.0.1"]


def test_this_machine_is_described():
    """The real facts, where this runs: no exception, and what Python itself says of them."""
    here = this_machine({})
    assert here.platform == sys.platform
    assert here.python == sys.version_info[:3]
    assert "127.0.0.1" in here.addresses
    assert here.version("localwhisper-lan")
    assert here.version("no-such-package") is None
