"""A client that speaks HTTP/2 as no gRPC library would: it begins calls and never finishes them."""

import socket
from collections.abc import Iterable
from typing import Self

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, PingAckReceived, StreamEnded, StreamReset

VALIDATE = "/keybearer.v1.TokenService/ValidateToken"
MAX_STREAMS = 100
"""Section 8 of the wire contract: streams of one connection."""


class HostileConnection:
    """One connection to a server, on a plain socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=30)
        config = H2Configuration(
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._h2 = H2Connection(config)
        self._h2.initiate_connection()
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def begin_call(
        self, path: str = VALIDATE, token: str = "", extra: Iterable[tuple[str, str]] = ()
    ) -> int:
        """Send the headers of a call and nothing of its message; answers the stream."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self.address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *([("authorization", f"Bearer {token}")] if token else ()),
            *extra,
        ]
        self._h2.send_headers(stream, headers)
        self._flush()
        return stream

    def send_some(self, stream: int, data: bytes) -> None:
        """Send a part of a message."""
        self._h2.send_data(stream, data)
        self._flush()

    def reset(self, stream: int) -> None:
        """Take a call back."""
        self._h2.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()

    def settle(self) -> None:
        """Wait until the server's transport has taken in everything sent so far."""
        self._h2.ping(b"settled?")
        self._flush()
        while not any(isinstance(event, PingAckReceived) for event in self._events()):
            pass

    def wait_for_end(self, streams: Iterable[int]) -> None:
        """Read until the server has ended every one of these streams, or the connection.

        Raises:
            TimeoutError: Nothing came for thirty seconds.
        """
        waiting = set(streams)
        while waiting:
            for event in self._events():
                if isinstance(event, StreamEnded | StreamReset):
                    waiting.discard(event.stream_id)

    def _events(self) -> list[Event]:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        events = list(self._h2.receive_data(data))
        for event in events:
            if isinstance(event, DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._flush()
        return events

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())
