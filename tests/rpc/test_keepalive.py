"""Pings of clients that keep an idle connection alive."""

import socket
import struct
import time

import pytest

from harness import Service

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
PINGS = 5
"""grpc ends a connection after the third ping that it takes for abuse."""


def _frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, 0) + payload


class _Connection:
    """An HTTP/2 connection without a stream."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(PREFACE + _frame(SETTINGS))

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def ping(self) -> bytes:
        """Send a ping; return b"" when it is acknowledged, or what the server says at the end."""
        self._socket.sendall(_frame(PING, b"12345678"))
        while True:
            head = self._file.read(9)
            payload = self._file.read(int.from_bytes(head[:3], "big"))
            if head[3] == GOAWAY:
                return payload[8:]
            if head[3] == PING and head[4] == 1:
                return b""
            if head[3] == PING:
                self._socket.sendall(_frame(PING, payload, flags=1))


@pytest.mark.slow
def test_an_idle_client_may_ping_every_few_seconds(service: Service) -> None:
    """Without a call in flight, as a client does that keeps its connection alive every 10 s."""
    connection = _Connection(service.only_node.port)
    try:
        for _ in range(PINGS):
            assert connection.ping() == b""
            time.sleep(5.2)  # the pace is what is tested
    finally:
        connection.close()


def test_a_client_that_pings_all_the_time_is_sent_away(service: Service) -> None:
    """Pings cost the server work."""
    connection = _Connection(service.only_node.port)
    try:
        said = next(filter(None, (connection.ping() for _ in range(PINGS))), b"")
    finally:
        connection.close()
    assert said == b"too_many_pings"
