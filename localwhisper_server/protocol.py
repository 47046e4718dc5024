"""HTTP/1.1 as uvicorn speaks it, with an end to its patience: a request's head has to come within seconds.

uvicorn waits for a connection's first request for ever, and drops the timeout of an idle one with its first byte; a
few hundred connections that send a byte a minute would take all there are. The body is `body`'s business. What is
refused here never reaches the application, and is answered in OpenAI's envelope all the same.
"""

import asyncio
import json
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from localwhisper_server import observe
from localwhisper_server.errors import HeadTooLarge, InvalidRequest, ServerError, TooSlow

# Larger heads than any client's, smaller than h11's default of 64 KiB.
MOST_HEAD_BYTES = 32 * 1024


class _Strict(h11.Connection):
    """h11's reading of HTTP, less what it lets pass and others may read in another way."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what came next.

        Raises:
            RemoteProtocolError: that is not to be answered as a request.

        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            # RFC 9112 §6.1: where a proxy goes by the one and this server by the other, a request hides in a body.
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("two lengths of one body")
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("another version")
            # h11 counts what is incomplete; a head may come in one piece.
            if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > MOST_HEAD_BYTES:
                too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                raise h11.RemoteProtocolError("too large a head", error_status_hint=too_large)
        return event


class PatientProtocol(H11Protocol):
    """Closes a connection on which no request was begun within `head_seconds`.

    The same time is given to a caller to stop sending a body that was refused: closing at once would reset the
    connection, and the answer would be lost with it.
    """

    head_seconds = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Strict(h11.SERVER, MOST_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for the first request."""
        super().connection_made(transport)
        self._rearm()

    def data_received(self, data: bytes) -> None:
        """Stop waiting where that was the end of a head."""
        super().data_received(data)
        if self._busy:
            self._disarm()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may be here already."""
        super().on_response_complete()
        if not self._busy:
            self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._disarm()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        # None before the first request, whatever its type says.
        return bool(self.cycle) and not self.cycle.response_complete

    def _rearm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self.head_seconds, self._out_of_patience)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what is no HTTP, or too much of it; uvicorn calls this while it handles h11's error."""
        hint = getattr(sys.exception(), "error_status_hint", None)
        too_large = hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self._refuse(HeadTooLarge(MOST_HEAD_BYTES) if too_large else InvalidRequest("This is not valid HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a caller who asks for another protocol gets this one, and no lines in the log."""

    def _out_of_patience(self) -> None:
        if self.transport.is_closing():
            return
        begun, _ = self.conn.trailing_data
        if begun:
            self._refuse(TooSlow(f"The request's head did not come within {self.head_seconds:g} s."))
        else:
            self.transport.close()

    def _refuse(self, error: ServerError) -> None:
        """Answer and close; only close where an answer is on its way already."""
        if self._busy:  # the application may be about to answer; to it, the caller has left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", observe.new_request_id(None).encode()),
                (b"connection", b"close"),
            ]
            reason = HTTPStatus(error.status).phrase.encode()
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
