"""A program that is left as it is, and whose speech-to-text goes home."""

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
    """No test leaves the SDK changed."""
    yield
    localwhisper.uninstall()


@pytest.fixture
def home(lan: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    """A lan that the environment names."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", lan.url)
    return lan


def heard(client: Any) -> str:
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
def test_clients_made_before_and_after_go_home(kind: Any, before: bool, home: FaultServer) -> None:  # noqa: FBT001
    """Their key does not go along."""
    client = kind(api_key="sk-secret") if before else None
    localwhisper.install()
    assert heard(client or kind(api_key="sk-secret")) == TEXT
    assert "authorization" not in home.calls[0].headers


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_no_key_is_needed_where_nothing_leaves_the_lan(kind: Any, home: FaultServer) -> None:
    """And what does need one says so."""
    localwhisper.install()
    assert heard(kind()) == TEXT
    with pytest.raises(MissingCloudKey):
        OpenAI().models.list()


def test_a_key_is_needed_where_the_cloud_may_answer(home: FaultServer) -> None:
    """The SDK's own error, under `cloud`; and a key that is given is left to the SDK to judge."""
    localwhisper.install(policy="cloud", local_base_url=home.url)
    localwhisper.uninstall()
    os.environ["LOCALWHISPER_POLICY"] = "cloud"
    try:
        localwhisper.install(policy="cloud")
        with pytest.raises(openai.OpenAIError, match="OPENAI_API_KEY"):
            OpenAI()
    finally:
        del os.environ["LOCALWHISPER_POLICY"]


def test_everything_else_goes_where_it_went(home: FaultServer) -> None:
    """To the client's own address, with its own key, as before."""
    localwhisper.install()
    with serving(LIST) as elsewhere, OpenAI(api_key="sk-mine", base_url=elsewhere.url) as client:
        client.models.list()
        assert heard(client) == TEXT
        assert elsewhere.probes[0].headers["authorization"] == "Bearer sk-mine"
        assert not elsewhere.calls
    assert len(home.calls) == 1


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_the_cloud_is_the_programs_own_client(kind: Any, home: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address, key and headers, where the policy lets a call leave the LAN; a subclass does its work once."""
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    counted = []

    class Mine(kind):  # type: ignore[misc]
        def request(self, *args: Any, **options: Any) -> Any:
            counted.append(1)
            return super().request(*args, **options)

    localwhisper.install(policy="cloud")
    home.behaviour = says(500, b"application/json", b"{}")
    with serving() as elsewhere:
        client = Mine(api_key="sk-mine", base_url=elsewhere.url, default_headers={"X-Mine": "1"})
        assert heard(client) == TEXT
        (call,) = elsewhere.calls
    assert (call.headers["authorization"], call.headers["x-mine"]) == ("Bearer sk-mine", "1")
    assert len(counted) == 1


def test_without_the_lan_nothing_leaves_it(cloud: FaultServer) -> None:
    """The default policy holds for programs that never heard of it."""
    with refusing() as port:
        localwhisper.install(local_base_url=f"http://127.0.0.1:{port}/v1")
        with pytest.raises(LocalServerUnavailable):
            heard(OpenAI(base_url=cloud.url))
    assert not cloud.calls


def test_raw_responses_streams_and_azure(home: FaultServer) -> None:
    """Every shape of a call, and the SDK's own subclasses."""
    localwhisper.install()
    with OpenAI() as client:
        raw = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=FILE)
        assert raw.parse().text == TEXT
        with client.audio.transcriptions.create(model="whisper-1", file=FILE, stream=True) as stream:
            assert [event.type for event in stream][-1] == "transcript.text.done"
    azure = openai.AzureOpenAI(api_key="k", azure_endpoint="https://mine.openai.azure.com", api_version="1")
    assert heard(azure) == TEXT
    assert len(home.calls) == 3


def test_the_module_itself(home: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`openai.audio.transcriptions.create`."""
    # The SDK keeps its module client's settings, and the connections, in the module.
    for name in ("_client", "webhook_secret", "admin_api_key", *localwhisper._SETTINGS):
        if hasattr(openai, name):
            monkeypatch.setattr(openai, name, None if name != "max_retries" else 2)
    localwhisper.install()
    assert openai.audio.transcriptions.create(model="whisper-1", file=FILE).text == TEXT
    assert openai._client is not None
    openai._client.close()
    assert len(home.calls) == 1


def test_our_own_clients_are_left_alone(home: FaultServer) -> None:
    """Installed twice as well: one attempt a call."""
    seen: list[Any] = []
    localwhisper.install()
    localwhisper.install()
    assert heard(LocalWhisper(on_event=seen.append)) == TEXT
    assert len(home.calls) == 1
    assert sum(isinstance(event, Attempt) for event in seen) == 1


def test_all_clients_share_what_is_known_of_the_lan(home: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that makes a client for every message pays for a dead lan once; a later `.env` is still read."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", "nonsense")
    localwhisper.install()
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", home.url)
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    localwhisper.uninstall()
    localwhisper.install(policy="cloud", on_event=(seen := []).append)
    home.stop()
    with serving() as elsewhere:
        for _ in range(3):
            assert heard(OpenAI(api_key="k", base_url=elsewhere.url)) == TEXT
    assert [event.verdict for event in seen if isinstance(event, Attempt) and not event.cloud] == ["outage"]


def test_uninstall_restores_every_attribute() -> None:
    """What was inherited is inherited again; doing it twice does no harm."""
    before = [dict(vars(kind)) for kind in CLASSES]
    localwhisper.install()
    assert [dict(vars(kind)) for kind in CLASSES] != before
    localwhisper.uninstall()
    localwhisper.uninstall()
    assert [dict(vars(kind)) for kind in CLASSES] == before
    with pytest.raises(openai.OpenAIError, match="api_key"):
        OpenAI()


def test_the_environment_of_a_run_is_put_together_once() -> None:
    """Nested runs do not grow it, and what was there stays behind it."""
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


def test_run_serves_a_program_its_children_and_nested_runs(home: FaultServer, tmp_path: Path) -> None:
    """`localwhisper run -- localwhisper run -- python bot.py`; the exit code is the innermost program's."""
    bot = tmp_path / "bot.py"
    bot.write_text(BOT)
    done = subprocess.run(
        [*RUN, *RUN, sys.executable, bot, "child"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (7, f"{TEXT}\n{TEXT}\n"), done.stderr
    assert len(home.calls) == 2


def test_run_keeps_an_existing_sitecustomize_and_imports_nothing_itself(home: FaultServer, tmp_path: Path) -> None:
    """The program's own start-up file runs too; a program without the SDK does not pay for it."""
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.mine = __file__\n")
    code = "import sys, sitecustomize; print(mine == sitecustomize.__file__, 'openai' in sys.modules)"
    done = subprocess.run(
        [*RUN, sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "True False\n", done.stderr


def test_run_passes_signals_on(home: FaultServer) -> None:
    """The program is the very process that was started."""
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
def test_run_says_what_it_cannot(command: list[str], code: int, said: str) -> None:
    """With a shell's exit codes, and a wrong setting before the program starts."""
    settings = {"LOCALWHISPER_BASE_URL": "nonsense"} if said == "nonsense" else {}
    done = subprocess.run(
        [*RUN, *command], env={**os.environ, **settings}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_this_package_is_served_from_where_it_is(home: FaultServer, tmp_path: Path) -> None:
    """And one that cannot be served fails when it imports the SDK, instead of sending audio away."""
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(openai.__file__).parents[1].iterdir():
        if "localwhisper" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    environ = {**installation.environment({}), "LOCALWHISPER_BASE_URL": home.url, "PATH": os.environ["PATH"]}
    environ["PYTHONPATH"] += os.pathsep + str(site)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not base.exists():
        pytest.skip("no Python outside of this environment")
    bot = tmp_path / "bot.py"
    bot.write_text(BOT)
    done = subprocess.run(
        [base, bot], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (7, f"{TEXT}\n"), done.stderr
    (site / "anyio").unlink()
    (site / "openai").unlink()
    (site / "openai.py").write_text("class OpenAI: pass\n")
    done = subprocess.run(
        [base, bot], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "localwhisper run: this program's Python" in done.stderr
