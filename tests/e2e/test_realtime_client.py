"""Our client's realtime sessions with a real server: words, its key, its restart, and what it refuses."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client.server_process import serving
from tests.client.leaving import no_socket_leaves
from tests.e2e.conftest import ENGLISH
from tests.e2e.test_realtime import RATE, plain, recording

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localwhisper_client.server_process import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.model]

KEY = "the-servers-key"
INTENT: Any = {"extra_query": {"intent": "transcription"}}
INPUT: Any = {"turn_detection": None, "transcription": {"model": "gpt-4o-transcribe"}}
WORDS = {"milk", "bread", "home"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[ServerProcess]:
    """A server with a key."""
    with serving("--model", "tiny.en", "--api-key", KEY) as running:
        yield running


@pytest.fixture(params=["local_only", "cloud"])
def settings(request: pytest.FixtureRequest, guarded: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of a program that has a key for the cloud too; nothing leaves the LAN."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", guarded.base_url)
    monkeypatch.setenv("LOCALWHISPER_API_KEY", KEY)
    monkeypatch.setenv("LOCALWHISPER_POLICY", request.param)
    monkeypatch.setenv("OPENAI_API_KEY", "a-made-up-key-of-the-cloud")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with no_socket_leaves():
        yield
    localwhisper.uninstall()


def speak(client: Any, sound: bytes) -> str:
    """Return what a sync client's session transcribes."""
    with client.realtime.connect(**INTENT) as connection:
        connection.session.update(session={"type": "transcription", "audio": {"input": INPUT}})
        for at in range(0, len(sound), RATE):
            connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + RATE]).decode())
        connection.input_audio_buffer.commit()
        for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.completed":
                return str(event.transcript)
    return ""


async def speak_async(client: Any, sound: bytes) -> str:
    """Return what an async client's session transcribes."""
    async with client.realtime.connect(**INTENT) as connection:
        await connection.session.update(session={"type": "transcription", "audio": {"input": INPUT}})
        for at in range(0, len(sound), RATE):
            await connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + RATE]).decode())
        await connection.input_audio_buffer.commit()
        async for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.completed":
                return str(event.transcript)
    return ""


@pytest.mark.usefixtures("settings")
async def test_words_come_from_the_local_server() -> None:
    """For the module that replaces the SDK, for both clients of its own, and for the SDK after `install()`."""
    sound = recording(ENGLISH)
    with localwhisper.OpenAI() as client:
        assert set(plain(speak(client, sound))) >= WORDS
    async with localwhisper.AsyncOpenAI() as client:
        assert set(plain(await speak_async(client, sound))) >= WORDS
    localwhisper.install()
    with openai.OpenAI() as sdk_client:
        assert set(plain(speak(sdk_client, sound))) >= WORDS
    async with openai.AsyncOpenAI() as sdk_client:
        assert set(plain(await speak_async(sdk_client, sound))) >= WORDS


@pytest.mark.usefixtures("settings")
def test_a_wrong_key_is_said() -> None:
    """It is no reason for the cloud."""
    with (
        localwhisper.OpenAI(local_api_key="another", policy="cloud") as client,
        pytest.raises(openai.AuthenticationError, match="Set LOCALWHISPER_API_KEY"),
    ):
        speak(client, b"")
