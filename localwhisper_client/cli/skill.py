"""`localwhisper skill`: writes the skill `openai-whisper-api`, with which an assistant transcribes on the LAN.

An assistant prefers a skill of its workspace to a bundled one of the same name. So recordings that it would have sent
to OpenAI go to the LAN server, and its settings need no change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localwhisper_client.cli import files, stop

NAME = "openai-whisper-api"
SOURCE = Path(__file__).with_name("skill_data") / NAME

app = typer.Typer(no_args_is_help=True, help="The skill with which an assistant transcribes on your server.")


@app.callback()
def skills() -> None:
    """Let an assistant transcribe on your server."""


@app.command()
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
    target = folder.expanduser() / NAME
    try:
        sources = sorted(path for path in SOURCE.rglob("*") if path.is_file())
        contents = {target / path.relative_to(SOURCE): path.read_bytes() for path in sources}
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
