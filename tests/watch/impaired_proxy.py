"""A TCP proxy that impairs open connections: it holds bytes back, slows down, or closes one way."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator
from enum import Enum

_CHUNK = 65536


class Way(Enum):
    """The direction of bytes."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


class _Pipe:
    """One direction of one connection: it forwards bytes when they are due."""

    def __init__(
        self, proxy: "ImpairedProxy", way: Way, source: socket.socket, sink: socket.socket
    ) -> None:
        self._proxy = proxy
        self._way = way
        self._source = source
        self._sink = sink
        self._held: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def start(self) -> None:
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b"-"
        while data:
            try:
                data = self._source.recv(_CHUNK)
            except OSError:
                data = b""
            self._held.put((time.monotonic(), data))

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                came, data = self._held.get()
                self._proxy.wait_until_due(self._way, came)
                if not data:
                    break
                while data:
                    rate = self._proxy.rate
                    size = len(data) if rate is None else max(1, int(rate / 20))
                    self._sink.sendall(data[:size])
                    data = data[size:]
                    if rate is not None:
                        time.sleep(0.05)
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)


class ImpairedProxy:
    """Forwards connections to `target`, with the current impairment.

    The impairment applies to all connections, also to those that are opened later.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._changed = threading.Condition()
        self._frozen: set[Way] = set()
        self._delay = 0.0
        self.rate: float | None = None
        """Bytes a second each way; None: as fast as they come."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, *ways: Way) -> None:
        """Hold back everything in these directions until `heal`. Nothing is lost."""
        self._frozen.update(ways)

    def delay(self, seconds: float) -> None:
        """Delay everything that goes to the client."""
        self._delay = seconds

    def half_close(self, way: Way) -> None:
        """Close one direction of every open connection."""
        for client, server in list(self._pairs):
            with contextlib.suppress(OSError):
                (server if way is Way.TO_SERVER else client).shutdown(socket.SHUT_WR)

    def heal(self) -> None:
        """End every impairment. Connections that were closed stay closed."""
        with self._changed:
            self._frozen.clear()
            self._delay = 0.0
            self.rate = None
            self._changed.notify_all()

    def close(self) -> None:
        """Close everything."""
        self._closing = True
        self.heal()
        self._listener.close()
        for pair in self._pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()

    def wait_until_due(self, way: Way, came: float) -> None:
        """Wait until bytes that arrived at `came` may be forwarded."""
        with self._changed:
            while not self._closing:
                due = came + (self._delay if way is Way.TO_CLIENT else 0.0)
                late = due - time.monotonic()
                if way not in self._frozen and late <= 0:
                    return
                self._changed.wait(None if way in self._frozen else late)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs.append((client, server))
            _Pipe(self, Way.TO_SERVER, client, server).start()
            _Pipe(self, Way.TO_CLIENT, server, client).start()


@contextlib.contextmanager
def impaired_proxy(target: str) -> Iterator[ImpairedProxy]:
    """Run a proxy during a block."""
    proxy = ImpairedProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
