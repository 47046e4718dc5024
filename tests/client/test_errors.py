"""The exceptions themselves: they go through a queue, a pool or a cache, and lose no attribute by it but the keys."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import openai
import pytest

from localwhisper_client import errors
from localwhisper_client._http import http

REQUEST = http.Request("POST", "http://me:secret@pc:5000/v1/audio", headers={"Authorization": "Bearer secret"})
RESPONSE = http.Response(200, headers={"x-request-id": "r1"}, content=b"<html>", request=REQUEST)
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == errors.__name__
]


def _made(kind: type[Any]) -> Any:
    if issubclass(kind, errors.InvalidLocalResponse):
        return kind("what is wrong", response=RESPONSE)
    if issubclass(kind, errors.LocalServerUnavailable):
        return kind("what is wrong", request=REQUEST)
    return kind() if kind is errors.MissingCloudKey else kind("what is wrong")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301 - our own bytes
def test_each_exception_can_be_pickled_and_copied(kind: type[Any], through: Any) -> None:
    """Same class, words and attributes; the request keeps method and address, and no credentials."""
    error = _made(kind)
    again = through(error)
    assert type(again) is kind
    assert (str(again), again.args, vars(again).keys()) == (str(error), error.args, vars(error).keys())
    if isinstance(error, openai.APIError):
        assert (again.message, again.body, again.code) == (error.message, error.body, error.code)
        assert (again.request.method, again.request.url.host) == ("POST", "pc")
        assert b"secret" not in pickle.dumps(error)
    if isinstance(error, errors.InvalidLocalResponse):
        assert (again.response.status_code, again.response.content, again.status_code) == (200, b"<html>", 200)
        assert again.response.headers["x-request-id"] == "r1"


def test_an_answer_that_was_not_read_is_left_out() -> None:
    """A stream that was closed has no body any more."""
    unread = http.Response(200, request=REQUEST, stream=_Closed())
    again = copy.copy(errors.InvalidLocalResponse("x", response=unread))
    assert again.response.content == b""


class _Closed(http.SyncByteStream):  # type: ignore[misc] # the library is chosen at run time
    def __iter__(self) -> Any:
        raise AssertionError
