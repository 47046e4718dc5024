"""The checks of the network: WSL, port, addresses, firewall, name, clock. Pure: facts in, findings out.

Source: Microsoft's page on WSL networking (https://learn.microsoft.com/windows/wsl/networking).
"""

import ipaddress
import time
from collections.abc import Iterable

from localwhisper_server.operations.doctor.machine import Machine
from localwhisper_server.operations.doctor.report import Finding, fault, ok, warning
from localwhisper_server.operations.host import is_wsl, server_url
from localwhisper_server.settings import Settings

# The addresses of WSL's NAT and of Docker's bridges; few home networks use this range.
VIRTUAL = ipaddress.ip_network("172.16.0.0/12")
RULE = "localwhisper"  # its name in Windows' firewall
DAY = 24 * 3600.0
SEE_WSL = "See docs/wsl2.md"


def check(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Make all checks of this module."""
    yield from check_wsl(machine, settings)
    yield from check_port(machine, settings)
    yield from check_addresses(machine, settings)
    if _listens_outside(settings):
        yield from check_firewall(machine, settings.port)
        yield _name(machine, settings)
    yield _clock(machine)


def check_wsl(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Check WSL's version, systemd in it, and its network."""
    if not is_wsl(machine.read):
        return
    if "wsl2" not in (machine.read("/proc/version") or "").lower():
        distribution = machine.environ.get("WSL_DISTRO_NAME", "Ubuntu")
        yield fault("WSL", "WSL 1 has no GPU", f"In PowerShell: wsl --set-version {distribution} 2")
        return
    if machine.find("/run/systemd/system"):
        yield ok("WSL", "WSL 2 with systemd")
    else:
        yield warning(
            "WSL", "WSL 2 without systemd: the server cannot be a service", "To turn it on: see docs/troubleshooting.md"
        )
    yield _wsl_network(machine, settings)


def _wsl_network(machine: Machine, settings: Settings) -> Finding:
    mode, port = wsl_mode(machine), settings.port
    if not _listens_outside(settings):
        return ok("WSL network", f"{mode}; nothing to do while only this machine uses the server")
    if mode == "nat":
        return _nat(machine, port)
    if mode != "mirrored":
        return warning("WSL network", f"'{mode}': other machines cannot reach the server", SEE_WSL)
    rule = machine.run(
        ["powershell.exe", "-NoProfile", "-Command", f"(Get-NetFirewallHyperVRule -Name {RULE}).LocalPorts"]
    )
    if rule is not None and rule.status == 0 and str(port) in rule.text.split():
        return ok("WSL network", f"mirrored, and Windows' firewall has port {port} open")
    return warning("WSL network", f"mirrored, but Windows' firewall does not have port {port} open", SEE_WSL)


def _nat(machine: Machine, port: int) -> Finding:
    inside = next((address for address in machine.addresses if _is_virtual(address)), "ADDRESS-OF-WSL")
    proxies = machine.run(["netsh.exe", "interface", "portproxy", "show", "v4tov4"])
    target = _forwarded_to(proxies.text if proxies else "", port)
    if target == inside:
        return ok("WSL network", f"NAT, and Windows forwards port {port} to {inside}")
    return warning(
        "WSL network",
        f"NAT: Windows forwards port {port} to {target}, but WSL is at {inside} now"
        if target
        else f"NAT: the rest of your network cannot reach {inside}, an address that changes when WSL starts",
        f"On Windows 11, use mirrored mode: {SEE_WSL.lower()}",
        "On Windows 10, paste this into PowerShell as administrator, each time that WSL has started:",
        f"    netsh interface portproxy add v4tov4 listenaddress=0.0.0.0 listenport={port} "
        f"connectaddress={inside} connectport={port}",
        f"    netsh advfirewall firewall add rule name={RULE} dir=in action=allow protocol=TCP localport={port} "
        "profile=private remoteip=localsubnet",
    )


def _forwarded_to(table: str, port: int) -> str | None:
    """Return where a port goes by netsh's table, whose lines are "address port address port"."""
    for line in table.splitlines():
        columns = line.split()
        if len(columns) == 4 and columns[1] == str(port):  # noqa: PLR2004 - see above
            return columns[2]
    return None


def wsl_mode(machine: Machine) -> str:
    """Return "nat", "mirrored", "none" or "virtioproxy"; judged by the addresses if WSL is too old to say."""
    output = machine.run(["wslinfo", "--networking-mode"])
    if output is not None and output.status == 0 and output.text.strip():
        return output.text.strip().lower()
    return "nat" if any(_is_virtual(address) for address in machine.addresses) else "mirrored"


def check_port(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Check that the port is free, or that this server has it."""
    if settings.port == 0:
        yield warning("Port", "0: another one at each start, so that no bot can know it", "--port 5000")
        return
    problem = machine.bind(settings.host, settings.port)
    there = f"{settings.host}:{settings.port}"
    if not problem:
        yield ok("Port", f"{there} is free; the server is not running")
        return
    answer = machine.health(local_url(settings))
    if answer:
        state = "ready" if answer["ready"] else answer.get("status", "not ready")
        version, model = answer.get("version", ""), answer.get("model", "")
        yield ok("Port", f"localwhisper {version} runs on {there}: {state}, {model}")
    elif answer is None and "in use" not in problem.lower():
        yield fault("Port", f"cannot listen on {there}: {problem}", "--host 127.0.0.1, or an address of this machine")
    elif machine.platform == "darwin" and settings.port == Settings.model_fields["port"].default:
        yield fault("Port", "5000 is taken, on a Mac mostly by AirPlay Receiver", "See docs/mac.md, or use --port 5001")
    else:
        shows = "ss -ltnp" if machine.platform == "linux" else "lsof -i"
        yield fault("Port", f"{there} is taken by another program ('{shows}' shows it)", f"--port {settings.port + 1}")


def local_url(settings: Settings) -> str:
    """Return the server's URL for programs on this machine, without /v1."""
    return _url(settings, {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host))


def _url(settings: Settings, host: str) -> str:
    return server_url(host, settings.port, tls=settings.certfile is not None)


def check_addresses(machine: Machine, settings: Settings) -> Iterable[Finding]:
    """Tell the addresses at which other machines reach the server."""
    if not _listens_outside(settings):
        url = f"{local_url(settings)}/v1"
        yield ok("Addresses", f"{url}, from this machine only", "For the whole network: --host 0.0.0.0")
        return
    every = settings.host in {"0.0.0.0", "::"}
    urls = [f"{_url(settings, address)}/v1" for address in (lan_addresses(machine) if every else [settings.host])]
    if is_wsl(machine.read) and wsl_mode(machine) == "nat":
        yield ok("Addresses", f"{_url(settings, 'ADDRESS-OF-WINDOWS')}/v1; 'ipconfig' in Windows shows the address")
    elif urls:
        yield ok("Addresses", f"OPENAI_BASE_URL={urls[0]}", *(f"or {url}" for url in urls[1:]))
    else:
        yield warning("Addresses", "this machine has no network", "Plug the cable in, or join the Wi-Fi.")


def lan_addresses(machine: Machine) -> list[str]:
    """Return this machine's IPv4 addresses on the network, those of virtual bridges last."""
    found = []
    for text in machine.addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if address.version == 4 and not (address.is_loopback or address.is_link_local):  # noqa: PLR2004 - IPv4
            found.append(text)
    return sorted(found, key=_is_virtual)


def check_firewall(machine: Machine, port: int) -> Iterable[Finding]:
    """Tell which firewall may close the port; without root, its rules cannot be read."""
    if machine.platform == "darwin":
        yield ok("Firewall", "if macOS asks whether Python may accept connections: allow it")
    elif "enabled=yes" in (machine.read("/etc/ufw/ufw.conf") or "").lower():
        yield warning("Firewall", "ufw is on", "To open the port: see docs/linux.md")
    elif (state := machine.run(["firewall-cmd", "--state"])) and state.text.strip() == "running":
        command = f"sudo firewall-cmd --permanent --add-port={port}/tcp && sudo firewall-cmd --reload"
        yield warning("Firewall", "firewalld is on", f"To open the port: {command}")
    elif not is_wsl(machine.read):
        yield ok("Firewall", "neither ufw nor firewalld is on")


def _name(machine: Machine, settings: Settings) -> Finding:
    """Tell the name by which others reach this machine whatever its address is."""
    name = machine.hostname.partition(".")[0]
    wsl, url = is_wsl(machine.read), f"{_url(settings, f'{name}.local')}/v1"
    if wsl and wsl_mode(machine) != "mirrored":
        return ok("Name", f"{_url(settings, 'NAME-OF-THE-PC.local')}/v1, with the name of the PC in Windows")
    if wsl or machine.platform == "darwin" or machine.find("/run/avahi-daemon/socket"):
        return ok("Name", f"{url}, whatever the address is")
    return warning("Name", "this machine has no name on the network", "See docs/finding-the-server.md")


def _clock(machine: Machine) -> Finding:
    """Check the clock: HTTPS needs it, and WSL's stops while the PC sleeps."""
    time_now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(machine.now))
    fix = "sudo hwclock -s" if is_wsl(machine.read) else "sudo timedatectl set-ntp true"
    if machine.now < machine.installed_at - DAY:
        return fault("Clock", f"{time_now} is before this program was installed", fix)
    output = machine.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if machine.platform == "linux" and output is not None and output.text.strip() == "no":
        return warning("Clock", f"{time_now}, not synchronised with the network", fix)
    return ok("Clock", time_now)


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
