"""An HTTP connection: uvicorn's, with a bound for each stage and stricter about request heads."""

import asyncio
import enum

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from keybearer_service.gateway.routes import IDENTIFIED
from keybearer_service.http.connection_table import ConnectionTable, Held, Standing
from keybearer_service.http.framing import (
    HEAD_END,
    ChunkedBody,
    FramingError,
    assert_lines_end,
    body_length,
)
from keybearer_service.net.bounds import Bounds

_CLOSE_WITHIN_S = 5.0
"""For a client to take the last bytes, and to stop sending."""


class _Stage(enum.Enum):
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    IDLE = "idle"
    CLOSING = "closing"


class HttpConnection(H11Protocol):
    """One connection, from the end of its TLS handshake on.

    Bytes are handed to uvicorn request by request: a head once it is complete, then the body that
    belongs to it. So each head is checked, and a request that is sent ahead waits here.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        table: ConnectionTable,
        bounds: Bounds,
        accepted: Held,
    ) -> None:
        """Make the protocol of an accepted connection.

        Args:
            config: Of the server.
            server_state: Of the server.
            table: Where the connection is counted while it is open.
            bounds: Of the listener.
            accepted: The connection as it was counted before.
        """
        super().__init__(config, server_state, {})
        self.peer = accepted.peer
        self._accepted = accepted
        self.since = self.loop.time()
        self._table = table
        self._bounds = bounds
        self._limits = {
            _Stage.HEAD: bounds.header_s,
            _Stage.BODY: bounds.body_s,
            _Stage.ANSWER: bounds.answer_s,
            _Stage.CLOSING: _CLOSE_WITHIN_S,
        }
        self._stage = _Stage.HEAD
        self._standing = Standing.SILENT
        self._has_asked = False
        self._is_refused = False
        self._waiting = bytearray()
        """Bytes that were not handed to uvicorn yet."""
        self._body_left: int | ChunkedBody = 0
        """What is to come of the body of the current request."""
        self._body_taken = 0

    # --- stages and standing ----------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """How much the connection is worth keeping."""
        return Standing.ANSWERING if self._stage is _Stage.ANSWER else self._standing

    def close_if_late(self, now: float) -> bool:
        """Close the connection when its stage has taken too long; return whether it has."""
        self._note_stage()
        limit = self._limits.get(self._stage)  # an idle one is closed by uvicorn
        if limit is None or now - self.since < limit:
            return False
        is_half_head = self._stage is _Stage.HEAD and self._waiting
        is_half_body = self._stage is _Stage.BODY and not self.cycle.response_started
        if is_half_head or is_half_body:
            self._refuse(408, "Request Timeout", "the request did not come in time")
        else:
            self.drop()
        return True

    def drop(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def _note_stage(self) -> None:
        stage = self._stage_now()
        if stage is not self._stage:
            self._stage = stage
            self.since = self.loop.time()

    def _stage_now(self) -> _Stage:
        if self.transport.is_closing() or self._is_refused:
            return _Stage.CLOSING
        if self._is_between_requests:
            is_idle = self._has_asked and not self._waiting
            return _Stage.IDLE if is_idle else _Stage.HEAD
        return _Stage.BODY if self.conn.their_state is h11.SEND_BODY else _Stage.ANSWER

    @property
    def _is_between_requests(self) -> bool:
        return not self._has_asked or (
            self.cycle.response_complete and self.conn.their_state is h11.IDLE
        )

    # --- what asyncio and uvicorn call ------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection."""
        super().connection_made(transport)
        self._table.replace(self._accepted, self)
        del self._accepted

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the connection no more."""
        self._table.remove(self)
        if self.timeout_keep_alive_task is not None:
            # After a reset uvicorn leaves it running, and with it this connection in memory.
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process the next bytes."""
        if self._is_refused:
            return
        self._waiting += data
        self._hand_over()
        self._note_stage()

    def on_response_complete(self) -> None:
        """Go on with the next request, once a response was written."""
        if self._standing is not Standing.IDENTIFIED:
            is_identified = self.scope["state"].get(IDENTIFIED, False)
            self._standing = Standing.IDENTIFIED if is_identified else Standing.ANSWERED
        super().on_response_complete()
        self._note_stage()
        self._hand_over()
        self._note_stage()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; uvicorn itself would fail here once a response has begun."""
        cycle = self.cycle
        if self._has_asked and cycle.response_started and not cycle.response_complete:
            self.transport.close()
        else:
            self._refuse(400, "Bad Request", msg)

    # --- requests, one by one ---------------------------------------------------------------------

    def _hand_over(self) -> None:
        try:
            while self._waiting and self._stage_now() is not _Stage.CLOSING:
                if self._is_between_requests:
                    is_over = self._hand_over_head()
                elif self.conn.their_state is h11.SEND_BODY:
                    is_over = self._hand_over_body()
                else:
                    self.flow.pause_reading()
                    return
                if not is_over:
                    return
        except FramingError as error:
            self.send_400_response(str(error))

    def _hand_over_head(self) -> bool:
        """Hand a whole head to uvicorn; return whether there was one."""
        limit = self._bounds.header_bytes
        end = self._waiting.find(HEAD_END, 0, limit)
        if end >= 0:
            head = self._take(end + len(HEAD_END))
            length = body_length(head)
            self._body_left = ChunkedBody() if length is None else length
            self._body_taken = 0
            super().data_received(head)
            # Not when it was refused: then there is no cycle.
            self._has_asked = self._has_asked or self.conn.their_state is not h11.ERROR
            return True
        assert_lines_end(self._waiting[:limit])
        if len(self._waiting) >= limit:
            self._refuse(
                431, "Request Header Fields Too Large", f"at most {limit} bytes of headers"
            )
        return False

    def _hand_over_body(self) -> bool:
        """Hand what has come of a body to uvicorn, and no more; return whether anything has."""
        if isinstance(self._body_left, ChunkedBody):
            part = self._take(self._body_left.length_in(self._waiting))
        else:
            part = self._take(self._body_left)
            self._body_left -= len(part)
        self._body_taken += len(part)
        is_unread = self.cycle.response_complete
        if part:
            super().data_received(part)
        if is_unread and self._body_taken > self._bounds.body_bytes:
            self.transport.close()
        return bool(part)

    def _take(self, length: int) -> bytes:
        taken = bytes(self._waiting[:length])
        del self._waiting[:length]
        return taken

    def _refuse(self, status: int, phrase: str, why: str) -> None:
        body = f"{why}\n".encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"cache-control: no-store\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._waiting.clear()
        is_answering = self._has_asked and not self.cycle.response_complete
        if is_answering or not self.transport.can_write_eof():
            self.transport.close()
        else:
            # Closed with bytes unread, the connection would be reset, and the refusal lost.
            self.transport.write_eof()
            self._is_refused = True
            self._note_stage()
