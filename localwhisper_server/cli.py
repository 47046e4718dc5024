"""`localwhisper-server`: options in, a running server out, or one clear line that says why not; `doctor`; `service`."""

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import dotenv
from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from localwhisper_client import __version__
from localwhisper_client.shared import install_command
from localwhisper_server.operations import host, logs
from localwhisper_server.operations.doctor import doctor
from localwhisper_server.operations.doctor.machine import Machine
from localwhisper_server.operations.service import LOGS, STATUS, Service, settings_path
from localwhisper_server.settings import Settings, variable, written

logger = logging.getLogger(__name__)

PROGRAM = "localwhisper-server"
COMMANDS = f"""\
commands:
  {PROGRAM} doctor [--json]           check this machine, and name the page that says how to fix what is wrong
  {PROGRAM} service install           keep the server running, as a systemd service of this user
  {PROGRAM} service status
  {PROGRAM} service logs [--follow]
  {PROGRAM} service uninstall
  {PROGRAM} cluster up|status|down    the same app on Ray Serve, on several processes or machines: docs/scale.md
  {PROGRAM} cluster config            write the files for a Ray cluster or Kubernetes
  {PROGRAM} --version
"""
DOCTOR_HELP = """Check this machine for everything that the server needs, and name the page of docs/ for what is wrong.

The options are those of the server to check. Without options, it is the server that `service install` set up. The
last check sends a voice message to the server. Exit status: 0 if there is no fault, 1 otherwise."""
INSTALL_HELP = """Install the server as a systemd service of this user, and start it.

systemd starts it again whenever it ends, and when you log in. Options are written to the service's settings file,
which you can edit. You can repeat this command: it writes what changed and restarts the service."""

CLUSTER_HELP = """Run the same app on Ray Serve: an HTTP face, and replicas that hold a model and a queue each.

  cluster up      start Ray on this machine and the app on it, or update the app that runs there
  cluster status  show the replicas; exit status 0 if the app runs
  cluster down    let open requests finish, and end Ray
  cluster config  print Serve's configuration file; with --kuberay, a RayService for Kubernetes

`up` and `config` take the options of the server as well."""


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with the exit status of a wrong setting."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}. `{self.prog} --help` lists the options.", os.EX_USAGE)


