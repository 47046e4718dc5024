"""What `doctor` says of the way to the server: WSL, port, addresses, firewall, name, clock. Pure, as the rest.

Sources: Microsoft's pages on WSL networking (https://learn.microsoft.com/windows/wsl/networking) and on the Hyper-V
firewall, whose rules for WSL carry the VM creator id below.
"""

import ipaddress
import time
from collections.abc import Iterable

from localwhisper_server.operations.doctor.hardware import is_wsl
from localwhisper_server.operations.doctor.machine import Machine
from localwhisper_server.operations.doctor.report import Finding, fault, ok, warning
from localwhisper_server.settings import Settings

WSL_VM_CREATOR = "{40E0AC32-46A5-438A-A0B2-2B479E8F2E90}"
# What WSL's NAT and Docker's bridges live in; a home network seldom does.
VIRTUAL = ipaddress.ip_network("172.16.0.0/12")
RULE = "localwhisper"  # its name in Windows' firewall
SOON = 24 * 3600.0


def check_wsl(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Say which WSL this is, whether it has systemd, and how its network hangs on Windows'."""
    if not is_wsl(machine):
        return
    if "wsl2" not in (machine.read("/proc/version") or "").lower():
        distribution = machine.environ.get("WSL_DISTRO_NAME", "Ubuntu")
        yield fault(
            "WSL",
            "this is WSL 1, which has no GPU",
            "In PowerShell:",
            f"    wsl --set-version {distribution} 2",
        )
        return
    if machine.find("/run/systemd/system"):
        yield ok("WSL", "WSL 2 with systemd")
    else:
        yield warning(
            "WSL",
            "WSL 2 without systemd, so the server cannot be a service",
            "Put these two lines into /etc/wsl.conf:",
            "    [boot]",
            "    systemd=true",
            "then in PowerShell: wsl --shutdown, and open Ubuntu again.",
        )
    yield from _wsl_network(machine, settings)


def _wsl_network(machine: Machine, settings: Settings) -> Iterable[Finding]:
    mode = wsl_mode(machine)
    if not _listens_outside(settings):
        yield ok("WSL network", f"{mode}; nothing to do while only this machine uses the server")
    elif mode == "mirrored":
        yield _mirrored(machine, settings.port)
    elif mode == "nat":
        yield _nat(machine, settings.port)
    else:
        yield warning(
            "WSL network",
            f"'{mode}': other machines cannot reach a server here",
            "Put these lines into the file %UserProfile%\\.wslconfig in Windows, then: wsl --shutdown",
            "    [wsl2]",
            "    networkingMode=mirrored",
        )


def _mirrored(machine: Machine, port: int) -> Finding:
    rule = machine.run(
        ["powershell.exe", "-NoProfile", "-Command", f"(Get-NetFirewallHyperVRule -Name {RULE}).LocalPorts"]
    )
    if rule is not None and rule.status == 0 and str(port) in rule.text.split():
        return ok("WSL network", f"mirrored, and Windows' firewall lets port {port} in")
    return warning(
        "WSL network",
        "mirrored: this PC's own addresses lead here, once its firewall lets them",
        "Paste into PowerShell (as administrator), once:",
        f"    New-NetFirewallHyperVRule -Name {RULE} -DisplayName {RULE} -Direction Inbound "
        f"-VMCreatorId '{WSL_VM_CREATOR}' -Protocol TCP -LocalPorts {port} -Action Allow",
    )


def _nat(machine: Machine, port: int) -> Finding:
    inside = next((address for address in machine.addresses if _is_virtual(address)), "ADDRESS-OF-WSL")
    proxies = machine.run(["netsh.exe", "interface", "portproxy", "show", "v4tov4"])
    target = _forwarded_to(proxies.text if proxies else "", port)
    if target == inside:
        return ok("WSL network", f"NAT, and Windows passes port {port} on to {inside}")
    return warning(
        "WSL network",
        f"NAT: Windows passes port {port} on to {target}, where WSL no longer is; it is {inside} now"
        if target
        else f"NAT: the rest of your network cannot reach {inside}, which Windows hands out anew at each start",
        "Best (Windows 11): put these lines into the file %UserProfile%\\.wslconfig in Windows,",
        "    [wsl2]",
        "    networkingMode=mirrored",
        "then in PowerShell: wsl --shutdown, and look again. Or, until WSL starts the next time,",
        "paste into PowerShell (as administrator):",
        f"    netsh interface portproxy add v4tov4 listenaddress=0.0.0.0 listenport={port} "
        f"connectaddress={inside} connectport={port}",
        f"    {_windows_rule(port)}",
    )


def _forwarded_to(table: str, port: int) -> str | None:
    """Return where netsh's table of "address port address port" lines sends a port."""
    for line in table.splitlines():
        columns = line.split()
        if len(columns) == 4 and columns[1] == str(port):  # noqa: PLR2004 - see above
            return columns[2]
    return None


def _windows_rule(port: int) -> str:
    return (
        f"netsh advfirewall firewall add rule name={RULE} dir=in action=allow protocol=TCP localport={port} "
        "profile=private remoteip=localsubnet"
    )


def wsl_mode(machine: Machine) -> str:
    """Return "nat", "mirrored", "none" or "virtioproxy"; by the addresses where this WSL is too old to say."""
    output = machine.run(["wslinfo", "--networking-mode"])
    if output is not None and output.status == 0 and output.text.strip():
        return output.text.strip().lower()
    return "nat" if any(_is_virtual(address) for address in machine.addresses) else "mirrored"


def check_port(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Say whether the port is free, or taken by this very server."""
    if settings.port == 0:
        yield warning("Port", "0: a different one at each start, which no bot can be told", "--port 5000")
        return
    problem = machine.bind(settings.host, settings.port)
    there = f"{settings.host}:{settings.port}"
    if not problem:
        yield ok("Port", f"{there} is free; the server does not run yet")
        return
    answer = machine.health(f"{local_url(settings)}/health")
    if answer:
        state = "ready" if answer["ready"] else answer.get("status", "not ready")
        yield ok(
            "Port", f"localwhisper {answer.get('version', '')} runs on {there}: {state}, {answer.get('model', '')}"
        )
    elif answer is None and "in use" not in problem.lower():
        yield fault("Port", f"cannot listen on {there}: {problem}", "--host 127.0.0.1, or an address of this machine")
    elif machine.platform == "darwin" and settings.port == 5000:  # noqa: PLR2004 - AirPlay's, and our default
        yield fault(
            "Port",
            "5000 is taken, on a Mac mostly by AirPlay Receiver",
            "System Settings > General > AirDrop & Handoff: turn AirPlay Receiver off, or --port 5001",
        )
    else:
        who = (
            "ss -ltnp"
            if machine.platform == "linux"
            else "lsof -i"
            if machine.platform == "darwin"
            else "netstat -abno"
        )
        yield fault("Port", f"{there} is taken by another program ('{who}' shows it)", f"--port {settings.port + 1}")


def local_url(settings: Settings) -> str:
    """Return the server's address as this machine itself reaches it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return (
        f"{_scheme(settings)}://[{host}]:{settings.port}"
        if ":" in host
        else f"{_scheme(settings)}://{host}:{settings.port}"
    )


def _scheme(settings: Settings) -> str:
    return "https" if settings.certfile else "http"


def check_addresses(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Say under which addresses other machines reach the server."""
    if not _listens_outside(settings):
        yield ok(
            "Addresses", f"{local_url(settings)}/v1, from this machine alone", "For the whole network: --host 0.0.0.0"
        )
        return
    urls = [f"{_scheme(settings)}://{address}:{settings.port}/v1" for address in lan_addresses(machine)]
    if settings.host not in {"0.0.0.0", "::"}:
        urls = [f"{local_url(settings)}/v1"]
    if is_wsl(machine) and wsl_mode(machine) == "nat":
        yield ok(
            "Addresses",
            f"{_scheme(settings)}://ADDRESS-OF-WINDOWS:{settings.port}/v1, which 'ipconfig' in Windows shows",
        )
    elif urls:
        yield ok("Addresses", f"OPENAI_BASE_URL={urls[0]}", *(f"or {url}" for url in urls[1:]))
    else:
        yield warning("Addresses", "this machine is on no network", "Plug the cable in, or join the Wi-Fi.")


def lan_addresses(machine: Machine) -> list[str]:
    """Return the IPv4 addresses under which a home network knows this machine, virtual bridges last."""
    found = []
    for text in machine.addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if address.version == 4 and not (address.is_loopback or address.is_link_local):  # noqa: PLR2004 - IPv4
            found.append(text)
    return sorted(found, key=_is_virtual)


def check_firewall(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Say whether a firewall stands before the port, as far as can be seen without being root."""
    if not _listens_outside(settings):
        return
    port = settings.port
    if machine.platform == "win32":
        yield warning(
            "Firewall",
            "Windows' own lets nobody in unasked",
            "Paste into PowerShell (as administrator), once:",
            f"    {_windows_rule(port)}",
        )
    elif machine.platform == "darwin":
        yield ok("Firewall", "if macOS asks whether Python may accept connections: allow it")
    elif "enabled=yes" in (machine.read("/etc/ufw/ufw.conf") or "").lower():
        yield warning(
            "Firewall",
            "ufw is on",
            "If it is not open yet:",
            f"    sudo ufw allow from {_subnet(machine)} to any port {port} proto tcp",
        )
    elif (state := machine.run(["firewall-cmd", "--state"])) and state.text.strip() == "running":
        yield warning(
            "Firewall",
            "firewalld is on",
            "If it is not open yet:",
            f"    sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload",
        )
    elif not is_wsl(machine):
        yield ok("Firewall", "neither ufw nor firewalld is on")


def _subnet(machine: Machine) -> str:
    address = next(iter(lan_addresses(machine)), "192.168.0.0")
    return str(ipaddress.ip_network(f"{address}/24", strict=False))


def check_name(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Say whether the machine can be called by a name that stays when its address changes."""
    if not _listens_outside(settings):
        return
    name = machine.hostname.partition(".")[0]
    url = f"{_scheme(settings)}://{name}.local:{settings.port}/v1"
    if is_wsl(machine) and wsl_mode(machine) != "mirrored":
        yield ok(
            "Name", f"Windows answers to its own name: {_scheme(settings)}://NAME-OF-THE-PC.local:{settings.port}/v1"
        )
    elif machine.platform in {"darwin", "win32"} or is_wsl(machine):
        yield ok("Name", f"{url}, whatever the address is")
    elif machine.find("/run/avahi-daemon/socket"):
        yield ok("Name", f"{url}, whatever the address is (Avahi)")
    else:
        yield warning(
            "Name",
            "nothing here answers to a name, and addresses change",
            f"For {url}: sudo apt install avahi-daemon",
            "Or let your router always give this machine the same address.",
        )


def check_clock(machine: Machine) -> Iterable[Finding]:
    """Say whether the clock is right; downloads over HTTPS need it, and WSL's stops while the PC sleeps."""
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(machine.now))
    mend = "sudo hwclock -s" if is_wsl(machine) else "sudo timedatectl set-ntp true"
    if machine.now < machine.installed_at - SOON:
        yield fault("Clock", f"{said} is before this program was installed", f"    {mend}")
        return
    output = machine.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if machine.platform == "linux" and output is not None and output.text.strip() == "no":
        yield warning("Clock", f"{said}, not checked against the network's", f"    {mend}")
    else:
        yield ok("Clock", said)


def _listens_outside(settings: Settings) -> bool:
    try:
        return not ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        return settings.host != "localhost"


def _is_virtual(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]) in VIRTUAL
    except ValueError:
        return False
