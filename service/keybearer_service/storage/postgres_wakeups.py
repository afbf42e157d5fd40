"""Wakes the thread that waits for changes: by this process, and by NOTIFY of another node."""

import select
import socket
import threading
from contextlib import suppress
from typing import Final

import psycopg
import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.storage import StoreClosedError, StoreError
from keybearer_service.storage.postgres_connections import Connection, Pool
from keybearer_service.storage.postgres_writes import CHANNEL

log = structlog.get_logger(__name__)

_RETRY_S: Final = 1.0
"""How long nobody listens after it has failed; meanwhile changes are found by looking for them."""


class Wakeups:
    """One thread waits, any thread wakes it."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._waiting = threading.Lock()
        self._connection: Connection | None = None
        self._retry_at = clock.monotonic()
        self._is_deaf = False

    def wait(self, timeout_s: float | None) -> None:
        """Wait for `wake`, for a notification, or for the timeout."""
        with self._waiting:
            self._pool.assert_open()
            connection = self._listening()
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            if connection is not None:
                poll.register(connection.pgconn.socket, select.POLLIN)
            poll.poll(None if timeout_s is None else timeout_s * 1000)
            with suppress(BlockingIOError):
                self._woken.recv(4096)
            if connection is not None:
                self._take_notifications(connection)

    def wake(self) -> None:
        """Make the thread that waits return."""
        # One that is awake already, or closed.
        with suppress(OSError):
            self._waker.send(b"\0")

    def close(self) -> None:
        """Release everything."""
        self.wake()
        with self._waiting:
            self._woken.close()
            self._waker.close()

    def _listening(self) -> Connection | None:
        if self._connection is None and self._clock.monotonic() >= self._retry_at:
            try:
                self._connection = self._pool.new()
                # On YugabyteDB nobody announces anything, and the connection stays idle.
                if not self._connection.is_yugabyte:
                    self._connection.execute(f"LISTEN {CHANNEL}")
            except StoreClosedError:
                raise
            except (StoreError, psycopg.Error) as error:
                self._give_up(error)
            else:
                self._is_deaf = False
        return self._connection

    def _take_notifications(self, connection: Connection) -> None:
        try:
            connection.pgconn.consume_input()
            while connection.pgconn.notifies() is not None:
                pass
        except psycopg.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._is_deaf and not self._pool.is_closed:
            log.warning("notifications_lost", cause=type(error).__name__)
        self._is_deaf = True
        self._retry_at = self._clock.monotonic() + _RETRY_S
        if self._connection is not None:
            self._pool.drop(self._connection)
            self._connection = None
