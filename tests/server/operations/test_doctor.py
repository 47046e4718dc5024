"""`doctor` on described machines: each scenario is a machine, a line of the report, and where its fix is."""
# ruff: noqa: E501 - one scenario a line, so that they read as a table

import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import pytest

from localwhisper_server.operations.doctor import doctor
from localwhisper_server.operations.doctor.checks import Finding, gather
from localwhisper_server.operations.doctor.machine import Machine, Output
from localwhisper_server.settings import Settings
from tests.server.test_docs import heading_anchors

GIB = 1 << 30
SMI = "nvidia-smi"
WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"
WSL2 = {"/proc/version": "Linux version 5.15.167.4-microsoft-standard-WSL2"}
WSL2_FILES = {**WSL2, "/run/systemd/system": "", "/usr/lib/wsl/lib/libcuda.so.1": ""}
NETSH = "netsh.exe"
LIBRARIES = [
    {"name": "libcublasLt.so.12", "path": "/site/nvidia/cublas/lib/libcublasLt.so.12", "problem": ""},
    {"name": "libcublas.so.12", "path": "/site/nvidia/cublas/lib/libcublas.so.12", "problem": ""},
]
BASE = {"model": "base", "folder": "/models/base", "bytes": 145217607, "problem": "", "downloadable": False}
LARGE = BASE | {"model": "large-v3", "bytes": 3 * GIB}
ON_CPU: dict[str, Any] = {
    "cuda_devices": 0,
    "device": "cpu",
    "compute_type": "int8",
    "compute_types": ["float32", "int8", "int8_float32"],
    "libraries": [],
    "versions": {"localwhisper-lan": "1.0", "ctranslate2": "4.8.5"},
    "models": [BASE],
}
ON_GPU = ON_CPU | {
    "cuda_devices": 1,
    "device": "cuda",
    "compute_type": "float16",
    "compute_types": ["bfloat16", "float16", "float32", "int8", "int8_float16"],
    "libraries": LIBRARIES,
    "models": [LARGE],
}
FINE = Output(0, "")
RTX_3060 = "NVIDIA GeForce RTX 3060, 560.94, 8.6, 12288, 11500\n"
RTX_5080 = "NVIDIA GeForce RTX 5080, 576.02, 12.0, 16303, 15000\n"
GTX_1060 = "NVIDIA GeForce GTX 1060 6GB, 560.94, 6.1, 6144, 5800\n"


class Described(Machine):
    """A Linux PC without a GPU, changed as told. `commands` maps a program's name to what it prints."""

    def __init__(
        self,
        *,
        files: Mapping[str, str] | None = None,
        commands: Mapping[str, Output] | None = None,
        answer: dict[str, Any] | None = ON_CPU,
        ended: Output = FINE,
        taken: str = "",
        health: dict[str, Any] | None = None,
        **facts: Any,
    ) -> None:
        files, commands = files or {}, commands or {}
        plain = {
            "platform": "linux",
            "architecture": "x86_64",
            "python": "3.12.3",
            "environ": {},
            "hostname": "pc.fritz.box",
            "addresses": ["127.0.0.1", "::1", "172.17.0.1", "192.168.1.20", "fe80::1%eth0"],
            "now": 2e9,
            "installed_at": 1.9e9,
        }
        methods = {
            "read": files.get,
            "find": lambda pattern: [path for path in files if path.startswith(pattern.partition("*")[0])],
            "run": lambda line: commands.get(line[0]),
            "inspect_engine": lambda asked: self.asked.append(asked) or (answer, ended),
            "bind": lambda *_: taken,
            "health": lambda _: health,
        }
        self.asked: list[Any] = []
        vars(self).update(plain | facts | methods)


machine = Described


def wsl(mode: str, *, commands: Mapping[str, Output] | None = None, **facts: Any) -> Machine:
    """Return an Ubuntu in WSL 2 on a PC with an RTX 3060."""
    given = {"wslinfo": Output(0, f"{mode}\n"), WSL_SMI: Output(0, RTX_3060), **(commands or {})}
    addresses = ["127.0.0.1", "172.28.5.9"] if mode == "nat" else ["127.0.0.1", "192.168.1.20"]
    plain = {"files": {**WSL2_FILES, WSL_SMI: ""}, "answer": ON_GPU, "addresses": addresses}
    return machine(commands=given, **(plain | facts))


