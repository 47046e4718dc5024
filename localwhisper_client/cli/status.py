"""What shows the state of things: `status`, `stats`, `discover`, `wake`, `demo`."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

from localwhisper_client.cli import demo as demonstration
from localwhisper_client.cloud import ledger
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.lan import discovery, health
from localwhisper_client.lan import wake as waking
from localwhisper_client.routing.policy import Policy
from localwhisper_client.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
BAR = 30


def status(as_json: Json = False) -> None:  # noqa: FBT002 - a flag
    """Show each server on the LAN: whether it is well, how fast it answers, what waits in its queue.

    Exit code: 0 when one at least can take a call now, 1 when none can, 2 when a setting is wrong.
    """
    try:
        settings = Settings.load(os.environ)
        seen = [health.status(url, settings.local_api_key, settings.connect_timeout) for url in _urls(settings)]
    except ConfigurationError as wrong:
        _stop("status", str(wrong), 2)
    policy = settings.policy or Policy.LOCAL_ONLY
    if as_json:
        typer.echo(json.dumps({"policy": policy, "servers": [asdict(server) for server in seen]}))
    else:
        _show(Console(highlight=False), seen, policy)
    raise typer.Exit(0 if any(server.state is health.ServerState.READY for server in seen) else 1)


def _urls(settings: Settings) -> Sequence[str]:
    found: list[str] = []
    for url in settings.local_base_urls:
        try:
            found += discovery.search() if url == "auto" else [url]
        except OSError as failure:
            typer.echo(f"No server can be searched for, the network is down: {failure.strerror or failure}", err=True)
    return found


def _show(console: Console, seen: Sequence[health.ServerStatus], policy: Policy) -> None:
    if seen:
        # An address is never cut: it is what one copies.
        address = Column("server", no_wrap=True, min_width=max(len(server.url) for server in seen))
        state = Column("state", no_wrap=True)
        table = Table(address, state, "breaker", "answers in", "model", "device", "queue", box=None)
        for server in seen:
            latency = "" if server.latency is None else f"{server.latency * 1000:.0f} ms"
            queue = "" if server.requests is None else f"{server.requests} calls, {server.queue_seconds or 0:.1f} s"
            breaker = "closed" if server.state in health.CLOSES_BREAKER else "opens"
            table.add_row(server.url, server.state, breaker, latency, server.model, server.device, queue)
        console.print(table)
        if any(server.state not in health.CLOSES_BREAKER for server in seen):
            console.print("Where the breaker opens, calls pass a server by until it is well again.")
        for server in seen:
            if server.advice:
                console.print(f"{server.url}: {server.advice}", markup=False, soft_wrap=True)
    else:
        console.print("No server announced itself. Start one with: localwhisper-server --host 0.0.0.0 --announce")
    leaves = (
        "calls go to OpenAI when the LAN server cannot take them" if policy.leaves_lan else "nothing leaves the LAN"
    )
    console.print(f"Policy {policy}: {leaves}.", markup=False)


def stats(
    days: Annotated[int, typer.Option(min=1, help="How many days back.")] = 30,
    as_json: Json = False,  # noqa: FBT002 - a flag
) -> None:
    """Show the minutes that were transcribed by day, and the money spent and saved.

    Clients write this down where LOCALWHISPER_LEDGER is 1 or a path. It holds no words and no file names.
    """
    # Where nothing is written any more, what was written before can still be seen.
    path = ledger.named(os.environ.get("LOCALWHISPER_LEDGER", ""), os.environ) or ledger.default_path(os.environ)
    if not path.exists():
        _stop("stats", f"nothing is written down yet at {path}. Set LOCALWHISPER_LEDGER=1 where your bot runs.", 1)
    since = datetime.now(UTC) - timedelta(days=days)
    try:
        with ledger.Ledger.open(path) as book:
            rows = book.rows_by_day(since.timestamp())
    except (OSError, sqlite3.Error) as failure:
        _stop("stats", f"{path} cannot be read: {failure}", 1)
    if as_json:
        typer.echo(json.dumps([asdict(row) | {"day": row.day.isoformat()} for row in rows]))
        return
    _chart(Console(highlight=False), rows, days)


def _chart(console: Console, rows: Sequence[ledger.Day], days: int) -> None:
    lan, cloud = sum(row.lan_seconds for row in rows), sum(row.cloud_seconds for row in rows)
    longest = max((row.lan_seconds + row.cloud_seconds for row in rows), default=0) or 1
    for row in rows:
        ours = round(BAR * row.lan_seconds / longest)
        theirs = round(BAR * row.cloud_seconds / longest)
        minutes = (row.lan_seconds + row.cloud_seconds) / 60
        bar = f"[green]{'█' * ours}[/green][yellow]{'▒' * theirs}[/yellow]{' ' * (BAR - ours - theirs)}"
        console.print(f"{row.day}  {bar} {minutes:7.1f} min  {row.calls} calls")
    calls, unknown = sum(row.calls for row in rows), sum(row.unknown_calls for row in rows)
    console.print(
        f"Last {days} days: {calls} calls; [green]█[/green] {lan / 60:.1f} min on the LAN, "
        f"[yellow]▒[/yellow] {cloud / 60:.1f} min in the cloud."
    )
    console.print(f"Spent ${sum(row.cost_usd for row in rows):.2f}, saved ${sum(row.saved_usd for row in rows):.2f}.")
    if unknown:
        console.print(f"The length of {unknown} calls is unknown; minutes and money do not count them.")


def discover(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to listen.")] = 3.0,
    as_json: Json = False,  # noqa: FBT002 - a flag
) -> None:
    """Find the servers on this network that were started with --announce.

    Exit code: 0 when there is one, 1 when there is none.
    """
    try:
        found = discovery.browse(seconds, everyone=True)
    except (ConfigurationError, OSError) as failure:
        _stop("discover", str(failure), 2)
    if as_json:
        typer.echo(json.dumps([asdict(server) for server in found]))
    elif found:
        table = Table("name", "address", "model", "version", box=None)
        for server in found:
            table.add_row(server.name, "\n".join(server.urls), server.model, server.version)
        console = Console(highlight=False)
        console.print(table)
        console.print("LOCALWHISPER_BASE_URL=auto makes a client find them by itself.")
    else:
        typer.echo("No server announced itself. Start one with: localwhisper-server --host 0.0.0.0 --announce")
    raise typer.Exit(0 if found else 1)


def wake(
    machine: Annotated[
        str | None, typer.Argument(metavar="[MAC[@HOST]]", help="Default: LOCALWHISPER_WAKE.", show_default=False)
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until a server answers.")] = 0.0,
) -> None:
    """Wake the machine on the LAN (Wake-on-LAN).

    - `localwhisper wake AA:BB:CC:DD:EE:FF --wait 120`

    Exit code: 0 when the packet was sent (with --wait: when a server answered), 1 otherwise, 2 for a wrong address.
    """
    if not (machine or os.environ.get(waking.VARIABLE, "").strip()):
        _stop("wake", f"which machine? Name its network card's address, or set {waking.VARIABLE}.", 2)
    try:
        target = waking.parse(machine or os.environ.get(waking.VARIABLE, ""), "MAC" if machine else waking.VARIABLE)
        settings = Settings.load(os.environ)
        waking.send(target)
    except ConfigurationError as wrong:
        _stop("wake", str(wrong), 2)
    except OSError as failure:
        _stop("wake", f"the packet could not be sent to {target.host}: {failure.strerror or failure}", 1)
    typer.echo(f"Sent a packet to {target}.")
    if not wait:
        return
    until = time.monotonic() + wait
    while not any(
        health.status(url, settings.local_api_key, settings.connect_timeout).state is health.ServerState.READY
        for url in _urls(settings)
    ):
        if time.monotonic() >= until:
            _stop("wake", f"no server answered within {wait:.0f} s", 1)
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))
    typer.echo("A server is ready.")


def demo(
    model: Annotated[str, typer.Option(help="The model to serve.")] = "base",
) -> None:
    """Show it work: start a server, transcribe a voice message, stop the server, see the fallback answer."""
    console = Console(highlight=False)
    try:
        demonstration.run(console, model=model)
    except demonstration.DemoError as failure:
        Console(stderr=True, highlight=False).print(f"localwhisper demo: {failure}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _stop(command: str, message: str, code: int) -> NoReturn:
    typer.echo(f"localwhisper {command}: {message}", err=True)
    raise typer.Exit(code)
