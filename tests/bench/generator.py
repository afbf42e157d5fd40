"""A load generator for unary gRPC calls: prepared HTTP/2 frames over plain sockets.

It runs in a process of its own and costs about a tenth of what the server costs, so that what is
measured is the server. Every request may have another body, and every reply is checked, which
h2load can do neither of. Closed loop: each of `connections` keeps `in_flight` calls open.
"""

import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES = 2**30
MAX_STREAM = 2**31 - 1000
FRAME_HEADER = 9

Check = Callable[[bytes], bool]
HttpCheck = Callable[[bytes, bytes], bool]
"""Gets the head of a response, in lower case, and its body."""


@dataclass
class Report:
    """What a run saw."""

    seconds: float = 0.0
    replies: int = 0
    wrong: int = 0
    """Replies without a message, or with one that the check refused."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, from the sending of a request to its whole reply."""

    @property
    def rate(self) -> float:
        """Replies a second."""
        return self.replies / self.seconds

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies, in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


class _Connection:
    def __init__(
        self, address: tuple[str, int], headers: bytes, bodies: Sequence[bytes], check: Check
    ) -> None:
        self._headers = headers
        self._bodies = bodies
        self._check = check
        self._next_stream = 1
        self._next_body = 0
        self._buffer = b""
        self._open: dict[int, float] = {}
        self._good: set[int] = set()
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HIHI", 1, 0, 4, WINDOW_BYTES)  # no header table; large windows
        self.socket.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW, 0, 0, struct.pack(">I", WINDOW_BYTES))
        )

    def start_at(self, offset: int) -> None:
        self._next_body = offset % len(self._bodies)

    def send(self, count: int) -> None:
        now = time.perf_counter()
        parts = []
        for _ in range(count):
            body = self._bodies[self._next_body]
            self._next_body = (self._next_body + 1) % len(self._bodies)
            stream = self._next_stream
            self._next_stream += 2
            if stream > MAX_STREAM:
                raise RuntimeError("too many calls for one connection")
            self._open[stream] = now
            parts.append(frame(HEADERS, END_HEADERS, stream, self._headers))
            parts.append(frame(DATA, END_STREAM, stream, body))
        self.socket.sendall(b"".join(parts))

    def receive(self, report: Report) -> int:
        """Read what there is; answer how many calls ended."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("the server closed the connection")
        buffer = self._buffer + data
        position, ended, size = 0, 0, len(buffer)
        now = time.perf_counter()
        while size - position >= FRAME_HEADER:
            length = int.from_bytes(buffer[position : position + 3])
            end = position + FRAME_HEADER + length
            if end > size:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : position + FRAME_HEADER])
            self._take(kind, flags, stream, buffer[position + FRAME_HEADER : end])
            position = end
            if (flags & END_STREAM and kind in (DATA, HEADERS)) or kind == RESET:
                ended += self._end(stream, now, report)
        self._buffer = buffer[position:]
        return ended

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            if self._check(payload[5:]):
                self._good.add(stream)
        elif kind in (SETTINGS, PING) and not flags & ACK:
            answer = payload if kind == PING else b""
            self.socket.sendall(frame(kind, ACK, 0, answer))
        elif kind == GOAWAY:
            raise ConnectionError("the server is going away")

    def _end(self, stream: int, now: float, report: Report) -> int:
        sent = self._open.pop(stream, None)
        if sent is None:
            return 0
        report.replies += 1
        report.latencies.append(now - sent)
        report.wrong += stream not in self._good
        self._good.discard(stream)
        return 1


def message(body: bytes) -> bytes:
    """Put the gRPC frame around a serialized message."""
    return b"\0" + struct.pack(">I", len(body)) + body


def run(
    *,
    port: int,
    path: str,
    metadata: Sequence[tuple[str, str]],
    bodies: Sequence[bytes],
    check: Check,
    seconds: float,
    connections: int,
    in_flight: int,
) -> Report:
    """Call a method for a while.

    Args:
        port: On 127.0.0.1.
        path: `/package.Service/Method`.
        metadata: Sent with every call.
        bodies: Framed messages, used in turn.
        check: Whether a serialized reply is right.
        seconds: How long.
        connections: How many.
        in_flight: Open calls on each.
    """
    headers = b"".join(
        literal(name.encode(), value.encode())
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", f"127.0.0.1:{port}"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        )
    )
    open_connections = [
        _Connection(("127.0.0.1", port), headers, bodies, check) for _ in range(connections)
    ]
    selector = selectors.DefaultSelector()
    for index, connection in enumerate(open_connections):
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.start_at(index * len(bodies) // connections)
    report = Report()
    started = time.perf_counter()
    for connection in open_connections:
        connection.send(in_flight)
    while time.perf_counter() - started < seconds:
        for key, _ in selector.select(timeout=1.0):
            ended = key.data.receive(report)
            if ended:
                key.data.send(ended)
    report.seconds = time.perf_counter() - started
    for connection in open_connections:
        connection.socket.close()
    return report


def run_http(
    *, port: int, requests: Sequence[bytes], check: HttpCheck, seconds: float, connections: int
) -> Report:
    """Send HTTP/1.1 requests for a while, one at a time on each connection."""
    report = Report()
    selector = selectors.DefaultSelector()
    sent: dict[socket.socket, float] = {}
    buffers: dict[socket.socket, bytes] = {}
    turn = 0
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(connection, selectors.EVENT_READ)
        buffers[connection] = b""
        turn += 1
        sent[connection] = time.perf_counter()
        connection.sendall(requests[turn % len(requests)])
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for key, _ in selector.select(timeout=1.0):
            connection = key.fileobj  # type: ignore[assignment]  # a socket was registered
            received = connection.recv(1 << 16)
            if not received:
                raise ConnectionError("the server closed the connection")
            buffers[connection] += received
            head, end, body = buffers[connection].partition(b"\r\n\r\n")
            head = head.lower()
            if not end or len(body) < _content_length(head):
                continue
            buffers[connection] = b""
            report.replies += 1
            report.latencies.append(time.perf_counter() - sent[connection])
            report.wrong += not check(head, body)
            turn += 1
            sent[connection] = time.perf_counter()
            connection.sendall(requests[turn % len(requests)])
    report.seconds = time.perf_counter() - started
    for connection in sent:
        connection.close()
    return report


def _content_length(head: bytes) -> int:
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


def literal(name: bytes, value: bytes) -> bytes:
    """Write a header without indexing: RFC 7541, section 6.2.2, with a literal name.

    The same bytes are sent for every call, so no block may rely on an earlier one.
    """
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(number: int) -> bytes:
    if number < 127:
        return bytes((number,))
    rest = number - 127
    parts = [127]
    while rest >= 128:
        parts.append(rest % 128 + 128)
        rest //= 128
    return bytes((*parts, rest))
