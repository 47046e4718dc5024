"""The check that transcribes, on servers of all kinds; and what doctor finds out about the real machine."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import ctranslate2
import pytest
import trustme

from localwhisper_client.server_process import ServerNotStarted, serving
from localwhisper_server import runtime
from localwhisper_server.operations.doctor import doctor, machine
from localwhisper_server.operations.doctor.checks import Facts
from localwhisper_server.operations.doctor.machine import Machine, Output
from localwhisper_server.settings import Settings
from tests.server import listening

MODEL = {"id": "whisper-1", "object": "model", "created": 0, "owned_by": "localwhisper"}


@pytest.fixture(autouse=True)
def no_settings_from_here(monkeypatch):
    """No test sees the settings of the machine that runs it, and a request that goes to a proxy fails."""
    for name in [name for name in os.environ if name.startswith(("LOCALWHISPER_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@contextlib.contextmanager
def answering(script: dict[str, tuple[int, Any]], **options: Any) -> Iterator[int]:
    """Run a server on a free loopback port that answers each path as the script says."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        status, body = script.get(scope["path"], (404, {"error": {"message": "no"}}))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    with listening.serving(app, lifespan="off", **options) as (_, port):
        yield port


HEALTHY = {"/health": (200, {"ready": True}), "/v1/models/whisper-1": (200, MODEL)}
SPEECH = "/v1/audio/transcriptions"
ANSWERS = [
    ("it works", {SPEECH: (200, {"text": " Please buy milk."})}, "ok", '"Please buy milk." from the running server'),
    ("it finds no words", {SPEECH: (200, {"text": " "})}, "fault", "found no words"),
    ("it wants a key", {SPEECH: (401, {"error": {"message": "key?"}})}, "fault", "Error code: 401"),
    ("it has no models", {"/v1/models/whisper-1": (404, {"error": {"message": "x"}})}, "fault", "Error code: 404"),
]


def try_out(*, folder="/models/base", say=lambda _: None, environ=(), **settings):
    """Make the check with some settings on this machine."""
    facts = Facts(Machine(dict(environ)), Settings(**settings), None, None, {"models": [{"folder": folder}]}, "")
    return doctor.try_out(facts, say=say)


