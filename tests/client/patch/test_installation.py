"""`install()` and `localwhisper run`: an unchanged program's speech-to-text goes to the LAN server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import localwhisper
from localwhisper_client import Attempt, LocalServerUnavailable, LocalWhisper, MissingCloudKey
from localwhisper_client.patch import installation
from tests.client.fault_server import TEXT, refusing, says, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.fault_server import FaultServer

CLASSES = (OpenAI, AsyncOpenAI, openai.AzureOpenAI, openai.AsyncAzureOpenAI, LocalWhisper)
FILE = ("a.ogg", b"audio")
LIST = says(200, b"application/json", b'{"object":"list","data":[]}')


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """Restore the SDK after each test."""
    yield
    localwhisper.uninstall()


@pytest.fixture
def local_server(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A LAN server that the environment names."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    return local_server


def transcribed(client: Any) -> str:
    """Transcribe with a client of either flavour."""
    if isinstance(client, AsyncOpenAI):

        async def call() -> str:
            async with client:
                return (await client.audio.transcriptions.create(model="whisper-1", file=FILE)).text

        return asyncio.run(call())
    with client:
        return str(client.audio.transcriptions.create(model="whisper-1", file=FILE).text)


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
@pytest.mark.parametrize("before", [True, False])
def test_clients_made_before_and_after_are_routed(kind: Any, before: bool, local_server: FaultServer) -> None:  # noqa: FBT001
    """Their key is not sent to the LAN server."""
    client = kind(api_key="sk-secret") if before else None
    localwhisper.install()
    assert transcribed(client or kind(api_key="sk-secret")) == TEXT
    assert "authorization" not in local_server.calls[0].headers


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_no_key_is_needed_on_the_lan(kind: Any, local_server: FaultServer) -> None:
    """A call that does need one says so."""
    localwhisper.install()
    assert transcribed(kind()) == TEXT
    with pytest.raises(MissingCloudKey):
        OpenAI().models.list()


def test_a_key_is_needed_under_cloud(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the SDK raises its own error."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    localwhisper.install(policy="cloud")
    with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
        OpenAI()


def test_other_calls_are_not_changed(local_server: FaultServer) -> None:
    """They go to the client's own address, with its own key."""
    localwhisper.install()
    with serving(LIST) as elsewhere, OpenAI(api_key="sk-mine", base_url=elsewhere.url) as client:
        client.models.list()
        assert transcribed(client) == TEXT
        assert elsewhere.probes[0].headers["authorization"] == "Bearer sk-mine"
        assert not elsewhere.calls
    assert len(local_server.calls) == 1


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_the_cloud_is_the_programs_own_client(
    kind: Any, local_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its address, key and headers, and a subclass's `request` runs once."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    counted = []

    class Mine(kind):  # type: ignore[misc]
        def request(self, *args: Any, **options: Any) -> Any:
            counted.append(1)
            return super().request(*args, **options)

    localwhisper.install(policy="cloud")
    local_server.behaviour = says(500, b"application/json", b"{}")
    with serving() as elsewhere:
        client = Mine(api_key="sk-mine", base_url=elsewhere.url, default_headers={"X-Mine": "1"})
        assert transcribed(client) == TEXT
        (call,) = elsewhere.calls
    assert (call.headers["authorization"], call.headers["x-mine"]) == ("Bearer sk-mine", "1")
    assert len(counted) == 1


def test_without_the_lan_nothing_leaves_it(cloud: FaultServer) -> None:
    """The default policy is local_only."""
    with refusing() as port:
        localwhisper.install(local_base_url=f"http://127.0.0.1:{port}/v1")
        with pytest.raises(LocalServerUnavailable):
            transcribed(OpenAI(base_url=cloud.url))
    assert not cloud.calls


def test_raw_responses_streams_and_azure(local_server: FaultServer) -> None:
    """Every shape of a call is routed, and so are the SDK's own subclasses."""
    localwhisper.install()
    with OpenAI() as client:
        raw = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=FILE)
        assert raw.parse().text == TEXT
        with client.audio.transcriptions.create(model="whisper-1", file=FILE, stream=True) as stream:
            assert [event.type for event in stream][-1] == "transcript.text.done"
    azure = openai.AzureOpenAI(api_key="k", azure_endpoint="https://mine.openai.azure.com", api_version="1")
    assert transcribed(azure) == TEXT
    assert len(local_server.calls) == 3


