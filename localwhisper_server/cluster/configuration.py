"""Files for a Ray that others run: Serve's configuration, and KubeRay's RayService around it. No Ray, no I/O."""

from typing import Any

import yaml

from localwhisper_client import __version__
from localwhisper_server.cluster.shape import Shape

PORT = 8000  # Serve's own, which KubeRay's services expect
APPLICATION = "localwhisper"
IMPORT_PATH = "localwhisper_server.cluster.application:build"
IMAGE = "your-registry/localwhisper-ray:" + __version__


def serve_configuration(arguments: dict[str, Any], *, host: str = "0.0.0.0", port: int = PORT) -> dict[str, Any]:
    """Return what `serve deploy` and `serve run` take; `arguments` are those of `application.build`."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {"name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH, "args": arguments},
        ],
    }


def ray_service(arguments: dict[str, Any], shape: Shape, *, ray_version: str) -> dict[str, Any]:
    """Return a KubeRay RayService (ray.io/v1): a head without work, and workers that hold the engine replicas.

    A worker has one whole GPU, or the CPU cores of one replica.
    """
    on_worker = max(1, int(1 / shape.gpus)) if shape.gpus else 1
    # One core more than Ray gives to replicas, for a face.
    resources: dict[str, Any] = {"cpu": shape.cpus * on_worker + 1, "memory": "8Gi"}
    if shape.gpus:
        resources["nvidia.com/gpu"] = max(1, round(shape.gpus))
    models = len(dict.fromkeys(arguments.get("settings", {}).get("model", ("auto",))))
    workers, most = (
        -(-number * models // on_worker) for number in (shape.replicas, max(shape.replicas, shape.max_replicas))
    )
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "localwhisper"},
        "spec": {
            "serveConfigV2": to_yaml(serve_configuration(arguments)),
            "rayClusterConfig": {
                "rayVersion": ray_version,
                "enableInTreeAutoscaling": most > workers,
                "headGroupSpec": {
                    # No replica runs on the head.
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": _pod("ray-head", {"cpu": 2, "memory": "4Gi"}),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "engines",
                        "replicas": workers,
                        "minReplicas": workers,
                        "maxReplicas": most,
                        "rayStartParams": {"num-cpus": str(shape.cpus * on_worker)},
                        "template": _pod("ray-worker", resources),
                    }
                ],
            },
        },
    }


def _pod(name: str, resources: dict[str, Any]) -> dict[str, Any]:
    """Return a pod template. Keys come from the secret `localwhisper`, if there is one."""
    secret = {"secretRef": {"name": "localwhisper", "optional": True}}
    container = {
        "name": name,
        "image": IMAGE,
        "envFrom": [secret],
        "resources": {"limits": resources, "requests": resources},
    }
    return {"spec": {"containers": [container]}}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """Writes texts of several lines as they are, and no references from one place to another."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(value: dict[str, Any]) -> str:
    """Return a file's text."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