@pytest.mark.parametrize(("script", "status", "words"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_the_running_server_is_asked(script, status, words):
    """Each answer becomes one finding; the request does not go through a proxy."""
    with answering(HEALTHY | script) as port:
        finding = try_out(port=port, folder=None)
    assert finding.status == status
    assert words in finding.message


def test_a_server_with_a_certificate_is_asked_over_https(tmp_path):
    """Its certificate has another name than the loopback, and an authority that this machine does not know."""
    chain = tmp_path / "chain.pem"
    trustme.CA().issue_cert("pc.example.org").private_key_and_cert_chain_pem.write_to_path(str(chain))
    script = HEALTHY | {SPEECH: (200, {"text": " Please buy milk."})}
    with answering(script, ssl_certfile=chain) as port:
        finding = try_out(port=port, certfile=chain)
    assert finding.status == "ok", finding


def test_what_cannot_be_tried_is_a_fault_and_not_a_traceback(tmp_path):
    """Keys that cannot be read: the server would not start either. A server that went away meanwhile."""
    with answering({}) as port:
        pass
    unread = try_out(api_key_file=tmp_path / "nowhere")
    gone = doctor.transcribe(f"http://127.0.0.1:{port}", "the server", "none")
    assert unread.status == gone.status == "fault"
    assert "--api-key-file" in unread.message
    assert "did not answer" in gone.message


def test_nothing_is_downloaded_for_the_check():
    """No server runs and there is no model: nothing is tried, which is no fault."""
    with answering({}) as port:
        pass
    finding = try_out(port=port, folder=None)
    assert finding.status == "warning"
    assert "not downloaded" in finding.message


@pytest.mark.model
def test_a_server_is_started_if_none_runs(tmp_path):
    """A real server in its own process, with a real model and a key; it ends with the check."""
    said: list[str] = []
    settings = {"port": 0, "model": "tiny.en", "device": "cpu", "api_key": "secret", "cache_dir": tmp_path}
    finding = try_out(**settings, log_level="error", log_format="json", say=said.append, environ=os.environ)
    assert finding.status == "ok", finding
    assert "milk and bread" in finding.message
    assert "a server started for this check" in finding.message
    assert said[0].startswith("starting a server with its model")
    assert said[-1] == "sending a voice message"


def test_a_server_that_fails_to_start_says_why(tmp_path):
    """The last lines of its log are in the finding."""
    finding = try_out(port=0, model=str(tmp_path), environ=os.environ)
    assert finding.status == "fault"
    assert "holds no model.bin" in finding.message


@pytest.mark.parametrize("stop_within", [15, 0])
def test_a_server_that_never_gets_ready_is_stopped(tmp_path, stop_within):
    """The wait ends, and the process with it, even if it does not stop in time."""
    limits = {"ready_within": -1, "stop_within": stop_within}
    with pytest.raises(ServerNotStarted, match="not ready"), serving("--model", str(tmp_path), **limits):
        pytest.fail("it cannot be ready")


def test_the_server_that_is_started_has_every_setting():
    """Those of doctor's command line, too; but its address, certificate and log are the check's own."""
    given = Settings(threads=3, window="exact", batch=2, api_key="a,b", certfile="/c.pem", announce=True, port=1)
    variables = {name.removeprefix("LOCALWHISPER_SERVER_"): value for name, value in doctor.variables(given).items()}
    assert variables["API_KEY"] == "a,b"
    assert [variables[name] for name in ("THREADS", "WINDOW", "BATCH")] == ["3", "exact", "2"]
    assert [variables[name] for name in ("CERTFILE", "ANNOUNCE", "LOG_FILE")] == ["", "false", "none"]
    assert "PORT" not in variables


# What doctor finds out about this machine

HERE = Machine({})


def test_health_tells_our_server_from_other_programs():
    """Our server's /health has `ready`. Any other answer, JSON or not, and no answer are None."""
    answers = []
    for answer in ((200, {"ready": False}), (200, {"hello": 1}), (200, b"<html>"), (403, {"error": 1})):
        with answering({"/health": answer}) as port:
            answers.append(HERE.health(f"http://127.0.0.1:{port}"))
    assert answers == [{"ready": False}, None, None, None]
    assert HERE.health(f"http://127.0.0.1:{port}") is None


def test_a_port_is_tried_as_the_server_would():
    """A free one gives ""; a taken one, or an address that is not this machine's, gives the reason."""
    with answering({}) as port:
        assert "in use" in HERE.bind("127.0.0.1", port)
    assert HERE.bind("127.0.0.1", port) == ""
    assert HERE.bind("192.0.2.254", 5000)


def test_a_command_gives_its_output(tmp_path):
    """Or None if it cannot be run, and status None if it hangs."""
    python = sys.executable
    assert HERE.run([python, "-c", "print('x')"]) == Output(0, "x\n")
    assert HERE.run([python, "-c", "import sys; sys.stdout.buffer.write('nat'.encode('utf-16-le'))"]) == Output(
        0, "nat"
    )
    assert HERE.run([python, "-c", "input()"], seconds=0.0) == Output(None, "")
    (tmp_path / "text").touch()
    assert HERE.run([str(tmp_path / "none")]) is HERE.run([str(tmp_path / "text")]) is None


@pytest.mark.parametrize(
    ("model", "here", "downloadable"),
    [
        pytest.param("tiny.en", True, False, marks=pytest.mark.model),
        ("large-v3", False, True),
        ("no such model", False, False),
    ],
)
def test_the_engine_is_asked_in_a_process_of_its_own(tmp_path, model, here, downloadable):
    """It downloads nothing: it says where the model is, or why not, and whether the hub has it."""
    asked = {"model": [model], "device": "cpu", "compute_type": "auto", "cache_dir": str(tmp_path)}
    answer, _ = Machine(os.environ | {"HF_HOME": str(tmp_path)}).inspect_engine(asked)
    assert answer is not None
    assert answer["compute_type"] in answer["compute_types"]
    (found,) = answer["models"]
    assert bool(found["folder"] and found["folder"].startswith(str(tmp_path)) and found["bytes"] > 1e7) is here
    assert bool(found["problem"]) is not here
    assert found["downloadable"] is downloadable


@pytest.mark.parametrize(
    ("code", "found", "status"),
    [
        ("raise ImportError('GLIBC_2.99 not found')", {"error": "ImportError: GLIBC_2.99 not found"}, 0),
        ("import os\nprint('[1]', flush=True)\nos.abort()", None, -6),
    ],
    ids=["for another system", "it dies"],
)
def test_an_engine_that_does_not_work_is_described(tmp_path, code, found, status):
    """A failed import is one line of JSON and not a traceback; of a process that dies, the end is kept."""
    package = tmp_path / "ctranslate2"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    asked = {"model": "base", "device": "cpu", "compute_type": "auto", "cache_dir": None}
    answer, output = Machine(os.environ | {"PYTHONPATH": str(tmp_path)}).inspect_engine(asked)
    assert (answer, output.status) == (found, status)


OLD_CARD = {"float32", "int8", "int8_float32"}  # a GTX 10: no float16


@pytest.mark.parametrize(
    ("settings", "cards", "chosen"),
    [
        ({}, 1, ("cuda", "int8_float32")),
        ({"device": "cpu"}, 1, ("cpu", "int8")),
        ({"compute_type": "float32"}, 1, ("cuda", "float32")),
        ({}, 0, ("cpu", "int8")),
    ],
)
def test_doctor_and_server_choose_alike(settings, cards, chosen, monkeypatch, tmp_path):
    """The same device and precision for the same machine, and a precision that the device can do."""
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: cards)
    monkeypatch.setattr(
        ctranslate2,
        "get_supported_compute_types",
        lambda device: OLD_CARD if device == "cuda" else {"float32", "int8"},
    )
    made = Settings(model="tiny.en", **settings)
    asked = {"model": made.model, "device": made.device, "compute_type": made.compute_type}
    seen = machine.inspect_engine(**asked, cache_dir=str(tmp_path))
    health = runtime.Runtime(made).health()
    assert (seen["device"], seen["compute_type"]) == (health["device"], health["compute_type"]) == chosen
    assert seen["compute_type"] in seen["compute_types"]
