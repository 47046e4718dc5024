"""The commands `status`, `stats`, `discover` and `wake`, which show, find and wake servers, and show the ledger."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from localwhisper_client.cli import stop
from localwhisper_client.cloud.ledger import Day, Ledger
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.lan import discovery, health
from localwhisper_client.lan import wake as waking
from localwhisper_client.routing.policy import Policy
from localwhisper_client.settings import Settings, ledger_path
from localwhisper_client.shared import install_command

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
BAR = 30
TOTALS = ("calls", "unknown_calls", "lan_seconds", "cloud_seconds", "cost_usd", "saved_usd")
COLUMNS = ("server", "state", "breaker", "answers in", "model", "device", "queue")
NONE_FOUND = "No server announced itself. Start one with: localwhisper-server --host 0.0.0.0 --announce"


def status(as_json: Json = False) -> None:  # noqa: FBT002 - a flag
    """Show each server on the LAN: whether it is ready, how fast it answers, what is in its queue.

    - `localwhisper status`
    - `LOCALWHISPER_BASE_URL=http://pc:5000/v1 localwhisper status --json`

    Exit code: 0 if at least one server is ready, 1 if none is, 2 if a setting is wrong.
    """
    try:
        settings = Settings.load(os.environ)
        servers = _servers(settings)
    except ConfigurationError as wrong:
        stop("status", str(wrong), 2)
    policy = settings.policy or Policy.LOCAL_ONLY
    if as_json:
        typer.echo(json.dumps({"policy": policy, "servers": [asdict(server) for server in servers]}))
    else:
        show_servers(Console(highlight=False), servers, policy)
    raise typer.Exit(0 if _any_ready(servers) else 1)


def _servers(settings: Settings) -> list[health.ServerStatus]:
    """Return the state of each server that the settings name, those found on the network among them."""
    urls: list[str] = []
    for url in settings.local_base_urls:
        try:
            urls += discovery.search() if url == "auto" else [url]
        except OSError as failure:
            typer.echo(f"Cannot search for servers, the network is down: {failure.strerror or failure}", err=True)
    return [health.status(url, settings.local_api_key, settings.connect_timeout) for url in urls]


def _any_ready(servers: Sequence[health.ServerStatus]) -> bool:
    return any(server.state is health.ServerState.READY for server in servers)


def show_servers(console: Console, servers: Sequence[health.ServerStatus], policy: Policy) -> None:
    """Print a table of the servers, what to do about those that are not ready, and what the policy means."""
    # An address is never cut, so that it can be copied.
    columns = [Column(name, no_wrap=name in ("server", "state")) for name in COLUMNS]
    columns[0].min_width = max((len(server.url) for server in servers), default=0)
    table = Table(*columns, box=None, pad_edge=False, collapse_padding=True)
    for server in servers:
        latency = "" if server.latency is None else f"{server.latency * 1000:.0f} ms"
        queue = "" if server.requests is None else f"{server.requests} calls, {server.queue_seconds or 0:.1f} s"
        breaker = "closed" if server.state in health.CLOSES_BREAKER else "opens"
        table.add_row(server.url, server.state, breaker, latency, server.model, server.device, queue)
    console.print(table if servers else NONE_FOUND, soft_wrap=not servers)
    if any(server.state not in health.CLOSES_BREAKER for server in servers):
        console.print("Clients do not call a server whose breaker opens, until it is ready again.")
    for server in servers:
        if server.advice:
            console.print(f"{server.url}: {server.advice}", markup=False, soft_wrap=True)
    leaves = "calls go to OpenAI when the LAN server cannot take them"
    console.print(f"Policy {policy}: {leaves if policy.leaves_lan else 'nothing leaves the LAN'}.", markup=False)


def stats(
    days: Annotated[int, typer.Option(min=1, help="How many days back.")] = 30,
    as_json: Json = False,  # noqa: FBT002 - a flag
) -> None:
    """Show the minutes transcribed on each day, and the money spent and saved.

    - `localwhisper stats --days 7`

    The numbers are from the ledger, which clients write if LOCALWHISPER_LEDGER is 1 or a path. It has no text and no
    file names.

    Exit code: 0, or 1 if there is no ledger or it cannot be read.
    """
    # A ledger that is switched off now may still have older calls.
    path = ledger_path(os.environ.get("LOCALWHISPER_LEDGER", ""), os.environ) or ledger_path("1", os.environ)
    if path is None or not path.exists():
        stop("stats", f"there is no ledger yet at {path}. Set LOCALWHISPER_LEDGER=1 where your bot runs.", 1)
    since = datetime.now(UTC) - timedelta(days=days)
    try:
        with closing(Ledger(path)) as ledger:
            rows = ledger.days(since.timestamp())
    except (OSError, sqlite3.Error) as failure:
        stop("stats", f"{path} cannot be read: {failure}", 1)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    _chart(Console(highlight=False), rows, days)


def _chart(console: Console, rows: Sequence[Day], days: int) -> None:
    longest = max((row.lan_seconds + row.cloud_seconds for row in rows), default=0) or 1
    for row in rows:
        lan, cloud = round(BAR * row.lan_seconds / longest), round(BAR * row.cloud_seconds / longest)
        bar = f"[green]{'█' * lan}[/green][yellow]{'▒' * cloud}[/yellow]{' ' * (BAR - lan - cloud)}"
        console.print(f"{row.day}  {bar} {(row.lan_seconds + row.cloud_seconds) / 60:7.1f} min  {row.calls} calls")
    total = {name: sum(getattr(row, name) for row in rows) for name in TOTALS}
    console.print(
        f"Last {days} days: {total['calls']} calls; [green]█[/green] {total['lan_seconds'] / 60:.1f} min on the "
        f"LAN, [yellow]▒[/yellow] {total['cloud_seconds'] / 60:.1f} min in the cloud.",
        soft_wrap=True,
    )
    console.print(f"Spent ${total['cost_usd']:.2f}, saved ${total['saved_usd']:.2f}.")
    if total["unknown_calls"]:
        console.print(
            f"Not in these sums are calls of unknown length or cost: {total['unknown_calls']}. "
            f"To measure lengths where your bot runs: {install_command('transcode')}.",
            markup=False,
            soft_wrap=True,
        )


def discover(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to listen.")] = 3.0,
    as_json: Json = False,  # noqa: FBT002 - a flag
) -> None:
    """Find the servers on this network that were started with --announce.

    - `localwhisper discover --seconds 10`

    Exit code: 0 if there is one, 1 if there is none, 2 if the search is not possible.
    """
    try:
        found = discovery.browse(seconds, everyone=True)
    except (ConfigurationError, OSError) as failure:
        stop("discover", str(failure), 2)
    show_found(found, as_json=as_json)


def show_found(found: Sequence[discovery.Found], *, as_json: bool) -> None:
    """Print the servers that were found, and exit: 0 if there is one, 1 if there is none."""
    if as_json:
        typer.echo(json.dumps([asdict(server) for server in found]))
    elif found:
        table = Table("name", "address", "model", "version", box=None)
        for server in found:
            table.add_row(server.name, "\n".join(server.urls), server.model, server.version)
        console = Console(highlight=False)
        console.print(table)
        console.print("With LOCALWHISPER_BASE_URL=auto a client finds them by itself.")
    else:
        typer.echo(NONE_FOUND)
    raise typer.Exit(0 if found else 1)


def wake(
    machine: Annotated[
        str | None, typer.Argument(metavar="[MAC[@HOST]]", help="Default: LOCALWHISPER_WAKE.", show_default=False)
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until a server is ready.")] = 0.0,
) -> None:
    """Wake a machine on the LAN that is switched off (Wake-on-LAN).

    - `localwhisper wake AA:BB:CC:DD:EE:FF --wait 120`

    Exit code: 0 if the packet was sent (with --wait: if a server is ready), 1 otherwise, 2 for a wrong address.
    """
    name, address = ("MAC", machine) if machine else (waking.VARIABLE, os.environ.get(waking.VARIABLE, "").strip())
    if not address:
        stop("wake", f"which machine? Give the address of its network card, or set {waking.VARIABLE}.", 2)
    try:
        target = waking.parse(address, name)
        settings = Settings.load(os.environ)
        waking.send(target)
    except ConfigurationError as wrong:
        stop("wake", str(wrong), 2)
    except OSError as failure:
        stop("wake", f"the packet could not be sent to {target.host}: {failure.strerror or failure}", 1)
    typer.echo(f"Sent a packet to {target}.")
    if not wait:
        return
    until = time.monotonic() + wait
    while not _any_ready(_servers(settings)):
        if time.monotonic() >= until:
            stop("wake", f"no server was ready within {wait:.0f} s", 1)
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))
    typer.echo("A server is ready.")
