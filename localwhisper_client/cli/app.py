"""The command `localwhisper`: its subcommands. `run` and `skill install`, which are short, are here."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from localwhisper_client import __version__
from localwhisper_client.cli import demo, files, status, stop, transcribe
from localwhisper_client.errors import ConfigurationError
from localwhisper_client.patch import installation
from localwhisper_client.settings import Settings

SKILL = Path(__file__).with_name("skill_data") / "openai-whisper-api"
# A shell's exit codes for a program that cannot be run, and for one that does not exist.
CANNOT_RUN, NOT_FOUND = 126, 127

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
skill = typer.Typer(no_args_is_help=True)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's signature
    if wanted:
        typer.echo(f"localwhisper {__version__}")
        raise typer.Exit


@app.callback()
def localwhisper(
    version: Annotated[  # noqa: ARG001, FBT002 - its callback reads it; a flag is a boolean
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Speech to text on your own machine, with OpenAI's API.

    **First steps**

    - `localwhisper demo` starts a server and transcribes a voice message
    - `localwhisper status` shows whether your server is up
    - `localwhisper transcribe voice.ogg` writes `voice.txt`
    - `localwhisper run -- python bot.py` runs your bot, and your server answers it

    **Settings** (environment variables)

    - `LOCALWHISPER_BASE_URL` is the server, such as `http://pc:5000/v1`, or `auto` to find it; default: this machine
    - `LOCALWHISPER_POLICY` is `local_only` (the default), `wait` or `cloud`; only under `cloud` may audio leave the LAN
    """
    # A file's name may have letters that the terminal's encoding, or even UTF-8, lacks.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


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


@skill.callback()
def skills() -> None:
    """Let an assistant transcribe on your server."""


@skill.command()
def install(
    folder: Annotated[Path, typer.Option("--dir", help="The workspace's folder of skills.")] = Path(
        "~/workspace/skills"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Write the skill `openai-whisper-api`. It replaces an assistant's bundled skill of that name.

    - `localwhisper skill install --dir ~/.openclaw/workspace/skills`

    The skill needs `curl` and nothing else. It sends recordings to WHISPER_API_URL, by default http://wsl.home:5000.

    Exit code: 0 if the skill is there; 1 if files of that name differ (see --force) or the folder cannot be written.
    """
    target = folder.expanduser() / SKILL.name
    try:
        sources = sorted(path for path in SKILL.rglob("*") if path.is_file())
        contents = {target / path.relative_to(SKILL): path.read_bytes() for path in sources}
        differing = [path for path, content in contents.items() if not path.is_file() or path.read_bytes() != content]
        there = [str(path) for path in differing if path.exists()]
        if there and not force:
            stop("skill", f"there already, and different: {', '.join(there)}. --force replaces them.", 1)
        for path in differing:
            # A wheel need not keep the permission to run.
            files.write(path, contents[path], replace=True, mode=0o777 if path.suffix == ".sh" else 0o666)
            typer.echo(str(path))
    except OSError as failure:
        stop("skill", f"cannot write to {target.parent}: {failure.strerror}", 1)
    if not differing:
        typer.echo(f"Already there: {target}")


for each in (transcribe.transcribe, status.status, status.stats, status.discover, status.wake, demo.demo):
    app.command()(each)
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})(run)
app.add_typer(skill, name="skill")
