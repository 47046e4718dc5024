"""The container files: what they name exists in the project. No container engine is needed for that."""

import json
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from localwhisper_server.operations.service import STOP_SECONDS
from localwhisper_server.settings import ENV_PREFIX, Settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]
PORT = Settings.model_fields["port"].default


def instructions(name: str) -> list[tuple[str, str]]:
    """Read a Dockerfile as (instruction, rest), continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def last_stage(name: str) -> dict[str, str]:
    """Read the instructions of the image itself; of several of a kind, the last."""
    lines = instructions(name)
    start = max(number for number, (instruction, _) in enumerate(lines) if instruction == "FROM")
    return dict(lines[start:])


def environment(name: str) -> dict[str, str]:
    """Read the image's ENV."""
    return dict(pair.split("=", 1) for pair in last_stage(name)["ENV"].split())


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_build_copies_what_it_needs(name):
    """Every package, the readme and the licence that pyproject.toml names, and nothing else."""
    copied = {
        source
        for instruction, rest in instructions(name)
        if instruction == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    needed = {
        "pyproject.toml",
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        *PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    assert copied == needed
    assert all((ROOT / source).exists() for source in copied)
    passed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert passed == needed


@pytest.mark.parametrize(
    ("name", "extras"), [("Dockerfile", {"server", "offline"}), ("Dockerfile.cuda", {"server", "cuda"})]
)
def test_the_extras_exist(name, extras):
    """The image for a GPU has CUDA's libraries; the other one does not."""
    (installed,) = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / name).read_text())
    assert set(installed.split(",")) == extras
    assert extras <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_python_is_one_that_the_project_is_for(name):
    """All stages have one Python, because the environment is copied; the classifiers name it."""
    images = {rest.split()[0] for instruction, rest in instructions(name) if instruction == "FROM"}
    (version,) = {image.removeprefix("python:").removesuffix("-slim") for image in images}
    assert f"Programming Language :: Python :: {version}" in PROJECT["project"]["classifiers"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_it_does_not_run_as_root(name):
    """The user is a number, because Kubernetes' runAsNonRoot needs one, and owns the volume."""
    user = last_stage(name)["USER"]
    assert int(user) > 0
    assert f"--uid {user} " in last_stage(name)["RUN"]
    assert f"--owner=localwhisper --group=localwhisper {last_stage(name)['VOLUME']}" in last_stage(name)["RUN"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_settings_exist_and_weights_go_to_the_volume(name):
    """Each variable is a setting; both caches are in the volume; the server listens on all addresses."""
    variables, volume = environment(name), last_stage(name)["VOLUME"]
    settings = {
        key.removeprefix(ENV_PREFIX).lower(): value for key, value in variables.items() if key.startswith(ENV_PREFIX)
    }
    assert settings.keys() <= Settings.model_fields.keys()
    assert settings["host"] == "0.0.0.0"
    assert settings["cache_dir"].startswith(volume)
    assert variables["HF_HOME"].startswith(volume)
    assert int(last_stage(name)["EXPOSE"]) == PORT


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_entry_point_exists(name):
    """The package installs this command, and the container stops it with SIGTERM."""
    (command,) = json.loads(last_stage(name)["ENTRYPOINT"])
    assert command in PROJECT["project"]["scripts"]
    assert last_stage(name)["STOPSIGNAL"] == "SIGTERM"


class Health(BaseHTTPRequestHandler):
    """Answers /health as told, and nothing else."""

    status = 200

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_) -> None:
        """Keep quiet."""


@pytest.mark.parametrize("name", DOCKERFILES)
@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check(name, status, healthy):
    """The command returns 0 if the server answers, and 1 if it refuses or is not there; it uses no proxy."""
    program, *arguments = json.loads(last_stage(name)["HEALTHCHECK"].partition("CMD ")[2])
    assert program == "python"
    assert f":{PORT}/health" in arguments[1]
    handler = type("Handler", (Health,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        code = arguments[1].replace(f":{PORT}/", f":{server.server_port}/")
        if status is None:
            server.server_close()
        thread = threading.Thread(target=server.handle_request if status else lambda: None)
        thread.start()
        finished = subprocess.run(
            [sys.executable, arguments[0], code],
            check=False,
            capture_output=True,
            timeout=30,
            env={"http_proxy": "http://127.0.0.1:9"},
        )
        thread.join()
    assert (finished.returncode == 0) is healthy


@pytest.mark.parametrize(("service", "dockerfile"), [("cpu", "Dockerfile"), ("cuda", "Dockerfile.cuda")])
def test_compose_runs_the_images(service, dockerfile):
    """Each profile starts one image, with its port and volume, and with as few privileges as possible."""
    described = COMPOSE["services"][service]
    build = described["build"]
    assert described["profiles"] == [service]
    assert (build.get("dockerfile", "Dockerfile") if isinstance(build, dict) else "Dockerfile") == dockerfile
    assert described["ports"] == [f"{PORT}:{last_stage(dockerfile)['EXPOSE']}"]
    assert described["volumes"] == [f"models:{last_stage(dockerfile)['VOLUME']}"]
    assert "models" in COMPOSE["volumes"]
    assert described["restart"] == "always"
    assert described["read_only"] is True
    assert described["tmpfs"] == ["/tmp"]  # noqa: S108 - the container's own, where uploads are spooled
    assert described["cap_drop"] == ["ALL"]
    assert described["stop_grace_period"] == f"{STOP_SECONDS}s"
    assert {key.removeprefix(ENV_PREFIX).lower() for key in described["environment"]} <= Settings.model_fields.keys()


def test_only_the_gpu_image_asks_for_a_gpu():
    """A machine without one can start the other."""
    assert "deploy" not in COMPOSE["services"]["cpu"]
    (device,) = COMPOSE["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
