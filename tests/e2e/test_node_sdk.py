"""The stock OpenAI SDK for Node against a real server; `nox -s node` installs that SDK and runs this."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from localwhisper_client.demo import Server

MODULES = os.environ.get("LOCALWHISPER_NODE_MODULES", "")
HERE = Path(__file__).parent
VOICES = HERE.parent / "voices"
ENGLISH = HERE.parents[1] / "localwhisper_client" / "demo.ogg"

pytestmark = [pytest.mark.model, pytest.mark.skipif(not MODULES, reason="needs Node's SDK: nox -s node")]


@pytest.fixture(scope="module")
def got(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the script beside the installed SDK, where Node looks for it."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(MODULES)
    script = shutil.copy(HERE / "stock_sdk.mjs", folder)
    environment = {**os.environ, "OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "whatever"}
    done = subprocess.run(
        ["node", script, str(ENGLISH), str(VOICES / "de-5s.ogg")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_format(got: dict[str, Any]) -> None:
    """Objects where there is JSON, strings where there is text."""
    assert "bread on the way home" in got["json"]["text"]
    assert got["json"]["usage"] == {"type": "duration", "seconds": 5}
    for name in ("text", "srt", "vtt"):
        assert "bread on the way home" in got[name]
    assert got["vtt"].startswith("WEBVTT\n\n")
    assert got["verbose"]["language"] == "english"
    assert len(got["verbose"]["segments"][0]) == 10
    assert got["verbose"]["words"][0]["word"] == "Please"


def test_events(got: dict[str, Any]) -> None:
    """Deltas, then the whole."""
    *deltas, done = got["events"]
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"]


def test_translation_and_models(got: dict[str, Any]) -> None:
    """English out of German; the list of what is served."""
    assert got["translation"]["text"]
    assert "whisper-1" in got["models"]
    assert got["model"] == "whisper-1"


def test_errors_are_the_sdks_own(got: dict[str, Any]) -> None:
    """By class, status and code, with the request's id."""
    unknown, unreadable = got["errors"]
    assert (unknown["name"], unknown["status"], unknown["code"]) == ("NotFoundError", 404, "model_not_found")
    assert (unreadable["name"], unreadable["status"]) == ("BadRequestError", 400)
    assert unknown["id"]