def main(
    argv: Sequence[str] | None = None,
    *,
    serve: Callable[..., bool] | None = None,
    listen: Callable[[str, int], socket.socket] = host.listen,
    examine: Callable[..., int] = doctor.run,
    platform: str = sys.platform,
) -> None:
    """Run the command; exits by SystemExit. A test replaces `server.run`, its socket, the doctor and the platform."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"{PROGRAM} {__version__}")
    elif arguments[:1] == ["doctor"]:
        sys.exit(_doctor(arguments[1:], examine))
    elif arguments[:1] == ["service"]:
        sys.exit(_service(arguments[1:], platform))
    elif arguments[:1] == ["cluster"]:
        try:
            sys.exit(_cluster(arguments[1:]))
        except KeyboardInterrupt:
            _fail(f"interrupted; `{PROGRAM} cluster status` says what runs", 128 + signal.SIGINT)
    else:
        parser = _parser(PROGRAM, f"{inspect.cleandoc(Settings.__doc__ or '')}\n\n{COMMANDS}")
        parser.add_argument("--env-file", metavar="FILE", help="Also read settings from a file of NAME=value lines.")
        _serve(_settings(parser, arguments), serve, listen)


def _serve(settings: Settings, serve: Callable[..., bool] | None, listen: Callable[..., socket.socket]) -> None:
    # onnxruntime, which the voice detector runs on, sends telemetry from version 1.32 on. Nothing may leave the LAN.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Imported here because it loads the engine: `doctor` must also run where that fails.
    from localwhisper_server import server  # noqa: PLC0415 - only where it is needed, since it is slow to import
    from localwhisper_server.whisper import weights  # noqa: PLC0415 - only where it is needed, since it is slow to import

    # Until uvicorn takes the signals: a stop that was asked for is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    clean = False
    try:
        for model in settings.model:
            weights.check_name(model)  # before anything listens
        with _logging(settings) as finished, _bound(settings, listen) as listening:
            clean = (serve or server.run)(settings, listening, environ=os.environ)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (server.Misconfigured, weights.UnknownModel) as failure:
        _fail(str(failure), os.EX_CONFIG)
    except weights.ModelDamaged as failure:
        _fail(str(failure), os.EX_DATAERR)
    except weights.ModelError as failure:
        _fail(str(failure), os.EX_UNAVAILABLE)
    except OSError as failure:
        _fail(f"the model could not be loaded: {failure}", _code(failure))
    except (RuntimeError, ValueError, MemoryError) as failure:
        on_gpu = settings.device != "cpu"
        hint = f" `{PROGRAM} doctor` looks for the reason; --device cpu does not need a GPU." if on_gpu else ""
        reason = str(failure).rstrip(".") or type(failure).__name__
        _fail(f"the model could not be loaded: {reason}.{hint}", os.EX_SOFTWARE)
    clean = clean and all(finished)
    with contextlib.suppress(OSError):
        if clean:
            sys.stderr.flush()
            return
    # A thread is still in a batch or in a write, or the disk is full: do not wait for the thread, and do not let the
    # interpreter's own flush of standard error fail and set the exit status.
    os._exit(0)


@contextlib.contextmanager
def _logging(settings: Settings) -> Iterator[list[bool]]:
    """Log to standard error and to the log file while the block runs; see `logs.logging_to`."""
    targets, problem, file = [logs.console(sys.stderr, quiet=settings.quiet)], "", None
    if settings.log_file == "auto" and settings.port:
        file = logs.default_log_file(settings.port)
    elif settings.log_file not in {"auto", "none"}:
        file = Path(settings.log_file).expanduser()
    if file is not None:
        try:
            if settings.log_file == "auto":
                file.parent.mkdir(parents=True, exist_ok=True)
            targets.append(logs.rotating_file(file, settings.log_format))
        except OSError as failure:
            problem = f"cannot write the log to {file}: {failure.strerror}. --log-file sets another place, or none."
            if settings.log_file != "auto":
                _fail(problem, _code(failure))
    with logs.logging_to(targets, settings.log_level, settings.log_format) as finished:
        if problem:
            logger.warning("%s", problem)
        elif file is not None:
            logger.info("the log is kept in %s", file)
        yield finished


def _bound(settings: Settings, listen: Callable[[str, int], socket.socket]) -> socket.socket:
    """Return the listening socket, or exit with the reason why there is none."""
    try:
        return listen(settings.host, settings.port)
    except OSError as failure:
        hint = {
            errno.EADDRINUSE: "Is another server running? Set another port with --port; 0 picks a free one.",
            errno.EACCES: "Ports below 1024 need administrator rights; set another one with --port.",
            errno.EADDRNOTAVAIL: "This machine has no such address; --host 0.0.0.0 listens on all that it has.",
        }.get(failure.errno or 0, "Is --host right?")
        where = f"{settings.host}:{settings.port}"
        _fail(f"cannot listen on {where}: {failure.strerror}. {hint}", _code(failure))


def _code(failure: OSError) -> int:
    """Return the exit status for an error of the operating system."""
    if failure.errno in (errno.EACCES, errno.EPERM):
        return os.EX_NOPERM
    return os.EX_CANTCREAT if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else os.EX_OSERR


def _doctor(arguments: list[str], examine: Callable[..., int]) -> int:
    parser = _parser(f"{PROGRAM} doctor", DOCTOR_HELP)
    parser.add_argument("--json", action="store_true", help="Print the report as JSON.")
    parser.add_argument("--env-file", metavar="FILE", help="Settings file of the server to check.")
    settings = _settings(parser, arguments, default_file=settings_path(os.environ, Path.home()))
    as_json = parser.parse_args(arguments).json
    return examine(Machine(os.environ), settings, as_json=as_json, out=sys.stdout, progress=sys.stderr)


def _service(arguments: list[str], platform: str) -> int:
    if arguments in (["--help"], ["-h"]):
        print(COMMANDS, end="")
        return 0
    if platform != "linux":
        _fail("a service needs systemd, on Linux or in WSL 2. Here, start the server yourself.", os.EX_UNAVAILABLE)
    service = Service(os.environ, home=Path.home())
    try:
        match arguments:
            case ["install", *rest]:
                settings = _settings(_parser(f"{PROGRAM} service install", INSTALL_HELP), rest)
                changes = {variable(name): written(getattr(settings, name)) for name in settings.model_fields_set}
                return service.install(changes)
            case ["uninstall"]:
                return service.uninstall()
            case ["status"]:
                return service.show(*STATUS)
            case ["logs", *rest] if rest in ([], ["--follow"], ["-f"]):
                return service.show(*LOGS, "--follow" if rest else "--no-pager")
            case _:
                print(COMMANDS, end="", file=sys.stderr)
                return os.EX_USAGE
    except ValueError as failure:
        _fail(str(failure), os.EX_USAGE)
    except OSError as failure:
        _fail(f"{failure.filename}: {failure.strerror}", os.EX_OSERR)


def _cluster(arguments: list[str]) -> int:
    action, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if action not in {"up", "status", "down", "config"}:
        print(CLUSTER_HELP)
        return 0 if action in {"--help", "-h"} else os.EX_USAGE
    from localwhisper_server.cluster.local import LocalRay, default_folder  # noqa: PLC0415 - few need it

    local = LocalRay(default_folder(os.environ))
    os.environ.update(local.environment())
    try:
        from localwhisper_server.cluster import command  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as missing:
        _fail(f"a cluster needs {missing.name}: {install_command('ray')}", os.EX_CONFIG)
    parser = _parser(f"{PROGRAM} cluster {action}", CLUSTER_HELP)
    if action == "status":
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")
        return command.status(local, as_json=parser.parse_args(rest).json)
    if action == "down":
        parser.parse_args(rest)
        return command.down(local)
    parser.add_argument("--env-file", metavar="FILE", help="Also read settings from a file of NAME=value lines.")
    command.add_options(parser)
    if action == "config":
        parser.add_argument("--kuberay", action="store_true", help="Print a RayService for Kubernetes.")
    settings = _settings(parser, rest)
    options = parser.parse_args(rest)
    try:
        shape = command.shape_of(options)
    except ValidationError as failure:
        _fail(_problems(failure), os.EX_USAGE)
    return (
        command.config(settings, shape, kuberay=options.kuberay)
        if action == "config"
        else command.up(settings, shape, local)
    )


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    return _Parser(
        prog=program,
        usage=f"{program} [options]",
        description=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_option(parser: argparse.ArgumentParser, *names: str, **option: Any) -> argparse.Action:
    """Add an option with a help text for people: pydantic-settings would show Python's types."""
    field = Settings.model_fields[option["dest"]]
    default = written(field.default)
    # The default of a list is part of its description; that of a flag is always no.
    shown = default and default != "false" and not isinstance(field.default, tuple)
    option["help"] = f"{field.description} (default: {default})" if shown else field.description
    if option.get("metavar"):
        choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        option["metavar"] = "|".join(choices) or "VALUE"
    return parser.add_argument(*names, **option)