def findings(patient: Machine, **settings: Any) -> dict[str, Finding]:
    """Examine a machine and return the findings by name; nothing is transcribed."""
    made = doctor.examine(patient, Settings(**settings), lambda _: None, trial=no_trial)
    assert len({finding.name for finding in made}) == len(made)
    return {finding.name: finding for finding in made}


def no_trial(_facts, *, say) -> Finding:
    """Stand in for the last check: succeed after one word on the progress."""
    say("sending")
    return Finding(doctor.TRIAL, "ok", "understood")


LAN = {"host": "0.0.0.0"}
MISSING = [{"name": "libcublas.so.12", "path": None, "problem": "libcublas.so.12: cannot open shared object file"}]
CUDNN = [*LIBRARIES, {"name": "libcudnn.so.9", "path": None, "problem": "libcudnn.so.9: cannot open"}]
BUSY = {"taken": "Address already in use"}
OURS = {"ready": True, "status": "ok", "model": "base", "version": "1.0"}
FORWARDED = "Listen on ipv4:  Connect to ipv4:\n\nAddress  Port  Address  Port\n0.0.0.0  5000  {}  5000\n"
ABSENT = BASE | {"folder": None, "bytes": 0, "problem": "The model is not here.\nThree ways", "downloadable": True}
UNKNOWN = ABSENT | {"problem": "No model is called 'x'", "downloadable": False}
HUB = ON_CPU | {"models": [ABSENT]}

