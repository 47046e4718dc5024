"""OpenTelemetry: a span for each request, sent to a collector. Its packages are imported only where that is asked for.

Spans hold method, path, status and times; headers and bodies are never recorded.
"""

import importlib
from collections.abc import Callable
from typing import Any

from localwhisper_client._version import __version__

Import = Callable[[str], Any]
MISSING = "--otlp-endpoint needs OpenTelemetry: pip install 'localwhisper-lan[server,otel]'"


class NotInstalled(Exception):
    """The packages are not there; the message says how to get them."""


def provider(endpoint: str, load: Import = importlib.import_module) -> Any:
    """Return a tracer provider that sends spans to an OTLP endpoint over HTTP, in batches, from a thread of its own.

    Call its `shutdown()` at the end, which sends what is left.

    Raises:
        NotInstalled: the extra `[otel]` is not.

    """
    try:
        trace = load("opentelemetry.sdk.trace")
        export = load("opentelemetry.sdk.trace.export")
        resources = load("opentelemetry.sdk.resources")
        exporter = load("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as failure:
        raise NotInstalled(MISSING) from failure
    resource = resources.Resource.create({"service.name": "localwhisper", "service.version": __version__})
    made = trace.TracerProvider(resource=resource)
    made.add_span_processor(export.BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=endpoint)))
    return made


def traced(app: Any, tracer_provider: Any, load: Import = importlib.import_module) -> Any:
    """Return an application that opens a span around each request; health checks have none.

    Raises:
        NotInstalled: the extra `[otel]` is not.

    """
    try:
        asgi = load("opentelemetry.instrumentation.asgi")
    except ImportError as failure:
        raise NotInstalled(MISSING) from failure
    wrapped: Any = asgi.OpenTelemetryMiddleware(
        app, tracer_provider=tracer_provider, excluded_urls="/health,/ready,/metrics", exclude_spans=["send", "receive"]
    )
    return wrapped
