"""An application on a real socket of the loopback interface, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Server(uvicorn.Server):
    """Says when it has started, and looks a hundred times a second whether it is to stop: uvicorn does ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.running.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110 - another thread sets what ends it
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[tuple[str, int]]:
    """Serve until the block ends; gives host and port. `options` are uvicorn's."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = _Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert server.running.wait(60)
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
