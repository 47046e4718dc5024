"""HTTP/1.1 as uvicorn speaks it, with the limits that it has no options for, per connection and in their number.

uvicorn waits for a connection's first request for ever, drops the timeout of an idle one with its first byte, and
waits for ever until an answer is taken. It parses all that one read brought before anything else may happen, and the
body of a refused request to its end. The pace of a body is `body`'s business. What is refused here never reaches the
application, and is answered in OpenAI's envelope all the same.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from localwhisper_server import observer
from localwhisper_server.api import network
from localwhisper_server.errors import HeadTooLarge, InvalidRequest, ServerError, TooSlow

logger = logging.getLogger(__name__)

# Larger heads than any client's, smaller than h11's default of 64 KiB.
MOST_HEAD_BYTES = 32 * 1024
# Events that one connection may have handled before the others have their turn; an event takes some 10 µs.
EVENTS_PER_TURN = 16
# Smaller chunks than any sender's on average, after as many as a form of many fields may come in.
LEAST_CHUNK_BYTES = 8
FREE_CHUNKS = 200
# An answer is to be taken at this pace (bytes per second), seen every so many seconds.
WRITE_RATE = 1024
WRITE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Room:
    """How many connections are held: in `total`, and of one address, unless it is in one of the `unlimited` ranges."""

    total: int = 2048
    per_address: int = 256
    unlimited: Sequence[network.Network] = network.LOOPBACK

    def refusal(self, peer: str, peers: Sequence[str]) -> str | None:
        """Say why one more connection, of `peer`, is too many beside those of `peers`; None if it is not."""
        if len(peers) >= self.total:
            return f"{self.total} connections are open"
        address = network.parse_address(peer)
        # Telling who is who takes time; while few are connected, none can have too many.
        if len(peers) < self.per_address or address is None or network.within(address, self.unlimited):
            return None
        host = network.of_one_host(address)
        known = (other for other in map(network.parse_address, peers) if other is not None)
        if sum(network.of_one_host(other) == host for other in known) < self.per_address:
            return None
        return f"{self.per_address} connections of {host} are open"


class _Refused(h11.RemoteProtocolError):
    """What a caller sent is refused with an error of ours."""

    def __init__(self, error: ServerError) -> None:
        super().__init__(error.message)
        self.error = error


class _Strict(h11.Connection):
    """h11's reading of HTTP, less what it lets pass and others may read in another way; some events at a time.

    Set `turn` to the number of events that may be read; at 0, `next_event` gives NEED_DATA. `refused` says that an
    answer was begun before the request was whole.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MOST_HEAD_BYTES)
        self.turn = 0
        self.refused = False
        self._chunks = self._bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what came next.

        Raises:
            RemoteProtocolError: that is not to be answered as a request.

        """
        if not self.turn:
            return h11.NEED_DATA
        self.turn -= 1
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            names = {name for name, _ in event.headers}
            # RFC 9112 §6.1: where a proxy goes by the one and this server by the other, a request hides in a body.
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("two lengths of one body")
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("another version")
            # h11 counts what is incomplete; a head may come in one piece.
            if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > MOST_HEAD_BYTES:
                raise _Refused(HeadTooLarge(MOST_HEAD_BYTES))
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes // LEAST_CHUNK_BYTES:
                raise _Refused(InvalidRequest("The request's body came in chunks of a few bytes. Send larger ones."))
        return event

    def send(self, event: Any) -> Any:
        """Return the bytes of an event. An answer to what is not whole yet says that the connection ends with it."""
        sent = super().send(event)
        if isinstance(event, h11.Response) and self.their_state is h11.SEND_BODY:
            self.refused = True
            # Not among the event's headers: uvicorn would close at once, which resets the connection while the caller
            # is sending, and loses the answer.
            sent = sent.removesuffix(b"\r\n") + b"connection: close\r\n\r\n"
        return sent


class HttpProtocol(H11Protocol):
    """Closes a connection on which no request was begun within `head_seconds`, or whose answer is not taken.

    The same time is given to a caller to stop sending a body that was refused: closing at once would reset the
    connection, and the answer would be lost with it. What comes meanwhile is thrown away.
    """

    head_seconds = 10.0
    write_seconds = WRITE_SECONDS

    def __init__(self, *arguments: Any, room: Room = Room(), **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn: _Strict = _Strict()
        self._room = room
        self._deadline: asyncio.Handle | None = None
        self._untaken: asyncio.Handle | None = None
        self._next_turn: asyncio.Handle | None = None
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Wait for the first request, or close the connection where there is no room for it."""
        super().connection_made(transport)
        others = self.connections - {self}
        peers = [str(other.client[0]) for other in others if isinstance(other, H11Protocol) and other.client]
        if self.client and (full := self._room.refusal(self.client[0], peers)):
            logger.warning("%s; further ones are closed at once", full)
            transport.abort()
            return
        # So that `pause_writing` is called with the first byte that is not taken. (At 0, TLS would pause for ever.)
        transport.set_write_buffer_limits(high=1)
        self._rearm()

    def data_received(self, data: bytes) -> None:
        """Stop waiting where that was the end of a head."""
        if self._deaf:
            return
        super().data_received(data)
        if self._busy:
            self._disarm()

    def handle_events(self) -> None:
        """Handle some events; the rest, and what comes after it, when others have had their turn."""
        self.conn.turn = EVENTS_PER_TURN
        super().handle_events()
        if not self.conn.turn and self._next_turn is None:
            self.transport.pause_reading()
            self._next_turn = self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._next_turn = None
        if self.transport.is_closing():
            return
        if not self.flow.read_paused:
            self.transport.resume_reading()
        if not self._deaf:
            self.handle_events()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may be here already; after a refusal, for the caller to leave."""
        self._deaf = self._deaf or self.conn.refused
        super().on_response_complete()
        if not self._busy:
            self._rearm()

    def pause_writing(self) -> None:
        """Wait for the caller to take what was sent."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """Wait no more: all of it is taken."""
        if self._untaken is not None:
            self._untaken.cancel()
        super().resume_writing()

    def _watch_taking(self, before: float = float("inf")) -> None:
        """Look again and again whether enough was taken, also of a connection that is about to close."""
        left = self.transport.get_write_buffer_size()
        if left > before - WRITE_RATE * self.write_seconds:
            self.transport.abort()
        else:
            self._untaken = self.loop.call_later(self.write_seconds, self._watch_taking, left)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._disarm()
        if self._untaken is not None:
            self._untaken.cancel()
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
        failure = sys.exception()
        if isinstance(failure, _Refused):
            self._refuse(failure.error)
        elif getattr(failure, "error_status_hint", None) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            self._refuse(HeadTooLarge(MOST_HEAD_BYTES))
        else:
            self._refuse(InvalidRequest("This is not valid HTTP/1.1."))

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: a caller who asks for another protocol gets this one, and no lines in the log."""

    def _out_of_patience(self) -> None:
        begun, _ = self.conn.trailing_data
        if begun and not self._deaf:
            self._refuse(TooSlow(f"The request's head did not come within {self.head_seconds:g} s."))
        else:
            self.transport.close()

    def _refuse(self, error: ServerError) -> None:
        """Answer and close; only close where an answer is on its way already."""
        if self._busy:  # the application may be about to answer; to it, the caller has left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body())
            self.transport.write(
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {observer.new_request_id(None)}\r\nconnection: close\r\n\r\n{body}".encode()
            )
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._deaf = True
            self._rearm()
        else:
            self.transport.close()
