"""The command `localwhisper`: its entry point, which says what to install where the command's parts are missing."""

import sys


def main() -> None:
    """Run the command; exits by SystemExit."""
    try:
        from localwhisper_client.cli.app import app  # noqa: PLC0415 - a client install has no typer
    except ModuleNotFoundError as missing:
        sys.exit(
            f"localwhisper: the command needs {missing.name}. Install it with: pip install 'localwhisper-lan[cli]'"
        )
    app()
