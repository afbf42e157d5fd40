"""Accepts the connections of a listener, within its bounds.

asyncio's own server has no bound on connections, makes its TLS buffers (some 300 KB) before the
client has sent a byte, and writes thousands of log lines a second once descriptors are used up.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Callable

from keybearer_service.http.connection_table import ConnectionTable, Held, Standing
from keybearer_service.net.bounds import Bounds, peer_of

_ACCEPTS_A_TURN = 64
"""So that a flood of connections does not keep the event loop from those that are there."""
_PAUSE_S = 0.25
"""When no connection can be had."""
_SHED_AFTER_S = 1.0
"""Without descriptors, who was silent for so long is closed first."""
_SPARE_DESCRIPTORS = 4
"""Kept so that a few probes are answered when something else has used up all others."""
_CLOSE_TLS_WITHIN_S = 5.0

MakeProtocol = Callable[[ConnectionTable, Held], asyncio.Protocol]
"""Makes the protocol of one connection; it takes the place of what was accepted in the table."""


class Acceptor:
    """Accepts connections and makes room for them. For the thread of its event loop alone."""

    def __init__(
        self,
        listening: socket.socket,
        tls: ssl.SSLContext | None,
        bounds: Bounds,
        make_protocol: MakeProtocol,
    ) -> None:
        """Create the acceptor; `start` begins to accept.

        Args:
            listening: A socket that listens.
            tls: The context of handshakes; None for plaintext.
            bounds: Of the listener.
            make_protocol: Makes the protocol of each connection.
        """
        self._loop = asyncio.get_running_loop()
        self.table = ConnectionTable(bounds, lambda: self._loop.call_soon(self._keep_spares))
        self._listening = listening
        self._tls = tls
        self._bounds = bounds
        self._make_protocol = make_protocol
        self._handshakes: dict[_Opening, None] = {}
        self._spares: list[int] = []
        self._is_stopped = False

    def start(self) -> None:
        """Begin to accept."""
        self._listening.setblocking(False)
        self._keep_spares()
        self._loop.add_reader(self._listening, self._accept)

    def stop(self) -> None:
        """Accept no more, and close the port."""
        self._is_stopped = True
        self._loop.remove_reader(self._listening)
        self._listening.close()
        while self._spares:
            os.close(self._spares.pop())

    def _accept(self) -> None:
        for turn in range(_ACCEPTS_A_TURN):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # Linux says so even when nobody waits; the first time somebody does.
                if not turn:
                    self._find_descriptor()
                return
            self._admit(connection, peer_of(address[0]))

    def _find_descriptor(self) -> None:
        """Free a descriptor for the next turn, or accept nothing for a while."""
        self.table.closed["accept_failed"] += 1
        if self.table.shed_silent(self._loop.time() - _SHED_AFTER_S):
            return
        if self._spares:
            os.close(self._spares.pop())
            return
        self._loop.remove_reader(self._listening)
        self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if not self._is_stopped:
            self._loop.add_reader(self._listening, self._accept)

    def _keep_spares(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spares) < _SPARE_DESCRIPTORS and not self._is_stopped:
                self._spares.append(os.open(os.devnull, os.O_RDONLY))

    def _admit(self, connection: socket.socket, peer: str) -> None:
        if not self.table.make_room(peer):
            self.table.closed["refused"] += 1
            connection.close()
            return
        connection.setblocking(False)
        opening = _Opening(self, connection, peer, self._bounds.handshake_s)
        self.table.add(opening)
        if self._tls is None:
            opening.begin()
        else:
            # Nothing is made for a handshake before the client has begun it.
            self._loop.add_reader(connection, opening.begin)

    async def connect(self, opening: "_Opening") -> None:
        """Make the transport and the protocol of a connection; with TLS, after its handshake."""

        def protocol() -> asyncio.Protocol:
            return self._make_protocol(self.table, opening)

        try:
            if self._tls is None:
                await self._loop.connect_accepted_socket(protocol, opening.socket)
                return
            self._begin_handshake(opening)
            await self._loop.connect_accepted_socket(
                protocol,
                opening.socket,
                ssl=self._tls,
                ssl_handshake_timeout=self._bounds.handshake_s,
                ssl_shutdown_timeout=_CLOSE_TLS_WITHIN_S,
            )
        except OSError as error:
            # asyncio keeps the error in a future, and the error its frames: together they would
            # keep TLS buffers in memory until the collector runs.
            error.__traceback__ = None
            # The client, or what it is, knows no better: nothing to log for each.
            self.table.closed["handshake_failed"] += 1
        finally:
            self._handshakes.pop(opening, None)
            self.table.remove(opening)

    def _begin_handshake(self, opening: "_Opening") -> None:
        self._handshakes[opening] = None
        if len(self._handshakes) > self._bounds.handshakes:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            self.table.closed["shed"] += 1
            oldest.drop()


class _Opening:
    """A connection before HTTP: it waits for its first byte, then for its TLS handshake."""

    standing = Standing.SILENT

    def __init__(
        self, acceptor: Acceptor, connection: socket.socket, peer: str, within_s: float
    ) -> None:
        self.peer = peer
        self.socket = connection
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._acceptor = acceptor
        self._within_s = within_s
        self._task: asyncio.Task[None] | None = None
        self._is_connecting = False

    def begin(self) -> None:
        """Begin with the handshake."""
        self._loop.remove_reader(self.socket)
        self._task = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        self._is_connecting = True
        # Kept in the task, the error would keep TLS buffers alive until the collector runs.
        with contextlib.suppress(asyncio.CancelledError):
            await self._acceptor.connect(self)
        self._task = None

    def close_if_late(self, now: float) -> bool:
        """Close the connection when its handshake has taken too long; return whether it has."""
        if now - self.since < self._within_s:
            return False
        self.drop()
        return True

    def drop(self) -> None:
        """Close the connection at once."""
        if self._task is not None:
            self._task.cancel()
        if not self._is_connecting:
            # From then on the socket is the transport's.
            self._loop.remove_reader(self.socket)
            self.socket.close()
            self._acceptor.table.remove(self)
