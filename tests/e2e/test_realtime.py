"""The realtime route of a real server with a real model: words while they are spoken, from the SDK's own client."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from faster_whisper.audio import decode_audio
from openai import AsyncOpenAI, OpenAI

from tests.e2e.conftest import ENGLISH, VOICES

if TYPE_CHECKING:
    from localwhisper_client.server_process import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.model]

RATE = 24_000
INTENT: Any = {"intent": "transcription"}
PREFIX = "conversation.item.input_audio_transcription."


def recording(path: Any, rate: int = RATE, silence: float = 1.0) -> bytes:
    """Return a recording as 16-bit PCM, with silence after it."""
    samples = np.asarray(decode_audio(str(path), sampling_rate=rate))
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes() + bytes(2 * int(rate * silence))


def plain(text: str) -> list[str]:
    """Return the words without case and punctuation."""
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace()).split()


async def listen(connection: Any, sound: bytes, *, commit: bool = False) -> tuple[str, list[str]]:
    """Send sound in pieces of 100 ms as fast as they are taken; return the text and the deltas."""

    async def feed() -> None:
        for at in range(0, len(sound), RATE // 5):
            await connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + RATE // 5]).decode())
        if commit:
            await connection.input_audio_buffer.commit()

    feeding = asyncio.create_task(feed())
    deltas: list[str] = []
    texts: list[str] = []
    pending: set[str] = set()
    async for event in connection:
        if event.type == f"{PREFIX}delta":
            deltas.append(event.delta or "")
        elif event.type == "input_audio_buffer.committed":
            pending.add(event.item_id)
        elif event.type == f"{PREFIX}completed":
            pending.discard(event.item_id)
            texts.append(event.transcript)
        assert event.type != "error", event
        if texts and not pending and feeding.done():
            break
    await feeding
    return " ".join(texts), deltas


async def test_words_of_a_real_recording(server: ServerProcess) -> None:
    """The text is that of the file route, but for a word or two, and the sum of the deltas."""
    with OpenAI(base_url=server.base_url, api_key="none") as files:
        text = files.audio.transcriptions.create(file=ENGLISH, model="whisper-1", language="en").text
    async with (
        AsyncOpenAI(base_url=server.base_url, api_key="none") as client,
        client.realtime.connect(extra_query=INTENT) as connection,
    ):
        options: Any = {"turn_detection": None, "transcription": {"model": "whisper-1", "language": "en"}}
        await connection.session.update(session={"type": "transcription", "audio": {"input": options}})
        heard, deltas = await listen(connection, recording(ENGLISH), commit=True)
    assert heard == "".join(deltas)
    wanted = plain(text)
    assert len(set(wanted) ^ set(plain(heard))) <= len(wanted) // 6, heard


async def test_the_language_is_detected(server: ServerProcess) -> None:
    """With no hint, as agents connect by default: semantic turn detection, and words of the language.

    Not with the German voice: `base` takes it for Latin (0.31 to 0.46) unless 1.5 s of silence follow it.
    """
    voice = "fr-5s.ogg"
    async with (
        AsyncOpenAI(base_url=server.base_url, api_key="none") as client,
        client.realtime.connect(extra_query=INTENT) as connection,
    ):
        options: Any = {
            "turn_detection": {"type": "semantic_vad", "eagerness": "low"},
            "transcription": {"model": "gpt-live-transcribe"},
        }
        await connection.session.update(session={"type": "transcription", "audio": {"input": options}})
        heard, _ = await listen(connection, recording(VOICES / voice, silence=2.5))
    with OpenAI(base_url=server.base_url, api_key="none") as files:
        text = files.audio.transcriptions.create(file=VOICES / voice, model="whisper-1").text
    wanted = plain(text)
    assert len(set(wanted) ^ set(plain(heard))) <= len(wanted) // 3, (heard, text)


async def test_four_sessions_beside_uploads(server: ServerProcess) -> None:
    """Nothing is lost: every session gets its text, every upload its answer, and no request stays open."""
    sound = recording(ENGLISH)
    with OpenAI(base_url=server.base_url, api_key="none") as files, concurrent.futures.ThreadPoolExecutor(2) as pool:
        uploads = [
            pool.submit(files.audio.transcriptions.create, file=VOICES / "en-60s.ogg", model="whisper-1", language="en")
            for _ in range(2)
        ]

        async def session() -> str:
            async with (
                AsyncOpenAI(base_url=server.base_url, api_key="none") as client,
                client.realtime.connect(extra_query=INTENT) as connection,
            ):
                options: Any = {"turn_detection": None, "transcription": {"model": "whisper-1", "language": "en"}}
                await connection.session.update(session={"type": "transcription", "audio": {"input": options}})
                return (await listen(connection, sound, commit=True))[0]

        heard = await asyncio.gather(*(session() for _ in range(4)))
        answers = await asyncio.gather(*map(asyncio.wrap_future, uploads))
    assert all(len(plain(text)) > 5 for text in heard), heard
    assert all(len(plain(answer.text)) > 50 for answer in answers)
    async with asyncio.timeout(60):  # the server notices a closed connection a moment later
        while server.health()["requests"]:  # noqa: ASYNC110 - a poll with a bound
            await asyncio.sleep(0.05)


async def test_hang_ups_leave_nothing(server: ServerProcess) -> None:
    """Forty connects and hang-ups at every state: no session stays open, and the next one is served."""

    async def hang_up(client: AsyncOpenAI, number: int) -> None:
        with contextlib.suppress(OSError):
            async with client.realtime.connect(extra_query=INTENT) as connection:
                if number % 4:
                    await connection.recv()
                if number % 4 > 1:
                    sound = base64.b64encode(recording(ENGLISH)[: RATE * (number % 7)]).decode()
                    await connection.input_audio_buffer.append(audio=sound)
                if number % 4 > 2:
                    await connection.input_audio_buffer.commit()
                    await connection.recv()

    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        for first in range(0, 40, 10):
            await asyncio.gather(*(hang_up(client, number) for number in range(first, first + 10)))
        async with client.realtime.connect(extra_query=INTENT) as connection:
            heard, _ = await listen(connection, recording(ENGLISH), commit=True)
    assert len(plain(heard)) > 5
    assert server.health()["requests"] <= 1
