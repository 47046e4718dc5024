"""The entry point of `localwhisper-server` and `python -m localwhisper_server`; it names a package that is missing."""

import signal
import sys

from localwhisper_client.shared import install_command


def main() -> None:
    """Run the command; exits by SystemExit."""
    if sys.platform == "win32":
        sys.exit("localwhisper-server runs on Linux, on macOS and in WSL 2, not on Windows itself: see docs/wsl2.md")
    # The import takes a second, in which Ctrl-C must not print a traceback.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(128 + signal.SIGINT))
    try:
        from localwhisper_server.cli import main as run  # noqa: PLC0415 - a client's environment cannot import it
    except ModuleNotFoundError as missing:
        sys.exit(f"localwhisper-server: the server needs {missing.name}. Install it with: {install_command('server')}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
