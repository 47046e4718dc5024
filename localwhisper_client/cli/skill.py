"""`localwhisper skill`: writes the skill that an assistant transcribes with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localwhisper_client.cli import skill_files

app = typer.Typer(no_args_is_help=True, help="The skill that makes an assistant transcribe on the LAN.")


@app.callback()
def skills() -> None:
    """Show an assistant the way to the LAN server."""


@app.command()
def install(
    folder: Annotated[Path, typer.Option("--dir", help="The workspace's folder of skills.")] = Path(
        "~/workspace/skills"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Write the skill `openai-whisper-api`, which takes the place of an assistant's bundled one of that name.

    It calls the LAN server by curl alone. The server is WHISPER_API_URL, by default http://wsl.home:5000.

    - `localwhisper skill install --dir ~/.openclaw/workspace/skills`
    """
    folder = folder.expanduser()
    try:
        written = skill_files.install(folder, force=force)
    except skill_files.SkillExists as there:
        typer.echo(f"localwhisper skill: there already, and different: {there}. --force replaces them.", err=True)
        raise typer.Exit(1) from None
    except OSError as failure:
        typer.echo(f"localwhisper skill: cannot write to {folder}: {failure.strerror}", err=True)
        raise typer.Exit(1) from None
    for path in written:
        typer.echo(str(path))
    if not written:
        typer.echo(f"Already there: {folder / skill_files.NAME}")
