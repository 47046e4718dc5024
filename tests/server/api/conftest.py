"""Fixtures of the API's tests."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING

import pytest

from localwhisper_server.operations import logs
from tests.server.driving import FakeTranscriber, make_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp


@pytest.fixture
def transcriber() -> FakeTranscriber:
    """Give a transcriber that gives two segments."""
    return FakeTranscriber()


@pytest.fixture
def app(transcriber: FakeTranscriber) -> ASGIApp:
    """Give the app around it."""
    return make_app(transcriber)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Give the server's log, formatted."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers, root.level, io.StringIO()
    logs.configure("info", [logging.StreamHandler(stream)])
    yield stream
    root.handlers = handlers
    root.setLevel(level)
