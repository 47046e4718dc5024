"""`localwhisper-server`: options in, a running server out, one clear line when it cannot."""

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsError

from localwhisper_client._version import __version__
from localwhisper_server import models, observe, server
from localwhisper_server.config import Settings

# sysexits.h, where it has a number for the case.
EX_USAGE, EX_UNAVAILABLE, EX_SOFTWARE, EX_OSERR = 64, 69, 70, 71


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits by SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"localwhisper-server {__version__}")
        return
    try:
        settings = CliApp.run(Settings, cli_args=arguments)
    except (ValidationError, SettingsError) as failure:
        _fail(_explain(failure), EX_USAGE)
    observe.configure_logging(settings.log_level, log_format=settings.log_format)
    try:
        listening = server.listen(settings.host, settings.port)
    except OSError as failure:
        _fail(
            f"cannot listen on {settings.host}:{settings.port}: {failure.strerror}. "
            "Is another server running? --port takes another number, 0 any free one.",
            EX_OSERR,
        )
    # uvicorn raises the signal that stopped it once more when it is done; a stop that was asked for is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.run(settings, listening)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except models.ModelError as failure:
        _fail(str(failure), EX_UNAVAILABLE)
    except (RuntimeError, ValueError, OSError) as failure:
        _fail(f"the model could not be loaded: {failure}", EX_SOFTWARE)
    finally:
        listening.close()


def _explain(failure: ValidationError | SettingsError) -> str:
    if isinstance(failure, SettingsError):
        return str(failure)
    lines = (f"--{'.'.join(map(str, error['loc'])).replace('_', '-')}: {error['msg']}" for error in failure.errors())
    return "; ".join(lines)


def _fail(message: str, code: int) -> NoReturn:
    print(f"localwhisper-server: {message}", file=sys.stderr)
    sys.exit(code)
