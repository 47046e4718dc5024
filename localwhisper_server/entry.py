"""The entry point of `localwhisper-server`, which says what to install where the server's parts are missing."""

import sys


def main() -> None:
    """Run the command; exits by SystemExit."""
    try:
        from localwhisper_server.cli import main as run  # noqa: PLC0415 - a client install has none of it
    except ModuleNotFoundError as missing:
        sys.exit(
            f"localwhisper-server: the server needs {missing.name}. "
            "Install it with: pip install 'localwhisper-lan[server]'"
        )
    run()
