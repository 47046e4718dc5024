"""`import localwhisper as openai`: which names are ours, and which are the SDK's."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import openai
import pytest

import localwhisper
from localwhisper_client import AsyncLocalWhisper, LocalWhisper
from tests.client.fault_server import TEXT, refusing

if TYPE_CHECKING:
    from tests.client.fault_server import FaultServer


pytestmark = pytest.mark.usefixtures("module_client")


def test_the_module_transcribes(local_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key; the client is made once, at the first call."""
    monkeypatch.setenv("LOCALWHISPER_BASE_URL", local_server.url)
    assert localwhisper._current is None
    assert localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x").text == TEXT
    with _deprecated_or_not():
        answer: Any = localwhisper.audio.translations.create(model="whisper-1", file=b"x")
    assert answer.text == TEXT
    assert [call.path for call in local_server.calls] == ["/v1/audio/transcriptions", "/v1/audio/translations"]
    assert localwhisper._client() is localwhisper._client()


def _deprecated_or_not() -> Any:
    from openai.resources.audio.translations import Translations

    deprecated = hasattr(Translations.create, "__deprecated__")
    return pytest.warns(DeprecationWarning, match="deprecated") if deprecated else nullcontext()


def test_only_the_clients_are_ours() -> None:
    """Every other name is the SDK's own."""
    assert localwhisper.OpenAI is localwhisper.Client is LocalWhisper
    assert localwhisper.AsyncOpenAI is localwhisper.AsyncClient is AsyncLocalWhisper
    assert localwhisper.BadRequestError is openai.BadRequestError
    assert localwhisper.AzureOpenAI is localwhisper.AzureOpenAI
    assert issubclass(localwhisper.AzureOpenAI, (openai.AzureOpenAI, LocalWhisper))
    assert issubclass(localwhisper.AsyncAzureOpenAI, (openai.AsyncAzureOpenAI, AsyncLocalWhisper))
    assert localwhisper.chat is openai.chat
    assert set(dir(openai)) <= set(dir(localwhisper))
    with pytest.raises(AttributeError, match="no_such"):
        _ = localwhisper.no_such


def test_settings_reach_the_sdk_and_our_client(cloud: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`localwhisper.api_key = …` works before the first call and after it; the breakers stay."""
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("LOCALWHISPER_POLICY", "cloud")
    with refusing() as port:
        monkeypatch.setenv("LOCALWHISPER_BASE_URL", f"http://127.0.0.1:{port}/v1")
        localwhisper.api_key = "sk-first"
        localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x")
        first = localwhisper._client()
        localwhisper.api_key = "sk-second"
        localwhisper.audio.transcriptions.create(model="whisper-1", file=b"x")
    assert openai.api_key == "sk-second"
    assert [call.headers["authorization"] for call in cloud.calls] == ["Bearer sk-first", "Bearer sk-second"]
    assert localwhisper._client()._route is first._route
    first.close()


def test_our_names_are_not_set_in_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are names that the SDK does not have."""
    monkeypatch.setattr(localwhisper, "OpenAI", "mine")
    monkeypatch.setattr(localwhisper, "something_new", 1, raising=False)
    assert openai.OpenAI != "mine"
    assert not hasattr(openai, "something_new")


def _modules(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_import_loads_few_modules() -> None:
    """At most 1.1 times as many as `import openai`; a count does not depend on how busy the machine is."""
    theirs, ours = _modules("import openai"), _modules("import localwhisper")
    assert len(ours) <= 1.1 * len(theirs)
    foreign = {name.partition(".")[0] for name in ours - theirs} - {"localwhisper", "localwhisper_client"}
    assert foreign <= set(sys.stdlib_module_names)
    assert "localwhisper_client.client" not in ours
    assert "localwhisper_client.client" in _modules("import localwhisper; localwhisper.OpenAI")


def test_an_import_reads_no_environment_and_opens_nothing() -> None:
    """A wrong setting is an error at the first call, not at the import."""
    code = (
        "import os; os.environ.update(LOCALWHISPER_BASE_URL='nonsense', LOCALWHISPER_POLICY='nonsense')\n"
        "import socket; socket.socket = None\n"
        "import localwhisper, localwhisper_client.client\n"
        "localwhisper.audio"
    )
    # The SDK itself needs `socket.socket` to subclass; it is imported before that goes away.
    subprocess.run([sys.executable, "-c", "import openai\n" + code], check=True)


def test_the_version_does_not_load_the_sdk() -> None:
    """The server reads the version of this package."""
    assert "openai" not in _modules("import localwhisper_client; localwhisper_client.__version__")
