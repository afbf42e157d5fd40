"""Write transactions on PostgreSQL: the row that orders them, and how each one ended.

After a failover that has lost changes their revisions are used again. So the installation names the
server that its epoch holds for, and the first write on another one, by whichever node, gives the
epoch another name. A server that was promoted, a dump that was restored and a recovery to a point
in time are other servers: see `Connection.history`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import psycopg
import structlog
from psycopg import pq

from keybearer_service.domain.clock import Clock, pause
from keybearer_service.domain.entropy import Entropy
from keybearer_service.storage import (
    CommitFailedError,
    StoreError,
    StoreLockedError,
    StoreUnusableError,
    rows,
)
from keybearer_service.storage.first_uses import FirstUses
from keybearer_service.storage.postgres_connections import Connection, Pool
from keybearer_service.storage.postgres_errors import is_conflict, store_error
from keybearer_service.storage.postgres_session import PostgresSession, Statement, execute_all

log = structlog.get_logger(__name__)

CHANNEL: Final = "keybearer"
"""Where commits are announced."""
_TAKE_ROW: Final = (
    # READ COMMITTED, so that each statement sees what the writer before has committed.
    Statement("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
    Statement("UPDATE commits SET count = count + 1 WHERE id = 1"),
)
_COMMIT: Final = (
    # A COMMIT that is cut off by a time limit of the server would look like a success.
    Statement("SET LOCAL statement_timeout = 0"),
    Statement("COMMIT"),
)
_SERVER: Final = Statement("SELECT server FROM installation")
_SUFFIX_LENGTH: Final = 16
_PUT_NONCE: Final = "INSERT INTO outcomes (nonce) VALUES ($1)"
_NONCE_BYTES: Final = 16
_LONGEST_PAUSE_S: Final = 0.05
_SEARCH_LIMIT_S: Final = 2.0
"""How long the outcome of a lost COMMIT is looked for."""

Read = Sequence[tuple[Statement, Sequence[rows.Row]]]
"""Statements, and the rows that they have found."""


class _RolledBackError(StoreLockedError):
    """COMMIT was answered with ROLLBACK, which is no error of the driver's."""


class _OutcomeUnknownError(Exception):
    """The server has not said for certain that it committed."""


