"""`localwhisper-server`: options in, a running server out, one clear line when it cannot; and its other commands."""

import argparse
import contextlib
import errno
import inspect
import logging
import os
import signal
import socket
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import dotenv
from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from localwhisper_client._version import __version__
from localwhisper_server import server
from localwhisper_server.operations import logs as observe
from localwhisper_server.operations import logstream
from localwhisper_server.operations.doctor import doctor
from localwhisper_server.operations.doctor import machine as doctor_machine
from localwhisper_server.operations.service import control, settings_file, unit
from localwhisper_server.settings import Settings, written

logger = logging.getLogger(__name__)

# sysexits.h, where it has a number for the case.
EX_USAGE, EX_DATAERR, EX_UNAVAILABLE, EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_NOPERM, EX_CONFIG = (
    64,
    65,
    69,
    70,
    71,
    73,
    77,
    78,
)
# How long the log may take to be written out at the end.
LOG_SECONDS = 1.0

PROGRAM = "localwhisper-server"
COMMANDS = f"""\
other commands:
  {PROGRAM} doctor [--json]      look this machine over: what is missing, and how to mend it
  {PROGRAM} service install      keep the server running, from the next start of the machine on
  {PROGRAM} service status | logs [--follow] | uninstall
  {PROGRAM} --version
"""
DOCTOR_HELP = """Look this machine over and say what is missing for the server, each with its remedy.

It looks for the server that these options describe, or else for the one that `service install` set up, and ends by
sending it a voice message. Exit status: 0 if nothing is at fault, 1 otherwise."""
INSTALL_HELP = """Install the server as a service of this user, start it, and start it again whenever it ends.

Options given here are written into the service's settings file, where they can be changed later. Repeating the
command is safe: it updates what changed and restarts the service."""
SERVICE_HELP = f"""\
usage: {PROGRAM} service install [options of {PROGRAM}]
       {PROGRAM} service status
       {PROGRAM} service logs [--follow]
       {PROGRAM} service uninstall
"""


# What the value of an option is called in --help, by its Python type.
VALUES = {int: "N", float: "N", Path: "PATH"}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are a line, with the exit status of every other wrong setting."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}. `{self.prog} --help` lists the options.", EX_USAGE)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits by SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"{PROGRAM} {__version__}")
    elif arguments[:1] == ["doctor"]:
        sys.exit(_doctor(arguments[1:]))
    elif arguments[:1] == ["service"]:
        sys.exit(_service(arguments[1:]))
    else:
        parser = _parser(PROGRAM, f"{inspect.cleandoc(Settings.__doc__ or '')}\n\n{COMMANDS}")
        parser.add_argument("--env-file", metavar="FILE", help="Take settings from a file of NAME=value lines, too.")
        _serve(_settings(parser, arguments))


def _serve(settings: Settings) -> None:
    # The voice detector's runtime (onnxruntime, from 1.32 on) reports to its maker. Nothing leaves this lan.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Late, since it loads the engine: doctor has to work just where that fails.
    from localwhisper_server.whisper import weights  # noqa: PLC0415

    # Until the server takes its signals itself: a stop that was asked for is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    clean = False
    try:
        weights.check_name(settings.model)  # before anything listens
        with _logging(settings), _bound(settings) as listening:
            clean = server.run(settings, listening, environ=os.environ)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (server.Misconfigured, weights.UnknownModel) as failure:
        _fail(str(failure), EX_CONFIG)
    except weights.ModelDamaged as failure:
        _fail(str(failure), EX_DATAERR)
    except weights.ModelError as failure:
        _fail(str(failure), EX_UNAVAILABLE)
    except OSError as failure:
        _fail(f"the model could not be loaded: {failure}", _code(failure))
    except (RuntimeError, ValueError, MemoryError) as failure:
        hint = (
            ""
            if settings.device == "cpu"
            else f" `{PROGRAM} doctor` looks for the reason; --device cpu does without a GPU."
        )
        reason = str(failure).rstrip(".") or type(failure).__name__
        _fail(f"the model could not be loaded: {reason}.{hint}", EX_SOFTWARE)
    try:
        sys.stderr.flush()
    except OSError:  # a full disk; the interpreter would fail at the same and make it the exit status
        clean = False
    if not clean:
        # Or a batch is in flight in a thread that cannot be stopped: its memory would be pulled from under it.
        os._exit(0)


@contextlib.contextmanager
def _logging(settings: Settings) -> Iterator[None]:
    """Log to standard error, and to the file, as long as the block runs; neither is ever waited for."""
    file, trouble = _log_file(settings)
    streams = [sys.stderr] if file is None else [sys.stderr, cast("TextIO", file)]
    logs = [logstream.NonBlockingStream(stream) for stream in streams]
    observe.configure_logging(
        settings.log_level, cast("list[TextIO]", logs), log_format=settings.log_format, quiet=settings.quiet
    )
    if trouble:
        logger.warning("%s", trouble)
    if file is not None:
        logger.info("the log is kept in %s", file.path)
    try:
        yield
    finally:
        for log in logs:
            log.finish(LOG_SECONDS)
        if file is not None:
            file.close()


def _log_file(settings: Settings) -> tuple[logstream.RotatingFile | None, str]:
    """Open the file for the log, where there is to be one; where nobody asked for it, a failure is only reported."""
    chosen = settings.log_file
    if chosen == "none" or (chosen == "auto" and not settings.port):
        return None, ""
    path = observe.default_log_file(settings.port) if chosen == "auto" else Path(chosen).expanduser()
    try:
        if chosen == "auto":
            path.parent.mkdir(parents=True, exist_ok=True)
        return logstream.RotatingFile(path, observe.opening_line(settings.log_format)), ""
    except OSError as failure:
        trouble = f"cannot write the log to {path}: {failure.strerror}. --log-file takes another place, or none."
        if chosen != "auto":
            _fail(trouble, _code(failure))
        return None, trouble


