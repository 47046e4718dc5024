"""Each example runs as its first lines say, and so does the demo."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import AsyncMock, MagicMock

import pytest

from localwhisper_client.cli.demo import stand_in_cloud
from localwhisper_client.server_process import ServerProcess
from tests.e2e.conftest import ENGLISH, GERMAN, ROOT

pytestmark = pytest.mark.model


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and settings; it must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def load(name: str) -> ModuleType:
    """Import an example by its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_openai_base_url(server: ServerProcess) -> None:
    """The SDK alone prints each segment with its time."""
    done = run(
        ROOT / "examples/openai_base_url.py", ENGLISH, OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY="whatever"
    )
    assert done.stdout.lstrip().startswith("0.0  Please buy milk")


def test_fallback(server: ServerProcess) -> None:
    """The LAN server answers, and the example prints that it did."""
    done = run(ROOT / "examples/fallback.py", ENGLISH, LOCALWHISPER_BASE_URL=server.base_url, OPENAI_API_KEY="made-up")
    assert "Please buy milk" in done.stdout
    assert f"{server.base_url}: answered" in done.stderr


def test_fallback_without_the_lan() -> None:
    """If no LAN server can be reached, the cloud that is configured answers."""
    with stand_in_cloud() as cloud:
        done = run(
            ROOT / "examples/fallback.py",
            ENGLISH,
            LOCALWHISPER_BASE_URL="http://127.0.0.1:9/v1",
            LOCALWHISPER_CLOUD_BASE_URL=cloud,
            OPENAI_API_KEY="made-up",
        )
    assert "stand-in" in done.stdout
    assert "http://127.0.0.1:9/v1: outage" in done.stderr


def test_async_many(server: ServerProcess) -> None:
    """Every file gets its line, in the order given."""
    done = run(ROOT / "examples/async_many.py", ENGLISH, GERMAN, LOCALWHISPER_BASE_URL=server.base_url)
    english, german = done.stdout.splitlines()
    assert english.startswith("demo.ogg: Please buy milk")
    assert german.startswith("de-5s.ogg: Heute")


@pytest.fixture
def voice_update() -> MagicMock:
    """An update with a voice message, as python-telegram-bot hands it to a handler."""
    file = MagicMock()
    file.download_as_bytearray = AsyncMock(return_value=bytearray(ENGLISH.read_bytes()))
    update = MagicMock()
    update.effective_message.voice.get_file = AsyncMock(return_value=file)
    update.effective_message.reply_text = AsyncMock()
    return update


@pytest.mark.anyio
@pytest.mark.parametrize("runs", [True, False])
async def test_telegram_bot(
    runs: bool,  # noqa: FBT001 - pytest passes it by name
    server: ServerProcess,
    voice_update: MagicMock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A voice message is answered with its words; if no server can be reached, the bot says so and keeps running."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", server.base_url if runs else "http://127.0.0.1:9/v1")
    bot = load("telegram_bot")
    async with bot.client:
        await bot.handle_voice(voice_update, MagicMock())
    (reply,) = voice_update.effective_message.reply_text.await_args.args
    assert ("Please buy milk" if runs else "cannot be reached") in reply


def test_demo() -> None:
    """The README's first command prints the words, the language, which server answered, and the fallback."""
    done = run("-m", "localwhisper_client", "demo")
    for said in ("Please buy milk", "english", "(on the LAN)", "(the stand-in cloud)"):
        assert said in done.stdout


def test_readme_curl(server: ServerProcess) -> None:
    """The README's curl command works, with another port and file."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (command,) = (line for line in lines if line.startswith("curl ") and "audio/transcriptions" in line)
    command = command.replace("http://localhost:5000", server.url).replace("voice.ogg", str(ENGLISH))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Please buy milk" in done.stdout
