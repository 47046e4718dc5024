"""What a realtime session gets when its server is stopped."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI
from websockets.exceptions import ConnectionClosed

from tests.e2e.conftest import ENGLISH
from tests.e2e.test_realtime import INTENT, PREFIX, RATE, plain, recording

if TYPE_CHECKING:
    from localwhisper_client.server_process import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.model]


async def test_a_stop_says_what_was_being_spoken(frail_server: ServerProcess) -> None:
    """SIGTERM in the middle of a turn: the text of what was sent, then 1012, and exit status 0."""
    async with (
        AsyncOpenAI(base_url=frail_server.base_url, api_key="none") as client,
        client.realtime.connect(extra_query=INTENT) as connection,
    ):
        sound = recording(ENGLISH, silence=0.0)
        await connection.input_audio_buffer.append(audio=base64.b64encode(sound[: 4 * RATE * 2]).decode())
        text, code = "", None
        try:
            async for event in connection:
                if event.type == "input_audio_buffer.speech_started":
                    frail_server.process.terminate()
                elif event.type == f"{PREFIX}completed":
                    text = event.transcript
        except ConnectionClosed as closed:
            code = closed.rcvd and closed.rcvd.code
    assert code == 1012
    assert len(plain(text)) >= 4, text
    assert await asyncio.to_thread(frail_server.process.wait, 60) == 0
