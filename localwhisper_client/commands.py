"""What the command `localwhisper` can do, one function a subcommand."""

from typing import Annotated

import typer
from rich.console import Console

from localwhisper_client import demo as demonstration
from localwhisper_client._version import __version__

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer hands it in so
    if wanted:
        print(f"localwhisper {__version__}")  # noqa: T201 - that is what was asked for
        raise typer.Exit


@app.callback()
def localwhisper(
    version: Annotated[  # noqa: FBT002 - a flag is a boolean
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Speech to text on your own machine, with OpenAI's API."""


@app.command()
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
