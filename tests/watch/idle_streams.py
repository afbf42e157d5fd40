"""Idle streams that ping: `python -m watch.idle_streams ADDRESS COUNT`.

The program reads its token from stdin, then commands: `on` opens the streams and prints `on` once a
ping was answered on each of them; `off` ends them. It writes plain HTTP/2 frames to sockets in one
thread: real watchers run on other machines, so their cost must not be part of the measurement.
"""

import selectors
import socket
import struct
import sys
import threading
import time

from bench import generator
from bench.generator import frame, literal
from keybearer.v1 import token_service_pb2 as pb

STREAMS_A_CONNECTION = 90
PING_EVERY_S = 0.5
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _WINDOW = 0, 1, 3, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WINDOW_BYTES = 2**30


class _Connection:
    def __init__(self, address: tuple[str, int], headers: bytes, streams: int) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.streams = [1 + 2 * number for number in range(streams)]
        self.answered: set[int] = set()
        self.lost = False
        settings = struct.pack(">HIHI", 1, 0, 4, _WINDOW_BYTES)
        parts = [
            _PREFACE,
            frame(_SETTINGS, 0, 0, settings),
            frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_BYTES)),
        ]
        subscribe = pb.WatchInvalidationsRequest(subscribe=pb.WatchInvalidationsRequest.Subscribe())
        body = generator.message(subscribe.SerializeToString())
        for stream in self.streams:
            parts.append(frame(_HEADERS, _END_HEADERS, stream, headers))
            parts.append(frame(_DATA, 0, stream, body))
        self.socket.sendall(b"".join(parts))

    def ping(self, stream: int) -> None:
        ping = pb.WatchInvalidationsRequest.Ping(sent_at=time.monotonic_ns())
        body = pb.WatchInvalidationsRequest(ping=ping).SerializeToString()
        self.socket.sendall(frame(_DATA, 0, stream, generator.message(body)))

    def receive(self) -> None:
        data = self.socket.recv(1 << 18)
        self.lost = self.lost or not data
        buffer = self._buffer + data
        position = 0
        while len(buffer) - position >= 9:
            length = int.from_bytes(buffer[position : position + 3])
            if len(buffer) - position - 9 < length:
                break
            kind, flags = buffer[position + 3], buffer[position + 4]
            stream = int.from_bytes(buffer[position + 5 : position + 9])
            payload = buffer[position + 9 : position + 9 + length]
            position += 9 + length
            if kind == _DATA:
                response = pb.WatchInvalidationsResponse.FromString(payload[5:])
                if response.HasField("pong"):
                    self.answered.add(stream)
            elif kind == _SETTINGS and not flags & _ACK:
                self.socket.sendall(frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self.socket.sendall(frame(_PING, _ACK, 0, payload))
            if kind == _RESET or (flags & _END_STREAM and kind == _HEADERS):
                self.lost = True
        self._buffer = buffer[position:]


class IdleStreams:
    """Streams that each ping at 2 Hz, evenly spread."""

    def __init__(self, address: str, token: str, count: int) -> None:
        host, port = address.split(":")
        fields = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/keybearer.v1.TokenService/WatchInvalidations"),
            (":authority", address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {token}"),
        )
        headers = b"".join(literal(name.encode(), value.encode()) for name, value in fields)
        self._connections = [
            _Connection((host, int(port)), headers, min(STREAMS_A_CONNECTION, count - start))
            for start in range(0, count, STREAMS_A_CONNECTION)
        ]
        self._count = count
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_until_answered(self) -> None:
        while sum(len(one.answered) for one in self._connections) < self._count:
            if any(one.lost for one in self._connections):
                raise RuntimeError("a stream was refused")
            time.sleep(0.02)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._connections:
            one.socket.close()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        for one in self._connections:
            selector.register(one.socket, selectors.EVENT_READ, one)
        everyone = [(one, stream) for one in self._connections for stream in one.streams]
        due, number = time.monotonic(), 0
        while not self._stop.is_set():
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                key.data.receive()
            while due <= time.monotonic():
                one, stream = everyone[number % len(everyone)]
                one.ping(stream)
                number += 1
                due += PING_EVERY_S / len(everyone)


def main() -> None:
    """Follow the protocol of the module's docstring."""
    token = sys.stdin.readline().strip()
    streams: IdleStreams | None = None
    for line in sys.stdin:
        if line.strip() == "on":
            streams = IdleStreams(sys.argv[1], token, int(sys.argv[2]))
            streams.wait_until_answered()
        elif streams is not None:
            streams.close()
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
