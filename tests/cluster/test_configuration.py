"""The files for a Ray that others run, against Serve's own schema."""

from __future__ import annotations

import io
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own, while it is imported
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from localwhisper_server.cluster import command
    from localwhisper_server.cluster.application import SoundPolicy, build

from localwhisper_server.cluster.shape import Shape
from localwhisper_server.settings import Settings


def _printed(settings: Settings, shape: Shape, *, kuberay: bool = False) -> Any:
    out = io.StringIO()
    assert command.config(settings, shape, kuberay=kuberay, out=out) == 0
    return yaml.safe_load(out.getvalue())


def test_serve_takes_its_file() -> None:
    """It names the application's builder, which builds the application from the file's arguments."""
    settings = Settings(model=("tiny.en", "base"), allow_from="10.0.0.0/8", queue=7, port=8001)
    file = _printed(settings, Shape(replicas=3, max_replicas=9, gpus=0.5))
    schema = ServeDeploySchema.model_validate(file)
    (application,) = schema.applications
    assert (schema.http_options.host, schema.http_options.port) == ("0.0.0.0", 8001)
    assert application.import_path == "localwhisper_server.cluster.application:build"
    assert application.args == {
        "settings": {"model": ["tiny.en", "base"], "allow_from": ["10.0.0.0/8"], "queue": 7},
        "replicas": 3,
        "max_replicas": 9,
        "gpus": 0.5,
    }
    built = build(application.args)
    assert built._bound_deployment.name == "face"


def test_kubernetes_takes_the_same() -> None:
    """Two replicas with half a GPU each share a pod; the head has no replica; keys come from a secret."""
    file = _printed(Settings(model="large-v3"), Shape(replicas=5, max_replicas=8, gpus=0.5), kuberay=True)
    assert (file["apiVersion"], file["kind"]) == ("ray.io/v1", "RayService")
    ServeDeploySchema.model_validate(yaml.safe_load(file["spec"]["serveConfigV2"]))
    cluster = file["spec"]["rayClusterConfig"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (3, 4)
    assert cluster["enableInTreeAutoscaling"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["envFrom"] == [{"secretRef": {"name": "localwhisper", "optional": True}}]


def test_every_model_has_workers() -> None:
    """Each of three models gets four replicas, and Ray puts one on a worker: the core of the face is not Ray's."""
    file = _printed(Settings(model=("tiny.en", "base", "small")), Shape(replicas=4, cpus=2), kuberay=True)
    (workers,) = file["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (12, 12, 12)
    assert workers["rayStartParams"] == {"num-cpus": "2"}
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["cpu"] == 3
    assert not file["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"]


def test_no_key_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    """The message says where keys belong."""
    out = io.StringIO()
    assert command.config(Settings(api_key="sk-secret"), Shape(), kuberay=False, out=out)
    assert "LOCALWHISPER_SERVER_API_KEY" in capsys.readouterr().err
    assert not out.getvalue()


@pytest.mark.parametrize(
    ("sound", "wanted"),
    [({}, 2), ({"a": 30.0, "b": 30.0}, 2), ({"a": 100.0, "b": 90.0}, 4), ({"a": 9000.0}, 8)],
)
def test_as_many_replicas_as_the_sound_needs(sound: dict[str, float], wanted: int) -> None:
    """One for each 60 seconds of sound that wait, within the bounds."""
    context = SimpleNamespace(
        aggregated_metrics={"sound": sound}, capacity_adjusted_min_replicas=2, capacity_adjusted_max_replicas=8
    )
    assert SoundPolicy(60.0)(context) == (wanted, {})