# What it is, the machine, the settings, the line, its status, and words that its message or page must have.
SCENARIOS = [
    ("a plain PC", machine(), {}, "Engine", "ok", "ctranslate2 4.8.5, Python 3.12.3 on x86_64"),
    ("an import fails", machine(answer={"error": "ImportError: x"}), {}, "Engine", "fault", "ImportError: x"),
    ("a crash", machine(answer=None, ended=Output(-6, "a\nCould not load x")), {}, "Engine", "fault", "status -6: Could not"),
    ("a driver that hangs", machine(answer=None, ended=Output(None, "")), {}, "Engine", "fault", "hung"),
    ("no GPU", machine(), {}, "GPU", "ok", "runs on the CPU"),
    ("no GPU, but asked for", machine(), {"device": "cuda"}, "GPU", "fault", "no NVIDIA driver"),
    ("an old driver, on the CPU", machine(commands={SMI: Output(0, RTX_3060.replace("560.94", "470.1"))}), {"device": "cpu"}, "GPU", "ok", "not used"),
    ("an RTX 3060", machine(commands={SMI: Output(0, RTX_3060)}, answer=ON_GPU), {}, "GPU", "ok", "RTX 3060, 12 GB, driver 560"),
    ("an old driver", machine(commands={SMI: Output(0, RTX_3060.replace("560.94", "470.1"))}), {}, "GPU", "fault", "driver 525"),
    ("an RTX 50 with an old driver", machine(commands={SMI: Output(0, RTX_5080.replace("576.02", "566.36"))}), {}, "GPU", "fault", "570"),
    ("a failing nvidia-smi", machine(commands={SMI: Output(9, "NVIDIA-SMI has failed")}), {}, "GPU", "fault", "NVIDIA-SMI has failed"),
    ("a hanging nvidia-smi", machine(commands={SMI: Output(None, "")}), {}, "GPU", "fault", "did not answer"),
    ("WSL without a GPU", machine(files=WSL2_FILES), {}, "GPU", "warning", "docs/wsl2.md"),
    ("a card without a driver", machine(files={"/sys/bus/pci/devices/1/vendor": "0x10de\n"}), {}, "GPU", "warning", "docs/linux.md"),
    ("a GPU in use", wsl("nat"), {}, "Device", "ok", "float16 on cuda"),
    ("a hidden GPU, on the CPU", machine(commands={SMI: Output(0, RTX_3060)}), {"device": "cpu"}, "Device", "ok", "cpu"),
    ("cuda, but none", machine(answer=ON_GPU | {"cuda_devices": 0}), {"device": "cuda"}, "Device", "fault", "no CUDA device"),
    ("a hidden GPU", machine(commands={SMI: Output(0, RTX_3060)}, environ={"CUDA_VISIBLE_DEVICES": ""}), {}, "Device", "fault", "CUDA_VISIBLE_DEVICES is set to ''"),
    ("float16 on a GTX 1060", machine(commands={SMI: Output(0, GTX_1060)}, answer=ON_GPU | {"compute_types": ["float32", "int8"]}), {}, "Device", "fault", "can do float32, int8"),
    ("cuBLAS from the wheel", wsl("nat"), {}, "CUDA", "ok", "/site/nvidia/cublas/lib/libcublas.so.12"),
    ("no cuBLAS", wsl("nat", answer=ON_GPU | {"libraries": MISSING}), {}, "CUDA", "fault", "libcublas.so.12: cannot open"),
    ("a model here", machine(), {}, "Model", "ok", "base, in /models/base"),
    ("a model to download", machine(answer=HUB), {}, "Model", "warning", "not downloaded yet"),
    ("a model, but offline", machine(answer=HUB, environ={"HF_HUB_OFFLINE": "1"}), {}, "Model", "fault", "The model is not here."),
    ("no such model", machine(answer=HUB | {"models": [UNKNOWN]}), {}, "Model", "fault", "No model is called 'x'"),
    ("two models", machine(answer=ON_CPU | {"models": [BASE, LARGE]}), {}, "Model", "ok", "base, in /models/base; large-v3, in"),
    ("two models, one to download", machine(answer=ON_CPU | {"models": [BASE, ABSENT]}), {}, "Model", "warning", "not downloaded yet"),
    ("two models, one unknown", machine(answer=ON_CPU | {"models": [ABSENT, UNKNOWN, BASE]}), {}, "Model", "fault", "No model is called 'x'"),
    ("room on the card", wsl("nat"), {}, "Model", "ok", "needs about 4.0 GB on the card, which has 11.2"),
    ("a game on the card", wsl("nat", commands={WSL_SMI: Output(0, RTX_3060.replace("11500", "2000"))}), {}, "Model", "warning", "has 2.0 GB free"),
    ("int8 takes half", wsl("nat", answer=ON_GPU | {"compute_type": "int8"}), {}, "Model", "ok", "about 2.5"),
    ("WSL 1", machine(files={"/proc/version": "Linux version 4.4.0-Microsoft"}), {}, "WSL", "fault", "WSL 1"),
    ("WSL without systemd", machine(files=WSL2), {}, "WSL", "warning", "without systemd"),
    ("WSL 2", wsl("nat"), {}, "WSL", "ok", "systemd"),
    ("NAT", wsl("nat"), LAN, "WSL network", "warning", "forwards port 5000 to nothing, not to 172.28.5.9"),
    ("NAT, forwarded", wsl("nat", commands={NETSH: Output(0, FORWARDED.format("172.28.5.9"))}), LAN, "WSL network", "ok", "forwards port 5000 to 172.28.5.9"),
    ("NAT, forwarded to yesterday", wsl("nat", commands={NETSH: Output(0, FORWARDED.format("172.30.1.1"))}), LAN, "WSL network", "warning", "to 172.30.1.1, not to 172.28.5.9"),
    ("mirrored, another port open", wsl("mirrored", commands={"powershell.exe": Output(0, "50001\r\n")}), LAN, "WSL network", "warning", "port 5000"),
    ("mirrored and open", wsl("mirrored", commands={"powershell.exe": Output(0, "5000\r\n")}), LAN, "WSL network", "ok", "has port 5000 open"),
    ("no network", wsl("virtioproxy"), LAN, "WSL network", "warning", "virtioproxy"),
    ("an old WSL", wsl("nat", commands={"wslinfo": Output(127, "")}), LAN, "WSL network", "warning", "NAT"),
    ("an old WSL, mirrored", wsl("mirrored", commands={"wslinfo": Output(127, "")}), LAN, "WSL network", "warning", "mirrored"),
    ("a free port", machine(), {}, "Port", "ok", "127.0.0.1:5000 is free"),
    ("our server", machine(**BUSY, health=OURS), {}, "Port", "ok", "localwhisper 1.0 runs on 127.0.0.1:5000: ok, base"),
    ("another server", machine(**BUSY), {}, "Port", "fault", "Address already in use"),
    ("port 80", machine(taken="Permission denied"), {"port": 80}, "Port", "fault", "Permission denied"),
    ("for itself", machine(), {}, "Addresses", "ok", "others need --host 0.0.0.0"),
    ("for itself, by name", machine(), {"host": "localhost"}, "Addresses", "ok", "http://localhost:5000/v1"),
    ("for the network, Docker's bridge last", machine(), LAN, "Addresses", "ok", "OPENAI_BASE_URL=http://192.168.1.20:5000/v1 or http://172.17.0.1"),
    ("on one address", machine(), {"host": "192.168.1.20"}, "Addresses", "ok", "=http://192.168.1.20:5000/v1"),
    ("with a certificate", machine(), {"host": "192.168.1.20", "certfile": "chain.pem"}, "Addresses", "ok", "=https://192.168.1.20:5000/v1"),
    ("behind NAT", wsl("nat"), LAN, "Addresses", "ok", "NAME-OF-THE-PC-IN-WINDOWS.local"),
    ("no cable", machine(addresses=["127.0.0.1"]), LAN, "Addresses", "ok", "http://127.0.0.1:5000/v1, from this machine only"),
    ("Avahi", machine(files={"/run/avahi-daemon/socket": ""}), LAN, "Addresses", "ok", "or http://pc.local:5000/v1"),
    ("ufw", machine(files={"/etc/ufw/ufw.conf": "ENABLED=yes\n"}), LAN, "Firewall", "warning", "ufw is on"),
    ("firewalld", machine(commands={"firewall-cmd": Output(0, "running\n")}), LAN, "Firewall", "warning", "firewalld is on"),
    ("no firewall", machine(), LAN, "Firewall", "ok", "neither"),
    ("a Mac's firewall", machine(platform="darwin"), LAN, "Firewall", "ok", "allow it"),
    ("a clock", machine(), {}, "Clock", "ok", "2033-05-18 03:33 UTC"),
    ("a clock in the past", machine(now=1e9), {}, "Clock", "fault", "before this program was installed"),
    ("a clock without a network", machine(commands={"timedatectl": Output(0, "no\n")}), {}, "Clock", "warning", "not synchronised"),
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
    """It is named and judged; unless it is ok, it names a page and a heading that exist."""
    finding = findings(patient, **settings)[line]
    assert finding.status == status
    assert words in f"{finding.message} {finding.page}"
    assert bool(finding.page) is (status != "ok")
    name, _, heading = finding.page.partition("#")
    assert not name or heading in heading_anchors(pytestconfig.rootpath / name)


def test_after_a_fault_nothing_is_transcribed():
    """It would fail, and the report says so; what the engine would have said is left out."""
    made = findings(machine(answer=None, ended=Output(-6, "")))
    assert "not tried" in made[doctor.TRIAL].message
    assert "Model" not in made


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


@pytest.mark.parametrize(
    ("patient", "status", "last"),
    [
        (machine(commands={SMI: Output(0, RTX_3060)}, answer=ON_GPU), 0, "faults: 0, warnings: 0. The server works."),
        (
            machine(files=WSL2_FILES, answer=None),
            1,
            "faults: 1, warnings: 3. Fix the first fault, then run this again.",
        ),
    ],
)
def test_the_report_for_people(patient, status, last):
    """In columns, with the verdict last; no colour and no progress in a pipe. Warnings are no faults."""
    progress = io.StringIO()
    ended, text = report(patient, progress=progress)
    first, *_, verdict = text.splitlines()
    assert (ended, verdict) == (status, last)
    assert re.match(r"(ok|fault) +Engine +(localwhisper-lan|CTranslate2)", first)
    assert "\x1b" not in text + progress.getvalue()


def test_a_terminal_has_colour_and_progress(monkeypatch):
    """NO_COLOR turns colour off."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    progress = Terminal()
    assert "\x1b[32mok" in report(machine(), out=Terminal(), progress=progress)[1]
    assert "sending …" in progress.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in report(machine(), out=Terminal())[1]


def test_the_report_for_programs():
    """JSON, and nothing else on standard output."""
    status, text = report(machine(answer={"error": "ImportError: x"}), as_json=True)
    assert status == 1
    made = json.loads(text)
    assert made["ok"] is False
    assert made["findings"][0] == {
        "name": "Engine",
        "status": "fault",
        "message": "CTranslate2 cannot be loaded: ImportError: x",
        "page": "docs/troubleshooting.md#ctranslate2-does-not-work",
    }


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:5000"), ("::", "http://[::1]:5000")])
def test_the_settings_reach_the_engine(host, url):
    """The server's own model and device are looked at; this machine calls it on the loopback."""
    patient = machine()
    settings = {"model": ["small", "base"], "device": "cpu", "compute_type": "float32", "cache_dir": "/cache"}
    facts = gather(patient, Settings(host=host, **settings))
    assert patient.asked == [settings]
    assert facts.local_url == url