def test_the_module_itself(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openai.audio.transcriptions.create`."""
    # The SDK keeps the settings and connections of its module client in the module.
    for name in ("_client", "webhook_secret", "admin_api_key", *localwhisper._SETTINGS):
        if hasattr(openai, name):
            monkeypatch.setattr(openai, name, None if name != "max_retries" else 2)
    localwhisper.install()
    assert openai.audio.transcriptions.create(model="whisper-1", file=FILE).text == TEXT
    assert openai._client is not None
    openai._client.close()
    assert len(local_server.calls) == 1


def test_our_own_clients_are_left_alone(local_server: FaultServer) -> None:
    """After installing twice, too: a call is one attempt."""
    seen: list[Any] = []
    localwhisper.install()
    localwhisper.install()
    assert transcribed(LocalWhisper(on_event=seen.append)) == TEXT
    assert len(local_server.calls) == 1
    assert sum(isinstance(event, Attempt) for event in seen) == 1


def test_all_clients_share_one_breaker(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes a client for each message waits once for a dead server. A later `.env` is still read."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", "nonsense")
    localwhisper.install()
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    localwhisper.uninstall()
    localwhisper.install(policy="cloud", on_event=(seen := []).append)
    local_server.stop()
    with serving() as elsewhere:
        for _ in range(3):
            assert transcribed(OpenAI(api_key="k", base_url=elsewhere.url)) == TEXT
    assert [event.verdict for event in seen if isinstance(event, Attempt) and not event.cloud] == ["outage"]


def test_uninstall_restores_every_attribute() -> None:
    """A method that was inherited is inherited again; a second call does nothing."""
    before = [dict(vars(kind)) for kind in CLASSES]
    localwhisper.install()
    assert [dict(vars(kind)) for kind in CLASSES] != before
    localwhisper.uninstall()
    localwhisper.uninstall()
    assert [dict(vars(kind)) for kind in CLASSES] == before
    with pytest.raises(openai.OpenAIError, match="api_key"):
        OpenAI()


def test_the_environment_of_a_run() -> None:
    """The hook is first, the other entries follow, and a nested run adds nothing."""
    once = installation.environment({"A": "1", "PYTHONPATH": os.pathsep.join(["/x", "/y"])})
    assert once == {"A": "1", "PYTHONPATH": os.pathsep.join([str(installation.HOOK), "/x", "/y"])}
    assert installation.environment(once) == once
    assert installation.environment({})["PYTHONPATH"] == str(installation.HOOK)


BOT = """
import subprocess, sys
from openai import OpenAI
with OpenAI() as client:
    print(client.audio.transcriptions.create(model="whisper-1", file=("a.ogg", b"x")).text, flush=True)
if sys.argv[1:]:
    sys.exit(subprocess.call([sys.executable, __file__, *sys.argv[2:]]))
sys.exit(7)
"""
RUN = [sys.executable, "-m", "localwhisper_client", "run", "--"]


def started(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_run_reaches_a_program_its_children_and_nested_runs(local_server: FaultServer, tmp_path: Path) -> None:
    """`localwhisper run -- localwhisper run -- python bot.py`; the exit code is the innermost program's."""
    bot = tmp_path / "bot.py"
    bot.write_text(BOT)
    done = started(*RUN, *RUN, sys.executable, bot, "child")
    assert (done.returncode, done.stdout) == (7, f"{TEXT}\n{TEXT}\n"), done.stderr
    assert len(local_server.calls) == 2


def test_run_keeps_an_existing_sitecustomize(local_server: FaultServer, tmp_path: Path) -> None:
    """The program's own start-up file runs too. The SDK is not loaded for a program that does not use it."""
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.mine = __file__\n")
    code = "import sys, sitecustomize; print(mine == sitecustomize.__file__, 'openai' in sys.modules)"
    done = started(*RUN, sys.executable, "-c", code, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == "True False\n", done.stderr


def test_run_passes_signals_on(local_server: FaultServer) -> None:
    """The program replaces the process that was started."""
    code = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with subprocess.Popen([*RUN, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [(["no-such-program"], 127, "no-such-program"), (["/"], 126, "/"), (["x"], 2, "nonsense")],
)
def test_run_fails_as_a_shell_does(command: list[str], code: int, said: str) -> None:
    """With its exit codes; a wrong setting is reported before the program starts."""
    settings = {"LOCALWHISPER_BASE_URL": "nonsense"} if said == "nonsense" else {}
    done = started(*RUN, *command, env={**os.environ, **settings})
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_run_reaches_a_python_without_this_package(local_server: FaultServer, tmp_path: Path) -> None:
    """If the patch cannot be made there, `import openai` fails, so that no audio is sent to the cloud."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(openai.__file__).parents[1].iterdir():
        if "localwhisper" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    environ = {**installation.environment({}), "LOCALWHISPER_BASE_URL": local_server.url, "PATH": os.environ["PATH"]}
    environ["PYTHONPATH"] += os.pathsep + str(site)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not base.exists():
        pytest.skip("no Python outside of this environment")
    bot = tmp_path / "bot.py"
    bot.write_text(BOT)
    done = started(base, bot, env=environ, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (7, f"{TEXT}\n"), done.stderr
    (site / "anyio").unlink()
    (site / "openai").unlink()
    (site / "openai.py").write_text("class OpenAI: pass\n")
    done = started(base, bot, env=environ, cwd=tmp_path)
    assert done.returncode == 1
    assert "localwhisper run: this program's Python" in done.stderr