def _settings(parser: argparse.ArgumentParser, arguments: list[str], *, default_file: Path | None = None) -> Settings:
    """Read the settings from the command line, then the environment, then the file named by --env-file."""
    source = CliSettingsSource[argparse.ArgumentParser](Settings, root_parser=parser, add_argument_method=_add_option)
    known = vars(parser.parse_args(arguments))
    file = Path(known["env_file"]) if known.get("env_file") else None
    if file is not None and not file.is_file():
        _fail(f"--env-file: there is no file {file}", os.EX_USAGE)
    if "env_file" in known and (file or default_file):
        # Set all of its variables, as systemd's EnvironmentFile does: HF_HOME and the like may be in it.
        dotenv.load_dotenv(file or default_file, override=False, interpolate=False)
    try:
        return CliApp.run(Settings, cli_args=arguments, cli_settings_source=source)
    except SettingsError as failure:
        _fail(str(failure), os.EX_USAGE)
    except ValidationError as failure:
        _fail(_problems(failure), os.EX_USAGE)


def _problems(failure: ValidationError) -> str:
    """Return what is wrong with which option."""
    wrong = [(".".join(map(str, error["loc"])), error["msg"]) for error in failure.errors()]
    return "; ".join(f"--{name.replace('_', '-')}: {text.removeprefix('Value error, ')}" for name, text in wrong)


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # a full disk must not hide the exit status
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
