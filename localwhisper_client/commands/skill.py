"""`localwhisper skill`: writes the skill that an assistant transcribes with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localwhisper_client import skill

app = typer.Typer(no_args_is_help=True, help="The skill that makes an assistant transcribe in the house.")


@app.callback()
def skills() -> None:
    """Show an assistant the way to the house."""


@app.command()
def install(
    folder: Annotated[Path, typer.Option("--dir", help="The workspace's folder of skills.")] = Path(
        "~/workspace/skills"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Write the skill `openai-whisper-api`, which takes the place of an assistant's bundled one of that name.

    It calls the house by curl alone. The server is WHISPER_API_URL, by default http://wsl.home:5000.

    - `localwhisper skill install --dir ~/.openclaw/workspace/skills`
    """
    folder = folder.expanduser()
    try:
        written = skill.install(folder, force=force)
    except skill.SkillExists as there:
        typer.echo(f"localwhisper skill: there already, and different: {there}. --force replaces them.", err=True)
        raise typer.Exit(1) from None
    except OSError as failure:
        typer.echo(f"localwhisper skill: cannot write to {folder}: {failure.strerror}", err=True)
        raise typer.Exit(1) from None
    for path in written:
        typer.echo(str(path))
    if not written:
        typer.echo(f"Already there: {folder / skill.NAME}")
