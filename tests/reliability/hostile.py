"""A client that speaks HTTP/2 as no gRPC library would: it begins calls and never finishes them."""

import socket
import ssl
from collections.abc import Iterable
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    StreamEnded,
    StreamReset,
)

VALIDATE = "/keybearer.v1.TokenService/ValidateToken"
MAX_STREAMS = 100
"""Section 8 of the wire contract: streams of one connection."""


class HostileConnection:
    """One connection to a server, on a plain socket or with TLS."""

    def __init__(
        self, address: str, *, tls: ssl.SSLContext | None = None, within_s: float = 30
    ) -> None:
        """Connect.

        Args:
            address: Of the server.
            tls: How to speak TLS; None for plain text.
            within_s: How long to wait for anything that the server sends.
        """
        self.address = address
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=within_s)
        self._scheme = "http" if tls is None else "https"
        self._answered: set[int] = set()
        self._ended: set[int] = set()
        self._farewell = "without a word"
        config = H2Configuration(
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = H2Connection(config)
        self._h2.initiate_connection()
        try:
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
            self._flush()
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection without a word."""
        self._socket.close()

    def begin_call(
        self,
        path: str = VALIDATE,
        token: str = "",
        extra: Iterable[tuple[str, str]] = (),
        *,
        flush: bool = True,
    ) -> int:
        """Send the headers of a call and nothing of its message; answers the stream.

        Args:
            path: Of the method.
            token: The credential; empty for none.
            extra: More metadata.
            flush: Whether to send now, or with what is sent next.
        """
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", path),
            (":authority", self.address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *([("authorization", f"Bearer {token}")] if token else ()),
            *extra,
        ]
        self._h2.send_headers(stream, headers)
        if flush:
            self._flush()
        return stream

    def send_some(self, stream: int, data: bytes, *, is_last: bool = False) -> None:
        """Send a part of a message; nothing when the server has ended the call."""
        if stream not in self._ended:
            self._h2.send_data(stream, data, end_stream=is_last)
            self._flush()

    def reset(self, stream: int) -> bool:
        """Take a call back; return whether the server had not ended it before."""
        if stream in self._ended:
            self._ended.discard(stream)
            return False
        self._h2.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()
        return True

    def settle(self) -> None:
        """Wait until the server's transport has taken in everything sent so far."""
        self._h2.ping(b"settled?")
        self._flush()
        while not any(isinstance(event, PingAckReceived) for event in self._events()):
            pass

    def wait_for_end(self, streams: Iterable[int]) -> None:
        """Read until the server has ended every one of these streams, or the connection.

        Raises:
            TimeoutError: Nothing came in time.
        """
        waiting = set(streams)
        while not waiting <= self._ended:
            self._events()
        self._ended -= waiting

    def wait_for_answers(self, streams: Iterable[int]) -> None:
        """Read until each of these streams has had a message, or was ended.

        Raises:
            TimeoutError: Nothing came in time.
        """
        waiting = set(streams)
        while not waiting <= self._answered | self._ended:
            self._events()
        self._answered -= waiting

    def wait_until_taken_in(self) -> None:
        """Wait until the server has taken in everything sent so far, and answered a call.

        The call is of a method that does not exist, which waits for no thread of the server. Unlike
        pings, calls may be as many as one likes.

        Raises:
            TimeoutError: Nothing came in time.
        """
        barrier = self.begin_call("/none/None")
        self.wait_for_end([barrier])

    def _events(self) -> list[Event]:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError(f"the server closed the connection: {self._farewell}")
        events = list(self._h2.receive_data(data))
        for event in events:
            if isinstance(event, DataReceived):
                self._answered.add(event.stream_id)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, ConnectionTerminated):
                self._farewell = f"{event.error_code!r} {event.additional_data!r}"
            elif isinstance(event, StreamEnded | StreamReset):
                self._ended.add(event.stream_id)
        self._flush()
        return events

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())
