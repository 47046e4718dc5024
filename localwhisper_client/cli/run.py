"""`localwhisper run`: starts a program so that its speech-to-text goes home."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, NoReturn

import typer

from localwhisper_client.errors import ConfigurationError
from localwhisper_client.patch import installation
from localwhisper_client.settings import Settings

# What a shell says of a program that cannot be run, and of one that is not there.
CANNOT_RUN, NOT_FOUND = 126, 127


def run(command: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGUMENT]...", show_default=False)]) -> None:
    """Run a program unchanged, its speech-to-text answered on the LAN.

    Whatever it does with the `openai` package goes where it always went; only transcriptions and translations go to
    LOCALWHISPER_BASE_URL. The Python programs it starts are served too. Exit code and signals are the program's own.

    - `localwhisper run -- python bot.py`
    - `LOCALWHISPER_POLICY=cloud localwhisper run -- uvicorn app:app`
    """
    try:
        Settings.load(os.environ)
    except ConfigurationError as wrong:
        _stop(str(wrong), 2)
    environment = installation.environment(os.environ)
    # Nothing of ours stays behind: neither a process between the program and its signals, nor text unsaid.
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform == "win32":
            raise typer.Exit(subprocess.call(command, env=environment))  # noqa: S603 - that is the command's purpose
        os.execvpe(command[0], command, environment)  # noqa: S606 - the same
    except FileNotFoundError:
        _stop(f"there is no program {command[0]}", NOT_FOUND)
    except OSError as failure:
        _stop(f"{command[0]}: {failure.strerror}", CANNOT_RUN)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"localwhisper run: {message}", err=True)
    raise typer.Exit(code)