def _bound(settings: Settings) -> socket.socket:
    """Return the listening socket, or say why there is none."""

    where = f"{settings.host}:{settings.port}"
    try:
        return server.listen(settings.host, settings.port)
    except OSError as failure:
        hint = {
            errno.EADDRINUSE: "Is another server running? --port takes another number, 0 any free one.",
            errno.EACCES: "Ports below 1024 are for the system; --port takes another number.",
            errno.EADDRNOTAVAIL: "It is no address of this machine; --host takes one, 0.0.0.0 means all.",
        }.get(failure.errno or 0, "Is --host right?")
        _fail(f"cannot listen on {where}: {failure.strerror}. {hint}", _code(failure))


def _code(failure: OSError) -> int:
    """Return the exit code for an error of the operating system."""
    if failure.errno in (errno.EACCES, errno.EPERM):
        return EX_NOPERM
    return EX_CANTCREAT if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else EX_OSERR


def _doctor(arguments: list[str]) -> int:
    parser = _parser(f"{PROGRAM} doctor", DOCTOR_HELP)
    parser.add_argument("--json", action="store_true", help="Say it as JSON.")
    parser.add_argument("--env-file", metavar="FILE", help="Settings of the server to look for.")
    # Unless told otherwise, the server in question is the one that runs as a service.
    try:
        service_file = unit.describe(control.this_place(os.environ)).settings
    except unit.Unsupported:
        service_file = None
    settings = _settings(parser, arguments, default_file=service_file)
    machine = doctor_machine.this_machine(os.environ)
    options = parser.parse_args(arguments)
    return doctor.run(machine, settings, as_json=options.json, out=sys.stdout, progress=sys.stderr)


def _service(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        print(SERVICE_HELP, end="")
        return 0
    act: dict[str, Any] = {"run": control.run, "say": print}
    try:
        place = control.this_place(os.environ)
        service = unit.describe(place)
        match arguments:
            case ["install", *rest]:
                settings = _settings(_parser(f"{PROGRAM} service install", INSTALL_HELP), rest)
                status = control.install(service, place, _assignments(settings), **act)
            case ["uninstall"]:
                status = control.uninstall(service, **act)
            case ["status"]:
                status = control.show(service, service.status, **act)
            case ["logs"]:
                status = control.show(service, service.logs, **act)
            case ["logs", "--follow" | "-f"]:
                status = control.show(service, service.follow, **act)
            case _:
                print(SERVICE_HELP, end="", file=sys.stderr)
                status = EX_USAGE
    except unit.Unsupported as failure:
        _fail(str(failure), EX_UNAVAILABLE)
    except ValueError as failure:
        _fail(str(failure), EX_USAGE)
    except OSError as failure:
        _fail(f"{failure.filename}: {failure.strerror}", EX_OSERR)
    return status


def _assignments(settings: Settings) -> dict[str, str]:
    """Return what was set, by the command line or the environment, as variables of the settings file."""
    return {settings_file.variable(name): written(getattr(settings, name)) for name in settings.model_fields_set}


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=program,
        usage=f"{program} [options]",
        description=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_option(parser: argparse.ArgumentParser, *names: str, **option: Any) -> argparse.Action:
    """Add an option as people read it: pydantic-settings would show Python's types and the source of its defaults."""
    field = Settings.model_fields[option["dest"]]
    default = written(field.default)
    # Ranges are described, not listed; no is what a flag means until it is given.
    said = default and default != "false" and not isinstance(field.default, tuple)
    option["help"] = f"{field.description} (default: {default})" if said else field.description
    if option.get("metavar"):
        kinds = [kind for kind in typing.get_args(field.annotation) or (field.annotation,) if isinstance(kind, type)]
        choices = typing.get_origin(field.annotation) is typing.Literal
        option["metavar"] = (
            "|".join(map(str, typing.get_args(field.annotation)))
            if choices
            else next((VALUES[kind] for kind in kinds if kind in VALUES), "TEXT")
        )
    return parser.add_argument(*names, **option)


def _settings(parser: argparse.ArgumentParser, arguments: list[str], *, default_file: Path | None = None) -> Settings:
    """Read the settings from the command line, then the environment, then the file named by --env-file."""
    source = CliSettingsSource[argparse.ArgumentParser](Settings, root_parser=parser, add_argument_method=_add_option)
    known = vars(parser.parse_args(arguments))
    file = Path(known["env_file"]) if known.get("env_file") else None
    if file is not None and not file.is_file():
        _fail(f"--env-file: there is no file {file}", EX_USAGE)
    if "env_file" in known and (file or default_file):
        # As systemd does with its EnvironmentFile, so that HF_HOME and the like may stand in it, too.
        dotenv.load_dotenv(file or default_file, override=False, interpolate=False)
    try:
        return CliApp.run(Settings, cli_args=arguments, cli_settings_source=source)
    except (ValidationError, SettingsError) as failure:
        _fail(_explain(failure), EX_USAGE)


def _explain(failure: ValidationError | SettingsError) -> str:
    if isinstance(failure, SettingsError):
        return str(failure)
    return "; ".join(
        f"--{'.'.join(map(str, error['loc'])).replace('_', '-')}: {error['msg'].removeprefix('Value error, ')}"
        for error in failure.errors()
    )


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # a full disk under standard error must not hide the code
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