class Writes:
    """Runs write transactions, one after another.

    The database has the queue for the row, of all nodes; it lets the longest waiting one go first.
    """

    def __init__(
        self,
        pool: Pool,
        first_uses: FirstUses,
        clock: Clock,
        entropy: Entropy,
        busy_timeout_s: float,
    ) -> None:
        self._pool = pool
        self._first_uses = first_uses
        self._clock = clock
        self._entropy = entropy
        self._busy_timeout_s = busy_timeout_s

    @contextmanager
    def begin(self, foreseen: Sequence[Statement] = ()) -> Iterator[PostgresSession]:
        """Open a transaction that has the row, and commit it after the block.

        Args:
            foreseen: What the block is going to read; it is read with taking the row.

        Raises:
            StoreLockedError: The row was not to be had, and the block has not run; or the database
                was lost, and nothing is changed.
            CommitFailedError: The outcome is unknown.
        """
        connection, read = self._connection_with_row((_SERVER, *foreseen))
        try:
            session = PostgresSession(connection, self._first_uses, read=read[1:])
            try:
                if read[0][1] not in ([], [(connection.history,)]):
                    log.warning("history_begun", server=connection.history)
                    session.begin_history("." + self._entropy.base62(_SUFFIX_LENGTH))
                yield session
                waiting = session.finish()
            except BaseException:
                self._roll_back(connection)
                raise
            self._commit(connection, waiting, has_changes=session.has_changes)
        finally:
            self._first_uses.end_write()

    def _connection_with_row(self, foreseen: Sequence[Statement]) -> tuple[Connection, Read]:
        deadline = self._clock.monotonic() + self._busy_timeout_s
        while True:
            connection = self._pool.take()
            try:
                read = _take_row(connection, foreseen)
            except psycopg.Error as error:
                # One that was lost while nobody used it says nothing about the database.
                may_repeat = is_conflict(error) or (
                    connection.is_lost and not connection.has_timed_out
                )
                self._roll_back(connection)
                if not may_repeat or self._clock.monotonic() >= deadline:
                    raise store_error(error) from error
            except StoreUnusableError:
                self._roll_back(connection)
                raise
            else:
                return connection, read
            self._pause()

    def _commit(
        self, connection: Connection, waiting: Sequence[Statement], *, has_changes: bool
    ) -> None:
        nonce = self._entropy.key_bytes(_NONCE_BYTES)
        is_announced = has_changes and not connection.is_yugabyte
        notify = (Statement(f"NOTIFY {CHANNEL}"),) if is_announced else ()
        try:
            _finish(connection, (*waiting, Statement(_PUT_NONCE, (nonce,)), *notify))
        except psycopg.Error as error:
            if not _is_lost(connection, error):
                self._roll_back(connection)
                raise store_error(error) from error
            self._pool.drop(connection)
            self._pool.drop_idle()
            if not self._is_committed(nonce):
                raise StoreLockedError("the database was lost before the commit") from error
        except _RolledBackError:
            self._roll_back(connection)
            raise
        except _OutcomeUnknownError as error:
            self._pool.drop(connection)
            raise CommitFailedError(str(error), is_fatal=False) from error
        else:
            self._pool.give(connection)

    def _is_committed(self, nonce: bytes) -> bool:
        """Find out what became of a transaction whose COMMIT was not answered.

        Raises:
            CommitFailedError: The database cannot be asked.
        """
        deadline = self._clock.monotonic() + _SEARCH_LIMIT_S
        while True:
            try:
                return self._finds(nonce)
            except (psycopg.Error, StoreError, _OutcomeUnknownError) as error:
                if self._clock.monotonic() >= deadline:
                    raise CommitFailedError(
                        "the answer to COMMIT was lost, and the database cannot be asked again",
                        is_fatal=False,
                    ) from error
            self._pause()

    def _finds(self, nonce: bytes) -> bool:
        connection = self._pool.new()
        try:
            # Waits until the lost transaction has ended, one way or the other. What is read is told
            # after a commit alone: a server that was replaced does not get that far.
            sought = Statement("SELECT 1 FROM outcomes WHERE nonce = $1", (nonce,))
            [(_, found)] = _take_row(connection, [sought])
            _finish(connection)
        except BaseException:
            self._pool.drop(connection)
            raise
        self._pool.give(connection)
        return bool(found)

    def _roll_back(self, connection: Connection) -> None:
        try:
            if not connection.is_lost:
                connection.execute("ROLLBACK")
        except psycopg.Error:
            self._pool.drop(connection)
        else:
            self._pool.give(connection)

    def _pause(self) -> None:
        share = self._entropy.key_bytes(1)[0] / 255
        pause(share * _LONGEST_PAUSE_S)


def _take_row(connection: Connection, then: Sequence[Statement]) -> Read:
    """Lock the row and execute the statements in one round trip; return their rows."""
    _, taken, *found = execute_all(connection, (*_TAKE_ROW, *then))
    if taken.rowcount != 1:
        raise StoreUnusableError("the database has lost the row of `commits`")
    return [(one, cursor.fetchall()) for one, cursor in zip(then, found, strict=True)]


def _finish(connection: Connection, statements: Sequence[Statement] = ()) -> None:
    """Execute statements, and commit.

    All go together, without an end of the pipeline before COMMIT: when one of them fails, COMMIT is
    not executed, and the error is that of the statement.

    Raises:
        _RolledBackError: Nothing is changed.
        _OutcomeUnknownError: The server says something else than that it committed.
    """
    with connection.warnings() as warnings:
        cursor = execute_all(connection, (*statements, *_COMMIT))[-1]
    if cursor.statusmessage == "ROLLBACK":
        raise _RolledBackError("the database has rolled the change back")
    if warnings or cursor.statusmessage != "COMMIT":
        raise _OutcomeUnknownError(
            ", ".join((f"COMMIT was answered with {cursor.statusmessage}", *warnings))
        )


def _is_lost(connection: Connection, error: psycopg.Error) -> bool:
    return (
        connection.is_lost
        or connection.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        or error.sqlstate is None
        or error.sqlstate.startswith(("08", "57P"))
    )
