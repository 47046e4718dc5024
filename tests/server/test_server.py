from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from localwhisper_server import server
from localwhisper_server.operations.host import listen
from localwhisper_server.server import url
from localwhisper_server.settings import Settings
from localwhisper_server.whisper.weights import ModelError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("host", "in_url"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_a_port_is_taken_before_anything_slow(host: str, in_url: str) -> None:
    """Port 0 is any free one; the socket is bound, and a second server on it fails at once."""
    try:
        bound = listen(host, 0)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with bound:
        port = bound.getsockname()[1]
        assert url(bound) == f"http://{in_url}:{port}"
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            listen(host, port)


def test_an_address_of_another_machine_is_refused() -> None:
    """Before a model is loaded for nothing."""
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.1", 0)  # TEST-NET-1, which no machine has


def test_a_server_whose_model_fails_stops_and_says_why(tmp_path: Path) -> None:
    """It does not go on answering 500 for ever."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with listen("127.0.0.1", 0) as bound, pytest.raises(ModelError, match=r"holds no model\.bin"):
        server.run(Settings(model=str(empty)), bound, environ={})
