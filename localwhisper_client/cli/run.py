"""`localwhisper run`: starts a program whose speech-to-text goes to the LAN server."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from localwhisper_client.cli import stop
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.patch import installation
from localwhisper_client.settings import Settings

# A shell's exit codes for a program that cannot be run, and for one that does not exist.
CANNOT_RUN, NOT_FOUND = 126, 127


def run(command: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGUMENT]", show_default=False)]) -> None:
    """Run a program unchanged; your server answers its speech-to-text.

    - `localwhisper run -- python bot.py`
    - `LOCALWHISPER_POLICY=cloud localwhisper run -- uvicorn app:app`

    Transcriptions and translations that the program asks of the `openai` package go to LOCALWHISPER_BASE_URL. All its
    other calls go where they always went. The same holds for the Python programs that it starts.

    Exit code: the program's own; 2 if a setting is wrong, 126 if the program cannot be run, 127 if it does not exist.
    """
    try:
        Settings.load(os.environ)
    except ConfigurationError as wrong:
        stop("run", str(wrong), 2)
    environment = installation.environment(os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform == "win32":
            raise typer.Exit(subprocess.call(command, env=environment))  # noqa: S603 - that is the command's purpose
        # The program replaces this process, so it gets every signal itself.
        os.execvpe(command[0], command, environment)  # noqa: S606 - the same
    except FileNotFoundError:
        stop("run", f"there is no program {command[0]}", NOT_FOUND)
    except OSError as failure:
        stop("run", f"{command[0]}: {failure.strerror}", CANNOT_RUN)
