"""HTTP/1.1 as uvicorn speaks it, with the limits for which uvicorn has no option.

uvicorn waits without a limit for the first request of a connection, stops the timeout of an idle connection at its
first byte, and waits without a limit until an answer is read. It handles all that one read brought before any other
connection, and parses the body of a refused request to its end. Its own refusals are plain text; those here are in
OpenAI's envelope. The limits of a body are in `middleware`.
"""

import asyncio
import json
import logging
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from localwhisper_server.api.access_control import ConnectionLimits
from localwhisper_server.api.middleware import new_request_id
from localwhisper_server.errors import HeadTooLarge, InvalidRequest, ServerError, TooSlow

logger = logging.getLogger(__name__)

# More than any client's head, less than h11's default of 64 KiB.
MOST_HEAD_BYTES = 32 * 1024
# h11 events of one connection that are handled before other connections; one takes some 10 µs.
EVENTS_AT_A_TIME = 16
# A sender's chunks are larger than this on average. A form of many fields may begin with this many small ones.
LEAST_CHUNK_BYTES = 8
FREE_CHUNKS = 200
POLICY_VIOLATION = 1008  # RFC 6455 §7.4.1
RESTARTING = 1012  # IANA's registry of closing codes
# How long a session may take to end when the server stops: longer than it waits for its last texts.
STOP_SECONDS = 6.0
WRITE_RATE = 1024  # bytes per second at which an answer must be read
# The path of the only route that speaks WebSocket. On any other path a caller who asks for it is answered in HTTP.
WEBSOCKET_PATH = "/realtime"
# Bytes of one WebSocket that are parsed before other connections are served: 700 empty frames, some 10 ms.
WEBSOCKET_BYTES_AT_A_TIME = 4096
# Bytes of events that may wait for a client to read them before the session pauses.
MOST_UNREAD_BYTES = 64 * 1024


class _Refused(h11.RemoteProtocolError):
    """A request that h11 would accept, with the message to refuse it with."""


class _Strict(h11.Connection):
    """h11's connection, without what a proxy in front may read in another way; some events at a time.

    `events_left` is how many events may be read now; at 0, `next_event` returns NEED_DATA. `refused` says that the
    answer began before the request was complete.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MOST_HEAD_BYTES)
        self.events_left = 0
        self.refused = False
        self._chunks = self._bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event, or raise RemoteProtocolError to refuse the request."""
        if not self.events_left:
            return h11.NEED_DATA
        self.events_left -= 1
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            names = {name for name, _ in event.headers}
            # RFC 9112 §6.1: if a proxy goes by one length and this server by the other, a request can hide in a body.
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("two lengths of one body")
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("another version")
            # h11 limits incomplete heads alone; this one may have come in one piece.
            if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > MOST_HEAD_BYTES:
                raise h11.RemoteProtocolError("too long a head", error_status_hint=431)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_end
            self._bytes += len(event.data)
            if self._chunks > FREE_CHUNKS + self._bytes // LEAST_CHUNK_BYTES:
                raise _Refused("The request's body came in chunks of a few bytes. Send larger ones.")
        return event

    def send(self, event: Any) -> Any:
        """Return the bytes of an event. An answer to an incomplete request says that the connection ends with it."""
        sent = super().send(event)
        if isinstance(event, h11.Response) and self.their_state is h11.SEND_BODY:
            self.refused = True
            # If the event had this header, uvicorn would close at once. That resets the connection while the caller
            # sends, and loses the answer.
            sent = sent.removesuffix(b"\r\n") + b"connection: close\r\n\r\n"
        return sent


