"""The end-to-end check: the stock SDK against a server that is real, broken, locked or not there."""

import contextlib
import json
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import ctranslate2
import pytest
import trustme

from localwhisper_server import runtime
from localwhisper_server.operations.doctor import machine, probe, trial
from localwhisper_server.operations.doctor.machine import Output, this_machine
from localwhisper_server.settings import Settings

MODEL = {"id": "whisper-1", "object": "model", "created": 0, "owned_by": "localwhisper"}


@pytest.fixture(autouse=True)
def no_settings_from_here(monkeypatch):
    """No test sees the settings of the machine it runs on, and none can go through a proxy that is not there."""
    for name in [name for name in os.environ if name.startswith(("LOCALWHISPER_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


class Scripted(BaseHTTPRequestHandler):
    """Answers each path as its server's script says."""

    script: ClassVar[dict[str, tuple[int, Any]]] = {}

    def do_GET(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, body = self.script.get(self.path, (404, {"error": {"message": "no"}}))
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the base class's name

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextlib.contextmanager
def serving(script: dict[str, tuple[int, Any]], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run a scripted server on a free loopback port."""
    handler = type("Handler", (Scripted,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


HEALTHY = {"/health": (200, {"ready": True}), "/v1/models/whisper-1": (200, MODEL)}
SPEECH = "/v1/audio/transcriptions"
ANSWERS = [
    (
        "it understands",
        {SPEECH: (200, {"text": " Please buy milk."})},
        "ok",
        '"Please buy milk." from the running server',
    ),
    ("it hears nothing", {SPEECH: (200, {"text": " "})}, "fault", "heard nothing"),
    ("it is locked", {SPEECH: (401, {"error": {"message": "key?"}})}, "fault", "LOCALWHISPER_SERVER_API_KEY"),
    ("it fails", {SPEECH: (500, {"error": {"message": "CUDA out of memory"}})}, "fault", "answered 500"),
    ("it has no models", {"/v1/models/whisper-1": (404, {"error": {"message": "x"}})}, "fault", "answered 404"),
]


@pytest.mark.parametrize(("script", "status", "words"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_the_running_server_is_asked(script, status, words):
    """Whatever the server does becomes one line; the machine's proxy is not asked."""
    with serving(HEALTHY | script) as port:
        finding = trial.try_out(this_machine({}), Settings(port=port), model_here=False, say=lambda _: None)
    assert finding.status == status
    assert words in "\n".join([finding.message, *finding.fix])


def test_a_server_with_a_certificate_is_asked_over_https(tmp_path):
    """Although that is for the name it has outside, and from whom nobody here knows."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("pc.example.org").configure_cert(tls)
    answers = HEALTHY | {SPEECH: (200, {"text": " Please buy milk."})}
    with serving(answers, tls) as port:
        settings = Settings(port=port, certfile=tmp_path / "chain.pem")
        finding = trial.try_out(this_machine({}), settings, model_here=False, say=lambda _: None)
    assert finding.status == "ok", finding


def test_keys_that_cannot_be_read_are_a_fault(tmp_path):
    """As the server itself would say."""
    settings = Settings(api_key_file=tmp_path / "nowhere")
    finding = trial.try_out(this_machine({}), settings, model_here=True, say=lambda _: None)
    assert finding.status == "fault"
    assert "--api-key-file" in finding.message


def test_a_server_that_goes_away_is_a_fault():
    """The check ends with a line, never with a traceback."""
    with serving({}) as port:
        pass
    finding = trial.transcribe(trial.Server(f"http://127.0.0.1:{port}", own=False), Settings())
    assert finding.status == "fault"
    assert "did not answer" in finding.message


def test_nothing_is_downloaded_to_try():
    """Without a server and without weights there is nothing to try, which is no fault."""
    with serving({}) as port:
        pass
    finding = trial.try_out(this_machine({}), Settings(port=port), model_here=False, say=lambda _: None)
    assert finding.status == "warning"
    assert "model is not here" in finding.message


@pytest.mark.model
def test_a_server_is_started_where_none_runs(tmp_path):
    """A real server, with a real model and a key, in its own process; gone when the check is over."""
    said: list[str] = []
    settings = Settings(port=0, model="tiny.en", device="cpu", api_key="secret", cache_dir=tmp_path)
    finding = trial.try_out(this_machine(os.environ), settings, model_here=True, say=said.append)
    assert finding.status == "ok", finding
    assert "milk and bread" in finding.message
    assert "a server started for this check" in finding.message
    assert said[0].startswith("starting a server with its model")
    assert said[-1] == "sending a voice message"


def test_a_server_that_does_not_come_up_says_why(tmp_path):
    """Its own last words are the remedy."""
    settings = Settings(port=0, model=str(tmp_path))
    finding = trial.try_out(this_machine(os.environ), settings, model_here=True, say=lambda _: None)
    assert finding.status == "fault"
    assert "holds no model.bin" in "\n".join(finding.fix)


@pytest.mark.parametrize("patience", [trial.STOP_SECONDS, 0])
def test_a_server_that_never_gets_ready_is_given_up(tmp_path, monkeypatch, patience):
    """The wait has an end, and the process does not outlive it, even one that would not stop when asked."""
    monkeypatch.setattr(trial, "STOP_SECONDS", patience)
    settings = Settings(model=str(tmp_path))
    with (
        pytest.raises(trial.Failed),
        trial.started(settings, os.environ, lambda _: None, lambda _: None, within=-1),
    ):
        pytest.fail("it cannot be ready")


def test_health_tells_our_server_from_others():
    """Ours has `ready`; another program's answer, or one that is no JSON, is not taken for it; nobody is None."""
    script = {
        "/ours": (200, {"ready": False}),
        "/other": (200, {"hello": 1}),
        "/page": (200, b"<html>"),
        "/refused": (403, {"error": 1}),
    }
    with serving(script) as port:
        answers = [machine._health(f"http://127.0.0.1:{port}{path}") for path in script]
    assert answers == [{"ready": False}, {}, {}, {}]
    assert machine._health(f"http://127.0.0.1:{port}/ours") is None


def test_a_port_is_tried_as_the_server_would():
    """Free is "", taken says why, and so does an address that is not this machine's."""
    with serving({}) as port:
        assert "in use" in machine._bind("127.0.0.1", port)
    assert machine._bind("127.0.0.1", port) == ""
    assert machine._bind("192.0.2.254", 5000)


def test_commands_end_in_an_output(tmp_path):
    """What a command prints, how it fails, that it is missing or hangs: all are answers."""
    python = machine.sys.executable
    assert machine._run([python, "-c", "print('x')"]) == Output(0, "x\n")
    assert machine._run([python, "-c", "import sys; sys.stdout.buffer.write('nat'.encode('utf-16-le'))"]) == Output(
        0, "nat"
    )
    assert machine._run([str(tmp_path / "none")]) is None
    assert machine._finish([python, "-c", "input()"], 0.0, None) == Output(None, "")
    (tmp_path / "text").touch()
    refused = machine._run([str(tmp_path / "text")])
    assert refused is not None
    assert refused.status == 126


def test_files_are_looked_at_without_fear(tmp_path):
    """A missing file is None, free room is that of the nearest folder that exists."""
    (tmp_path / "a").write_text("x")
    assert machine._read(str(tmp_path / "a")) == "x"
    assert machine._read(str(tmp_path / "b")) is None
    assert machine._find(f"{tmp_path}/*") == [str(tmp_path / "a")]
    assert machine._free_bytes(str(tmp_path / "not" / "yet"))


@pytest.mark.model
def test_the_probe_describes_a_model_that_is_here(tmp_path):
    """The engine's own answers, from a process of its own."""
    asked = {"model": "tiny.en", "device": "cpu", "compute_type": "auto", "cache_dir": str(tmp_path)}
    answer, _ = machine._probe(asked, os.environ)
    assert answer is not None
    assert answer["device"] == "cpu"
    assert answer["compute_type"] in answer["compute_types"]
    assert answer["folder"].startswith(str(tmp_path))
    assert answer["model_bytes"] > 1e7


@pytest.mark.parametrize(("model", "downloadable"), [("large-v3", True), ("no such model", False)])
def test_the_probe_downloads_nothing(tmp_path, model, downloadable):
    """A model that is not here is a fact, and whether the hub would have it, another."""
    asked = {"model": model, "device": "cpu", "compute_type": "auto", "cache_dir": str(tmp_path)}
    answer, _ = machine._probe(asked, os.environ | {"HF_HOME": str(tmp_path)})
    assert answer is not None
    assert answer["folder"] is None
    assert answer["model_problem"]
    assert answer["downloadable"] is downloadable


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
    """The same device and precision for the same machine, and one that doctor finds among what the device can do."""
    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: cards)
    monkeypatch.setattr(
        ctranslate2,
        "get_supported_compute_types",
        lambda device: OLD_CARD if device == "cuda" else {"float32", "int8"},
    )
    made = Settings(model="tiny.en", **settings)
    asked = {"model": made.model, "device": made.device, "compute_type": made.compute_type}
    seen = probe.look(**asked, cache_dir=str(tmp_path))
    health = runtime.Runtime(made).health()
    assert (seen["device"], seen["compute_type"]) == (health["device"], health["compute_type"]) == chosen
    assert seen["compute_type"] in seen["compute_types"]


def test_the_trial_gives_a_server_every_setting():
    """What was set on doctor's command line, too; but the place, the certificate and the log are the trial's own."""
    given = Settings(threads=3, window="exact", batch=2, api_key="a,b", certfile="/c.pem", announce=True)
    variables = trial.variables(given)
    assert variables["LOCALWHISPER_SERVER_API_KEY"] == "a,b"
    assert [variables[f"LOCALWHISPER_SERVER_{name}"] for name in ("THREADS", "WINDOW", "BATCH")] == ["3", "exact", "2"]
    assert [variables[f"LOCALWHISPER_SERVER_{name}"] for name in ("CERTFILE", "ANNOUNCE")] == ["", "false"]


def test_a_probe_that_dies_leaves_its_words(monkeypatch):
    """No JSON, no answer; how it ended is told."""
    monkeypatch.setattr(machine, "_finish", lambda *_: Output(-6, "terminate called\n[1]\n"))
    assert machine._probe({}, {}) == (None, Output(-6, "terminate called\n[1]\n"))


def test_the_probe_tells_why_the_engine_cannot_be_loaded(tmp_path):
    """A CTranslate2 that is built for another system is one line of JSON, not a traceback."""
    package = tmp_path / "ctranslate2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('libc.so.6: version `GLIBC_2.99` not found')")
    asked = {"model": "base", "device": "cpu", "compute_type": "auto", "cache_dir": None}
    answer, _ = machine._probe(asked, os.environ | {"PYTHONPATH": str(tmp_path)})
    assert answer == {"error": "ImportError: libc.so.6: version `GLIBC_2.99` not found"}
