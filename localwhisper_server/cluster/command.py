"""`localwhisper-server cluster up|status|down|config`: the same app on Ray, on this machine or as files for others."""

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TextIO

import ray
from ray import serve

from localwhisper_server.cluster.application import APPLICATION, application
from localwhisper_server.cluster.configuration import PORT, ray_service, serve_configuration, to_yaml
from localwhisper_server.cluster.local import LOOPBACK, LocalRay, RayNotStarted, Running
from localwhisper_server.cluster.shape import Shape
from localwhisper_server.operations.host import server_url
from localwhisper_server.settings import Settings

POLL_SECONDS = 0.25
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
# What one address of this machine serves, and a cluster does not: the replicas' addresses change.
NOT_HERE = ("wyoming", "announce")
# Serve's own business: where it listens, and where it logs.
OF_SERVE = ("host", "port", "log_file", "quiet")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Shape` to those of the server."""
    group = parser.add_argument_group("the cluster")
    for name, field in Shape.model_fields.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if field.annotation is float else int,
            default=field.default,
            metavar="N",
            help=f"{field.description} (default: {field.default:g})",
        )


def shape_of(parsed: argparse.Namespace) -> Shape:
    """Return the shape that the options give.

    Raises:
        ValidationError: a number is out of range.

    """
    return Shape(**{name: getattr(parsed, name) for name in Shape.model_fields})


def arguments_of(settings: Settings, shape: Shape) -> dict[str, Any]:
    """Return the arguments of `application.build`: what was given, without defaults."""
    given = settings.model_fields_set - {*OF_SERVE, *NOT_HERE}
    return {"settings": settings.model_dump(mode="json", include=given), **shape.model_dump(exclude_defaults=True)}


def up(settings: Settings, shape: Shape, local: LocalRay, *, out: TextIO = sys.stdout) -> int:
    """Start Ray if it does not run, deploy or update the app, and say what happens; return the exit status."""
    for name in NOT_HERE:
        if name in settings.model_fields_set and getattr(settings, name):
            _say(f"--{name} is left out: a cluster does not have it.", file=out)
    running = local.running()
    if running is None:
        _say("starting Ray on this machine …", file=out)
        models = len(settings.model)
        cpus = max(os.cpu_count() or 1, shape.cpus * max(shape.replicas, shape.max_replicas) * models)
        try:
            running = local.start(cpus=cpus)
        except RayNotStarted as failure:
            _say(f"{failure}.", file=sys.stderr)
            return os.EX_UNAVAILABLE
    elif running.url:
        _say(f"Ray runs already; the app at {running.url} is updated; open requests may finish.", file=out)
    with connected(running):
        options: dict[str, Any] = {"host": settings.host, "port": settings.port}
        if settings.certfile is not None:
            keyfile = settings.keyfile or settings.certfile
            options |= {"ssl_certfile": str(settings.certfile), "ssl_keyfile": str(keyfile)}
        serve.start(proxy_location="EveryNode", http_options=options)
        url = server_url(LOOPBACK, settings.port, tls=settings.certfile is not None)
        local.remember(replace(running, url=url))
        target = serve.RunTarget(application(settings, shape), name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)
        for line in progress():
            _say(line, file=out)
        state = serve.status().applications[APPLICATION]
    if _name(state.status) in FAILED:
        _say(f"the app did not start: {state.message}\nThe logs are in {local.log.parent}.", file=sys.stderr)
        return os.EX_SOFTWARE
    _say(f"ready: {url} ({url}/v1 is the base URL for programs)", file=out)
    return 0


def progress(*, pause: Callable[[float], object] = time.sleep) -> Iterator[str]:
    """Yield a line for each change until the app runs, with no replica that starts or stops, or fails."""
    before: dict[str, str] = {}
    while True:
        app = serve.status().applications.get(APPLICATION)
        if app is not None:
            for name, deployment in app.deployments.items():
                counts = deployment.replica_states.items()
                states = ", ".join(f"{count} {_name(state).lower()}" for state, count in counts)
                if states and before.get(name) != states:
                    before[name] = states
                    yield f"{name}: {states}"
            others = {_name(state) for one in app.deployments.values() for state in one.replica_states} - {"RUNNING"}
            if _name(app.status) in FAILED or (_name(app.status) == "RUNNING" and not others):
                return
        pause(POLL_SECONDS)


def status(local: LocalRay, *, as_json: bool, out: TextIO = sys.stdout) -> int:
    """Print what runs; return 0 if the app does."""
    running = local.running()
    if running is None:
        _say("{}" if as_json else "no cluster runs here; `localwhisper-server cluster up` starts one", file=out)
        return 1
    with connected(running):
        app = serve.status().applications.get(APPLICATION)
    deployments = {
        name: {_name(state).lower(): count for state, count in one.replica_states.items()}
        | {"status": _name(one.status)}
        for name, one in (app.deployments if app else {}).items()
    }
    state = _name(app.status) if app else "NOT_STARTED"
    if as_json:
        _say(json.dumps({"url": running.url, "status": state, "deployments": deployments}), file=out)
    else:
        _say(f"{state.lower()} at {running.url}, Ray at {running.address} (pid {running.pid})", file=out)
        for name, one in deployments.items():
            _say(f"  {name}: {', '.join(f'{count} {key}' for key, count in one.items() if key != 'status')}", file=out)
    return 0 if state == "RUNNING" else 1


def down(local: LocalRay, *, out: TextIO = sys.stdout) -> int:
    """Let open requests finish, and end Ray."""
    running = local.running()
    if running is None:
        _say("no cluster runs here", file=out)
        return 0
    _say("stopping; open requests may finish …", file=out)
    try:
        with connected(running):
            serve.shutdown()
    except ConnectionError:
        _say("Ray does not answer, and is ended", file=out)
    local.stop(running)
    _say("stopped", file=out)
    return 0


def config(settings: Settings, shape: Shape, *, kuberay: bool, out: TextIO = sys.stdout) -> int:
    """Print the file for a Ray that others run; return the exit status."""
    if settings.api_key or settings.upstream_api_key:
        _say(
            "keys do not belong into this file. Leave out --api-key and --upstream-api-key, and set "
            "LOCALWHISPER_SERVER_API_KEY and LOCALWHISPER_SERVER_UPSTREAM_API_KEY where the replicas run.",
            file=sys.stderr,
        )
        return os.EX_USAGE
    arguments = arguments_of(settings, shape)
    if kuberay:
        file = ray_service(arguments, shape, ray_version=ray.__version__)
    else:
        given = settings.model_fields_set
        file = serve_configuration(
            arguments,
            host=settings.host if "host" in given else "0.0.0.0",
            port=settings.port if "port" in given else PORT,
        )
    _say(to_yaml(file).rstrip(), file=out)
    return 0


@contextlib.contextmanager
def connected(running: Running) -> Iterator[None]:
    """Connect this process to Ray while the block runs."""
    ray.init(address=running.address, namespace="serve", logging_level="error", log_to_driver=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _name(state: Any) -> str:
    """Return the name of one of Serve's states, which come as enumerations and as texts."""
    return str(getattr(state, "value", state))


def _say(line: str, *, file: TextIO) -> None:
    file.write(f"{line}\n")
    file.flush()
