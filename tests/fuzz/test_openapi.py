"""Requests that the OpenAPI document allows, and others: none may give a 5xx."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("default")
def test_no_request_gives_a_5xx(app: ASGIApp) -> None:
    """On every route, for valid and for invalid requests."""
    statuses: collections.Counter[int] = collections.Counter()

    async def from_loopback(scope: Any, receive: Any, send: Any) -> None:
        """Give the request an address; schemathesis sends none, and access control would refuse it."""
        await app({**scope, "client": ("127.0.0.1", 1)}, receive, send)

    for found in schemathesis.openapi.from_asgi("/openapi.json", from_loopback).get_all_operations():
        operation = found.ok()
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=100,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            def ask(case: Any) -> None:
                answer = case.call()
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.content)

            try:
                ask()
            except Exception as failure:
                # A route without parameters has no invalid requests.
                if "Unsatisfiable" not in type(failure).__name__:
                    raise
    print(f"{sum(statuses.values())} requests: {dict(statuses)}")  # noqa: T201 - the session shows it
    assert sum(statuses.values()) > 500
