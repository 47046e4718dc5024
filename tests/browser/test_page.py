"""The page at / in headless Chromium, with a real server and model. Runs under `nox -s browser`: it needs npm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import av
import pytest

from localwhisper_client.server_process import ServerProcess, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = os.environ.get("LOCALWHISPER_BROWSER", "")
HERE = Path(__file__).parent
MESSAGE = HERE.parents[1] / "localwhisper_client" / "demo.ogg"
KEY = "a-key-of-the-test"
RATE = 16_000
SCENARIO_SECONDS = 180

pytestmark = pytest.mark.skipif(not FOLDER, reason="nox -s browser installs what it needs")


def as_wav(path: Path, times: int) -> None:
    """Write the demo's message as a WAV file, so many times with a pause after each."""
    with av.open(str(MESSAGE)) as container:
        resampler = av.AudioResampler("s16", "mono", RATE)
        frames = [frame for decoded in container.decode(audio=0) for frame in resampler.resample(decoded)]
    spoken = b"".join(frame.to_ndarray().tobytes() for frame in frames)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((spoken + bytes(RATE * 4)) * times)


@pytest.fixture(scope="module")
def folder() -> Path:
    """The folder with playwright-core and axe-core."""
    folder = Path(FOLDER)
    npm = shutil.which("npm")
    assert npm, "npm is missing"
    (folder / "package.json").write_text("{}")
    subprocess.run(
        [npm, "install", "--no-fund", "--no-audit", "playwright-core@1", "axe-core@4"], cwd=folder, check=True
    )
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server without a key."""
    with serving("--model", "base") as running:
        yield running


@pytest.fixture(scope="module")
def locked_server() -> Iterator[ServerProcess]:
    """A server with a key."""
    with serving("--model", "base", "--api-key", KEY) as running:
        yield running


def play(folder: Path, scenario: str, server: ServerProcess, file: Path, *more: str) -> None:
    """Run one scenario; what the browser script printed is the message of a failure."""
    url = server.base_url.removesuffix("v1").rstrip("/") + "/"
    done = subprocess.run(
        ["node", HERE / "page.mjs", folder, scenario, url, file, *more],
        capture_output=True,
        text=True,
        timeout=SCENARIO_SECONDS,
        check=False,
    )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(SCENARIO_SECONDS + 60)
@pytest.mark.parametrize(
    ("scenario", "times"),
    [
        ("upload", 1), ("keyboard", 1), ("drop", 1), ("stream", 8), ("record", 1), ("offline", 1), ("error", 1),
        ("narrow", 1),
    ],
)  # fmt: skip
def test_the_page(folder: Path, server: ServerProcess, tmp_path: Path, scenario: str, times: int) -> None:
    """Each scenario works without a console error, and no request leaves the server."""
    file = tmp_path / "voice.wav"
    as_wav(file, times)
    play(folder, scenario, server, file)


@pytest.mark.timeout(SCENARIO_SECONDS + 60)
def test_a_server_with_a_key(folder: Path, locked_server: ServerProcess, tmp_path: Path) -> None:
    """The page asks for the key, refuses a wrong one, and keeps the right one in the tab alone."""
    file = tmp_path / "voice.wav"
    as_wav(file, 1)
    play(folder, "key", locked_server, file, KEY)
