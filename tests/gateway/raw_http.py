"""HTTP clients on plain sockets that do what no library would: stay silent, stop half-way."""

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

from gateway.support import LOOPBACK

WITHIN_S = 20.0
"""For what must happen at all: never waited for where the server is right."""


def connect(port: int, source: str = LOOPBACK) -> socket.socket:
    """Connect from an address of this machine."""
    return socket.create_connection((LOOPBACK, port), timeout=WITHIN_S, source_address=(source, 0))


@contextlib.contextmanager
def connections(count: int, port: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections that send the same bytes and nothing more; reset by the server or not."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(connect(port))
            with contextlib.suppress(ConnectionError):
                opened[-1].sendall(sent)
        yield opened
    finally:
        for one in opened:
            one.close()


def exchange(port: int, *parts: bytes) -> bytes:
    """Send bytes on a connection of their own, part by part, and return all until its end."""
    with connect(port) as one:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                one.sendall(part)
        return rest_of(one)


def rest_of(one: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while part := one.recv(65536):
            received += part
    return bytes(received)


def is_open(one: socket.socket) -> bool:
    """Return whether the server has neither answered nor closed a connection."""
    one.setblocking(False)
    try:
        one.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        one.settimeout(WITHIN_S)


def status_of(path: str, port: int, *, tls: ssl.SSLContext | None = None, **headers: str) -> int:
    """Ask on a connection of its own, as a probe does, and return the status."""
    connection: Any = (
        http.client.HTTPConnection(LOOPBACK, port, timeout=WITHIN_S)
        if tls is None
        else http.client.HTTPSConnection("localhost", port, timeout=WITHIN_S, context=tls)
    )
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        return int(response.status)


def wait_until_open(at_most: int, opened: list[socket.socket]) -> list[bool]:
    """Wait until no more connections than that are open, and return which are."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        states = [is_open(one) for one in opened]
        if sum(states) <= at_most or time.monotonic() > deadline:
            return states
        time.sleep(0.01)
