"""The command `localwhisper`: its entry point, which says what to install if a part of it is missing."""

import sys
from typing import NoReturn

from localwhisper_client.shared import install_command


def main() -> None:
    """Run the command; exits by SystemExit."""
    try:
        from localwhisper_client.cli.app import app  # noqa: PLC0415 - a client install has no typer
    except ModuleNotFoundError as missing:
        sys.exit(f"localwhisper: the command needs {missing.name}. Install it with: {install_command('cli')}")
    app()


def stop(command: str, message: str, code: int) -> NoReturn:
    """End a command with a line on standard error and this exit code."""
    sys.stderr.write(f"localwhisper {command}: {message}\n")
    sys.exit(code)
