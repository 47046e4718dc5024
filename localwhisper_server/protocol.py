"""HTTP/1.1 as uvicorn speaks it, with an end to its patience: a request's head has to come within seconds.

uvicorn waits for a connection's first request for ever, and drops the timeout of an idle one with its first byte; a
few hundred connections that send a byte a minute would take all there are. The body is `body`'s business. What is
refused here never reaches the application, and is answered in OpenAI's envelope all the same.
"""

import asyncio
import json
import sys
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from localwhisper_server import observe
from localwhisper_server.errors import HeadTooLarge, InvalidRequest, ServerError, TooSlow

# Larger heads than any client's, smaller than h11's default of 64 KiB.
MOST_HEAD_BYTES = 32 * 1024


class PatientProtocol(H11Protocol):
    """Closes a connection on which no request was begun within `head_seconds`.

    The same time is given to a caller to stop sending a body that was refused: closing at once would reset the
    connection, and the answer would be lost with it.
    """

    head_seconds = 10.0
    _deadline: asyncio.TimerHandle | None = None

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
