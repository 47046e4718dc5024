"""Transcribe many files at once. The server decodes them in batches, so eight take little longer than two.

LOCALWHISPER_BASE_URL=http://pc:5000/v1 python examples/async_many.py *.ogg
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import localwhisper

AT_ONCE = 8


async def transcribe(client: localwhisper.AsyncLocalWhisper, slots: asyncio.Semaphore, path: Path) -> str:
    """Return the words of one file; `slots` limits how many are sent at a time."""
    async with slots:
        return (await client.audio.transcriptions.create(file=path, model="whisper-1")).text


async def transcribe_all(paths: Sequence[Path]) -> list[str]:
    """Return the words of every file, in the order of the files."""
    slots = asyncio.Semaphore(AT_ONCE)
    async with localwhisper.AsyncLocalWhisper() as client:
        return await asyncio.gather(*(transcribe(client, slots, path) for path in paths))


def main() -> None:
    """Print a line for each file."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    for path, text in zip(paths, asyncio.run(transcribe_all(paths)), strict=True):
        print(f"{path.name}: {text}")


if __name__ == "__main__":
    main()
