"""The container files: what they name exists in the project. No container engine is needed for that."""

import contextlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from localwhisper_server.operations.service import STOP_SECONDS
from localwhisper_server.settings import ENV_PREFIX, Settings
from tests.server.listening import serving

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
def test_the_image_is_a_server_with_few_rights(name):
    """Its user is a number, as Kubernetes' runAsNonRoot needs, and owns the volume, which both caches are in."""
    stage = last_stage(name)
    user, volume = stage["USER"], stage["VOLUME"]
    assert int(user) > 0
    assert f"--uid {user} " in stage["RUN"]
    assert f"--owner=localwhisper --group=localwhisper {volume}" in stage["RUN"]
    variables = dict(pair.split("=", 1) for pair in stage["ENV"].split())
    settings = {
        key.removeprefix(ENV_PREFIX).lower(): value for key, value in variables.items() if key.startswith(ENV_PREFIX)
    }
    assert settings.keys() <= Settings.model_fields.keys()
    assert settings["host"] == "0.0.0.0"
    assert settings["cache_dir"].startswith(volume)
    assert variables["HF_HOME"].startswith(volume)
    assert int(stage["EXPOSE"]) == PORT
    (command,) = json.loads(stage["ENTRYPOINT"])
    assert command in PROJECT["project"]["scripts"]
    assert stage["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize("name", DOCKERFILES)
@pytest.mark.parametrize("status", [200, 503, None])
def test_the_health_check(name, status):
    """The command returns 0 if the server answers, and 1 if it refuses or is not there; it uses no proxy."""
    program, option, code = json.loads(last_stage(name)["HEALTHCHECK"].partition("CMD ")[2])
    assert program == "python"
    assert f":{PORT}/health" in code

    async def health(scope, _receive, send):
        await send({"type": "http.response.start", "status": status if scope["path"] == "/health" else 404})
        await send({"type": "http.response.body"})

    with contextlib.ExitStack() as stack:
        _, port = stack.enter_context(serving(health, lifespan="off"))
        if status is None:
            stack.close()
        line = [sys.executable, option, code.replace(f":{PORT}/", f":{port}/")]
        environ = {"http_proxy": "http://127.0.0.1:9"}
        finished = subprocess.run(line, check=False, capture_output=True, timeout=200, env=environ)
    assert (finished.returncode == 0) is (status == 200)


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
