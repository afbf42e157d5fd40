"""A TCP proxy that cuts or holds up connections at a chosen byte."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Direction(Enum):
    """The direction of bytes."""

    REQUEST = "request"
    ANSWER = "answer"


class Damage(Enum):
    """What happens at the chosen byte."""

    CUT = "cut"
    """Both ends are closed."""
    HOLD = "hold"
    """Nothing more goes that way for `hold` seconds; then it goes on as if nothing had been."""


@dataclass(frozen=True)
class Plan:
    """Which connections are damaged, and how."""

    damage: Damage
    direction: Direction
    offset: int
    """So many bytes pass before it happens."""
    connections: int = 1
    """The first so many connections suffer it."""
    hold: float = 0.0
    """Seconds."""


class CuttingProxy:
    """Forwards connections to `target`, except for what `plan` does to them.

    Args:
        target: `host:port`.
        plan: None forwards everything.
    """

    def __init__(self, target: str, plan: Plan | None) -> None:
        host, port = target.split(":")
        self._target = (host, int(port))
        self._plan = plan
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.passed = dict.fromkeys(Direction, 0)
        """Bytes that went each way."""
        self.struck = False
        """Whether the plan was carried out at least once."""
        self._start(self._accept)

    @property
    def holds(self) -> bool:
        """Whether responses are delayed."""
        return self._plan is not None and self._plan.damage is Damage.HOLD

    def close(self) -> None:
        """Close everything, and wait for the threads."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._sockets):
            _close(one)
        for thread in self._threads:
            thread.join()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            number = self.connections
            self.connections += 1
            self._start(self._pump, number, Direction.REQUEST, client, server)
            self._start(self._pump, number, Direction.ANSWER, server, client)

    def _pump(
        self, number: int, direction: Direction, source: socket.socket, sink: socket.socket
    ) -> None:
        """Forward one direction; the damage happens at exactly the chosen byte."""
        plan = self._plan
        suffers = plan is not None and plan.direction is direction and number < plan.connections
        count = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if plan is not None and suffers and count + len(data) > plan.offset:
                    before = plan.offset - count
                    sink.sendall(data[:before])
                    self.struck = True
                    suffers = False
                    if plan.damage is Damage.CUT:
                        break
                    self._closing.wait(plan.hold)
                    data = data[before:]
                    count += before
                sink.sendall(data)
                count += len(data)
                self.passed[direction] = max(self.passed[direction], count)
        _close(source)
        _close(sink)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextlib.contextmanager
def proxying(target: str, plan: Plan | None) -> Iterator[CuttingProxy]:
    """Run a proxy."""
    proxy = CuttingProxy(target, plan)
    try:
        yield proxy
    finally:
        proxy.close()
