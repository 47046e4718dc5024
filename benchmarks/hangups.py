"""Five hundred requests, a third of whose callers hang up: nothing may be left over.

A real server on loopback, with the smallest model. Bars: every request that was waited for is answered; afterwards the
server has as many threads and open files as before, give or take those it starts once, nothing in its temporary
folder, and its memory is back to within 10 % of what it was after the first fifty requests.

    python benchmarks/hangups.py [REQUESTS]
"""

import asyncio
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx2
from load import memory

from localwhisper_client.demo import Server, serving
from localwhisper_server import models

ROOT = Path(__file__).parents[1]
VOICES = (ROOT / "localwhisper_client" / "demo.ogg", ROOT / "tests" / "voices" / "en-60s.ogg")
AT_ONCE = 24
WARM = 50


def left(server: Server, temporary: Path) -> dict[str, float]:
    """Count what a process holds."""
    process = Path(f"/proc/{server.process.pid}")
    return {
        "threads": len(list((process / "task").iterdir())),
        "open files": len(list((process / "fd").iterdir())),
        "temporary files": len(list(temporary.iterdir())),
        "MB": round(memory(server.process.pid)),
    }


async def ask(http: httpx2.AsyncClient, url: str, number: int, answers: Counter[str]) -> None:
    """Send one request; every third caller leaves at some moment, in the upload, the queue or the answer."""
    chance = random.Random(number)  # noqa: S311 - the same each time
    voice = VOICES[number % 10 == 0].read_bytes()
    form = {"model": "whisper-1", "prompt": str(number), "stream": str(number % 2 == 0).lower()}
    patience = chance.uniform(0.0, 1.5) if number % 3 == 0 else 600.0
    try:
        async with asyncio.timeout(patience):
            answer = await http.post(f"{url}/v1/audio/transcriptions", data=form, files={"file": voice})
        answers[str(answer.status_code)] += 1
    except TimeoutError:
        answers["hung up"] += 1


async def run(server: Server, count: int, temporary: Path) -> tuple[Counter[str], dict[str, float], dict[str, float]]:
    """Ask so often, a few at a time; look at the server after the first ones and at the end."""
    answers: Counter[str] = Counter()
    room = asyncio.Semaphore(AT_ONCE)

    async def one(http: httpx2.AsyncClient, number: int) -> None:
        async with room:
            await ask(http, server.url, number, answers)

    async def several(numbers: range) -> dict[str, float]:
        async with httpx2.AsyncClient(timeout=600) as http:
            await asyncio.gather(*(one(http, number) for number in numbers))
            for _ in range(600):
                if not (await http.get(f"{server.url}/health")).json()["requests"]:
                    break
                await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # until the connections are closed on the other side, too
        return left(server, temporary)

    before = await several(range(1, WARM + 1))
    after = await several(range(WARM + 1, count + 1))
    return answers, before, after


def main() -> int:
    """Print the figures; return 1 where something is left over."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder
        with serving("--model", str(models.find("tiny.en"))) as server:
            answers, before, after = asyncio.run(run(server, count, Path(folder)))
    print(dict(answers))
    print(f"after {WARM}: {before}")
    print(f"after {count}: {after}")
    fair = set(answers) <= {"200", "hung up"} and not after["temporary files"]
    same = all(after[name] <= before[name] + 4 for name in ("threads", "open files"))
    return 0 if fair and same and after["MB"] <= 1.1 * before["MB"] else 1


if __name__ == "__main__":
    sys.exit(main())
