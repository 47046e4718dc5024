"""Many files at once: the server batches what comes together, so eight cost little more than two.

LOCALWHISPER_BASE_URL=http://pc:5000/v1 python examples/async_many.py *.ogg
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import localwhisper

AT_ONCE = 8


async def transcribe(client: localwhisper.AsyncLocalWhisper, gate: asyncio.Semaphore, path: Path) -> str:
    """Return the words of one file; `gate` bounds how many are on their way at a time."""
    async with gate:
        return (await client.audio.transcriptions.create(file=path, model="whisper-1")).text


async def transcribe_all(paths: Sequence[Path]) -> list[str]:
    """Return the words of every file, in the order of the files."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with localwhisper.AsyncLocalWhisper() as client:
        return await asyncio.gather(*(transcribe(client, gate, path) for path in paths))


def main() -> None:
    """Print a line per file."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    for path, text in zip(paths, asyncio.run(transcribe_all(paths)), strict=True):
        print(f"{path.name}: {text}")


if __name__ == "__main__":
    main()
