"""The Serve application: one deployment of the face, and one of engine replicas for each model."""

import logging
import os
import re
import sys
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from localwhisper_server.cluster.engine import EngineReplica
from localwhisper_server.cluster.face import Face
from localwhisper_server.cluster.shape import Shape
from localwhisper_server.operations import logs
from localwhisper_server.settings import Settings
from localwhisper_server.whisper import model_names

APPLICATION = "localwhisper"
FACE = "face"
# Serve counts calls; how many may wait is decided by the face, with a true `Retry-After`.
MOST_CALLS = 100_000
# A dead replica is found by its calls at once. A stuck one is replaced after three of these.
HEALTH_SECONDS = 5.0
# For so long the sound is averaged; replicas tell it every 10 s. Too much of it has to last so long.
LOOK_BACK_SECONDS, TOO_MUCH_SECONDS = 15.0, 5.0
# Each call would be a line, and the face logs each request itself.
QUIET = {"enable_access_log": False}
# Beyond `--drain`, for the answers to be sent.
LAST_SECONDS = 5.0


def on_devices_of(settings: Settings, shape: Shape) -> Settings:
    """Return the settings with the device that the replicas have, and the models by name."""
    device = "cuda" if shape.gpus else "cpu"
    models = tuple(model_names.default_model(device) if model == "auto" else model for model in settings.model)
    return settings.model_copy(update={"model": models, "device": device})


def build(arguments: dict[str, Any]) -> Any:
    """Return the Serve application; Serve calls this with the `args` of its configuration file.

    `arguments` has `settings` as of localwhisper-server, with underscores, and those of `Shape`. What it lacks comes
    from the environment, as always.

    Raises:
        ValidationError: a setting is wrong.

    """
    given = dict(arguments)
    settings_given = given.pop("settings", {})
    return application(Settings(**settings_given), Shape(**given))


def application(settings: Settings, shape: Shape) -> Any:
    """Return the Serve application."""
    settings = on_devices_of(settings, shape)
    engines = {
        model: _engine(settings.model_copy(update={"model": (model,)}), model, shape)
        for model in dict.fromkeys(settings.model)
    }
    # The face has no GPU, whatever its replicas have.
    on_face = settings.model_copy(update={"device": "cpu", "compute_type": "auto"})
    face = serve.deployment(serve.ingress()(ServedFace))
    options = face.options(
        name=FACE,
        num_replicas=shape.faces,
        max_ongoing_requests=MOST_CALLS,
        ray_actor_options={"num_cpus": 0},
        logging_config=QUIET,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain + LAST_SECONDS,
    )
    return options.bind(on_face, engines)


def deployment_name(model: str) -> str:
    """Return the name of a model's engine deployment."""
    return "engine-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", model_names.served_names(model)[0])


def replicas_for_sound(context: Any, target: float) -> tuple[int, dict[str, Any]]:
    """Return how many replicas there should be: as many as have `target` seconds of sound each, within the bounds."""
    each = (context.aggregated_metrics or {}).get("sound", {})
    wanted = -(-sum(each.values()) // target)
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return int(max(low, min(high, wanted))), {}


class SoundPolicy:
    """The autoscaling policy of engine deployments; `target` is in seconds of sound for each replica."""

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and no state."""
        return replicas_for_sound(context, self._target)


class ServedEngine(EngineReplica):
    """An EngineReplica in a process of Ray's."""

    def __init__(self, settings: Settings, cores: int) -> None:
        prepare_process(settings)
        super().__init__(settings, cores, lambda: str(serve.get_replica_context().replica_id.unique_id))


class ServedFace(Face):
    """A Face in a process of Ray's."""

    def __init__(self, settings: Settings, engines: dict[str, Any]) -> None:
        prepare_process(settings)
        name = str(serve.get_replica_context().replica_id.unique_id)
        super().__init__(settings, engines, name, serve.get_deployment_handle(FACE, APPLICATION))


def prepare_process(settings: Settings) -> None:
    """Log to Ray's log file of this process, and let no library send telemetry."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    logs.configure(settings.log_level, [logging.StreamHandler(sys.stderr)], settings.log_format)


def _engine(settings: Settings, model: str, shape: Shape) -> Any:
    options: dict[str, Any] = {"num_replicas": shape.replicas}
    if shape.max_replicas > shape.replicas:
        policy = AutoscalingPolicy(
            policy_function="localwhisper_server.cluster.application:SoundPolicy", policy_kwargs={"target": shape.sound}
        )
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=shape.replicas,
                max_replicas=shape.max_replicas,
                policy=policy,
                look_back_period_s=LOOK_BACK_SECONDS,
                upscale_delay_s=TOO_MUCH_SECONDS,
            )
        }
    deployment = serve.deployment(ServedEngine).options(
        name=deployment_name(model),
        max_ongoing_requests=MOST_CALLS,
        ray_actor_options={"num_cpus": shape.cpus, "num_gpus": shape.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class="localwhisper_server.cluster.routing.LeastWorkRouter"
        ),
        logging_config=QUIET,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain + LAST_SECONDS,
        **options,
    )
    return deployment.bind(settings, shape.cpus)