class HttpProtocol(H11Protocol):
    """Closes a connection on which no request begins within `head_seconds`, or whose answer is read too slowly.

    After a refusal, the caller has the same `head_seconds` to stop sending; what comes meanwhile is discarded. Closing
    at once would reset the connection and lose the answer.
    """

    head_seconds = 10.0
    write_seconds = 30.0  # between checks of the rate

    def __init__(self, *arguments: Any, limits: ConnectionLimits | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn: _Strict = _Strict()
        self._limits = limits or ConnectionLimits()
        self._timers: dict[str, asyncio.Handle] = {}
        self._continuing = False
        self._discarding = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Wait for the first request, or close the connection if there are too many."""
        super().connection_made(transport)
        others = self.connections - {self}
        kinds = (H11Protocol, WebSocketsSansIOProtocol)
        peers = [str(other.client[0]) for other in others if isinstance(other, kinds) and other.client]
        if self.client and (reason := self._limits.refusal(self.client[0], peers)):
            logger.warning("%s; further ones are closed at once", reason)
            transport.abort()
            return
        # `pause_writing` is then called with the first byte that is not sent. (At 0, TLS would pause for ever.)
        transport.set_write_buffer_limits(high=1)
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        """Read on; stop the timer at the end of a head."""
        if self._discarding:
            return
        super().data_received(data)
        if self._busy:
            self._stop("head")

    def handle_events(self) -> None:
        """Handle some events now, and the rest after other connections have been served."""
        self.conn.events_left = EVENTS_AT_A_TIME
        super().handle_events()
        if not self.conn.events_left and not self._continuing:
            self._continuing = True
            self.transport.pause_reading()
            self.loop.call_soon(self._continue)

    def _continue(self) -> None:
        self._continuing = False
        if self.transport.is_closing():
            return
        if not self.flow.read_paused:
            self.transport.resume_reading()
        if not self._discarding:
            self.handle_events()

    def on_response_complete(self) -> None:
        """Wait for the next request, which may be here already; after a refusal, for the caller to close."""
        self._discarding = self._discarding or self.conn.refused
        super().on_response_complete()
        if not self._busy:
            self._start_head_timer()

    def pause_writing(self) -> None:
        """Check from time to time that the caller reads the answer."""
        super().pause_writing()
        self._check_writing()

    def resume_writing(self) -> None:
        """Stop checking: all of it is sent."""
        self._stop("write")
        super().resume_writing()

    def _check_writing(self, before: float = float("inf")) -> None:
        """Abort if too few bytes were sent since the last check; goes on while the connection closes."""
        left = self.transport.get_write_buffer_size()
        if left > before - WRITE_RATE * self.write_seconds:
            self.transport.abort()
        else:
            self._timers["write"] = self.loop.call_later(self.write_seconds, self._check_writing, left)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        for timer in self._timers.values():
            timer.cancel()
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        # uvicorn types `cycle` as if it were there before the first request.
        return bool(self.cycle) and not self.cycle.response_complete

    def _start_head_timer(self) -> None:
        self._stop("head")
        self._timers["head"] = self.loop.call_later(self.head_seconds, self._head_too_slow)

    def _stop(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()

    def _head_too_slow(self) -> None:
        begun, _ = self.conn.trailing_data
        if begun and not self._discarding:
            self._refuse(TooSlow(f"The request's head did not come within {self.head_seconds:g} s."))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer what h11 refuses; uvicorn calls this while it handles h11's error."""
        failure = sys.exception()
        if getattr(failure, "error_status_hint", None) == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            message = f"The request's head is longer than {MOST_HEAD_BYTES} bytes."
            self._refuse(HeadTooLarge(message, code="headers_too_large"))
        else:
            self._refuse(
                InvalidRequest(str(failure) if isinstance(failure, _Refused) else "This is not valid HTTP/1.1.")
            )

    def _should_upgrade_to_ws(self) -> bool:
        return super()._should_upgrade_to_ws() and self.scope["path"].rstrip("/").endswith(WEBSOCKET_PATH)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over; its timers end here."""
        self._stop("head")
        super().handle_websocket_upgrade(event)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a caller who asks for another protocol is answered in this one."""

    def _refuse(self, error: ServerError) -> None:
        """Answer and close; only close if another answer has begun."""
        if self._busy:  # for the application, which may be about to answer, the caller has left
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body())
            self.transport.write(
                f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {new_request_id(None)}\r\nconnection: close\r\n\r\n{body}".encode()
            )
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._discarding = True
            self._start_head_timer()
        else:
            self.transport.close()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Aborts a connection whose events are read too slowly; closing it would wait until they are.

    What one read brought is parsed in small parts, and only as far as the session takes messages and the client reads:
    a read may bring 40,000 frames, and each ping is answered. After a broken frame, the client has `linger_seconds` to
    read why: closing at once would reset the connection while it sends, and lose the closing frame.

    When the server stops, the session is told by a disconnect with RESTARTING, after which it may still send. It is
    closed `stop_seconds` later if it has not closed by then.
    """

    write_seconds = 30.0  # between checks of the rate
    linger_seconds = 2.0
    stop_seconds = STOP_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # uvicorn logs every connection with its query; the request log has a line for each.
        self.logger = _quiet
        self._write_timer: asyncio.Handle | None = None
        self._stop_timer: asyncio.Handle | None = None
        self._discarding = False
        self._unparsed = b""
        self._continuing = False
        self._fragment_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read on, unless a frame was broken."""
        if not self.handshake_initiated:  # the head, which is in `data` as a whole
            super().data_received(data)
        elif not self._discarding:
            self._unparsed += data
            self._parse_on()

    def _parse_on(self) -> None:
        """Parse the next part, unless that has to wait; read no more before all is parsed."""
        # Not at once: over TLS, `resume_writing` may come in the middle of the part before.
        if self._unparsed and not self._continuing and not self.read_paused and self.writable.is_set():
            self._continuing = True
            self.loop.call_soon(self._parse_part)
        self._read_or_pause()

    def _parse_part(self) -> None:
        self._continuing = False
        part = self._unparsed[:WEBSOCKET_BYTES_AT_A_TIME]
        self._unparsed = self._unparsed[WEBSOCKET_BYTES_AT_A_TIME:]
        if part:
            super().data_received(part)
        self._parse_on()

    def _read_or_pause(self) -> None:
        if self.transport.is_closing():
            return
        waiting = self._unparsed or self.read_paused or not self.writable.is_set()
        change = self.transport.pause_reading if waiting and not self._discarding else self.transport.resume_reading
        change()

    async def receive(self) -> Any:
        """Give the session its next message; parse on once it has taken all."""
        message = await super().receive()
        self._parse_on()
        return message

    async def send(self, message: Any) -> None:
        """Send; after a closing frame, read on until the client's. A refusal ends the handshake, or it is an error."""
        await super().send(message)
        self.handshake_complete = self.handshake_complete or self.close_sent
        self._parse_on()

    def handle_cont(self, event: Frame) -> None:
        """Go on with a message; end the connection if it comes in fragments of a few bytes."""
        self._fragment_bytes = len(event.data) + (self._fragment_bytes if len(self.frames) > 1 else 0)
        if self._discarding:
            return
        if len(self.frames) > FREE_CHUNKS + self._fragment_bytes // LEAST_CHUNK_BYTES:
            self.frames = []
            self.conn.fail(POLICY_VIOLATION, "The message came in fragments of a few bytes. Send larger ones.")
            self.handle_parser_exception()
        else:
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """Tell the session and the client; discard what comes meanwhile."""
        closing = self.conn.close_sent
        code, reason = (closing.code, closing.reason) if closing else (1002, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._discarding = self.close_sent = True
        self._unparsed = b""
        self._read_or_pause()
        self.close_timer = self.loop.call_later(self.linger_seconds, self.transport.close)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the connection."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=MOST_UNREAD_BYTES)

    def pause_writing(self) -> None:
        """Check from time to time that the client reads; take nothing more from it meanwhile."""
        super().pause_writing()
        self._read_or_pause()
        self._check_writing()

    def resume_writing(self) -> None:
        """Stop checking, and go on."""
        self._stop_write_timer()
        super().resume_writing()
        self._parse_on()

    def _check_writing(self, before: float = float("inf")) -> None:
        left = self.transport.get_write_buffer_size()
        if left > before - WRITE_RATE * self.write_seconds:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.write_seconds, self._check_writing, left)

    def keepalive_timeout(self) -> None:
        """Abort: a client that does not answer a ping would not read a closing frame either."""
        self.transport.abort()

    def shutdown(self) -> None:
        """Tell an open session that the server stops, and close it later if it does not do so itself."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
            return
        self.close_timeout = self.linger_seconds
        self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTARTING})
        self._stop_timer = self.loop.call_later(self.stop_seconds, super().shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and forget what is not parsed."""
        self._stop_write_timer()
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        self._unparsed = b""
        super().connection_lost(exc)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


_quiet = logging.getLogger("uvicorn.error.websocket")
_quiet.setLevel(logging.WARNING)
