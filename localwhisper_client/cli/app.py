"""The command `localwhisper`: its subcommands, each from a module of its own."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from localwhisper_client import __version__
from localwhisper_client.cli import demo, run, skill, status, transcribe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's signature
    if wanted:
        typer.echo(f"localwhisper {__version__}")
        raise typer.Exit


@app.callback()
def localwhisper(
    version: Annotated[  # noqa: ARG001, FBT002 - its callback reads it; a flag is a boolean
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Speech to text on your own machine, with OpenAI's API.

    **First steps**

    - `localwhisper demo` starts a server and transcribes a voice message
    - `localwhisper status` shows whether your server is up
    - `localwhisper transcribe voice.ogg` writes `voice.txt`
    - `localwhisper run -- python bot.py` runs your bot, and your server answers it

    **Settings** (environment variables)

    - `LOCALWHISPER_BASE_URL` is the server, such as `http://pc:5000/v1`, or `auto` to find it; default: this machine
    - `LOCALWHISPER_POLICY` is `local_only` (the default), `wait` or `cloud`; only under `cloud` may audio leave the LAN
    """
    # A file's name may have letters that the terminal's encoding, or even UTF-8, lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


app.command()(transcribe.transcribe)
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(run.run)
app.command()(status.status)
app.command()(status.stats)
app.command()(status.discover)
app.command()(status.wake)
app.command()(demo.demo)
app.add_typer(skill.app, name="skill")
