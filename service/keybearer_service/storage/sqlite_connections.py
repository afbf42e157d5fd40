"""A connection to a SQLite file: what each is set to, and how its transactions begin and end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from keybearer_service.domain.clock import pause
from keybearer_service.storage import CLAIM_WAIT_S, StoreUnusableError, Waiting, dbapi
from keybearer_service.storage.sqlite_errors import LOCKED, name_of

_LOG_LIMIT: Final = 64 * 1024 * 1024
"""Bytes that the write-ahead log keeps once it is folded in; a long backup lets it grow."""
_FOLDED_FROM: Final = 4_000
"""Pages of 4 KiB in the log from which on a commit folds it in, which takes a hundred milliseconds
in a large installation. With SQLite's own 1,000 it is one change in a hundred that waits for it."""
_READ_ONLY: Final = (
    "query_only = ON",
    "wal_autocheckpoint = 0",
    # A million keys do not fit into the cache; mapped, a lookup among them costs two thirds.
    "mmap_size = 2147418112",
)
_CLAIM_TRIES: Final = 100
_STEPS_BETWEEN_LOOKS: Final = 100_000
"""Steps of a statement, a few milliseconds, between two looks whether its caller still waits."""
_WAL_TRIES: Final = 20
"""Each is lost to another process that has switched meanwhile, or is about to."""


def prepare(connection: dbapi.Connection, *, read_only: bool) -> None:
    """Set a new connection up.

    Raises:
        StoreUnusableError: The file or the engine cannot keep what was committed.
        OperationalError: Others have held the file for too long.
    """
    _switch_to_wal(connection)
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "secure_delete = ON",
        "trusted_schema = OFF",
        "cache_size = -16384",
        f"journal_size_limit = {_LOG_LIMIT}",
        f"wal_autocheckpoint = {_FOLDED_FROM}",
        *(_READ_ONLY if read_only else ()),
    ):
        connection.execute(f"PRAGMA {pragma}")
    if connection.execute("PRAGMA synchronous").fetchone()[0] != 2:  # noqa: PLR2004 - FULL
        raise StoreUnusableError("this SQLite does not take synchronous=FULL")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        raise StoreUnusableError("the file system cannot hold a WAL; use a local disk")


def begin_soon(connection: dbapi.Connection) -> None:
    """Begin a transaction that may write, within CLAIM_WAIT_S.

    SQLite itself waits for up to 100 ms between two tries, and so would lose to busier processes.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    for _ in range(_CLAIM_TRIES):
        try:
            connection.execute("BEGIN IMMEDIATE")
        except dbapi.OperationalError as error:
            if name_of(error) not in LOCKED:
                raise
            pause(CLAIM_WAIT_S / _CLAIM_TRIES)
        else:
            return
    connection.execute("BEGIN IMMEDIATE")


@contextmanager
def ending_with(caller: Waiting | None, connection: dbapi.Connection) -> Iterator[None]:
    """End the statements of the block once their caller no longer waits."""
    if caller is None:
        yield
        return
    connection.set_progress_handler(lambda: not caller.is_alive, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    finally:
        with suppress(dbapi.ProgrammingError):  # the store was closed meanwhile
            connection.set_progress_handler(None, 0)


def roll_back(connection: dbapi.Connection) -> None:
    """End the transaction of a connection, if it is in one, without its changes."""
    # Some errors end the transaction by themselves, and so does closing the store.
    with suppress(dbapi.ProgrammingError):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class WhenThreadEnds:
    """Something local to a thread: when the thread ends, it is dropped and calls a function.

    Threads come and go with slow callers. Connections that stayed behind would use up the open
    files of the process.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __del__(self) -> None:
        self._call()


def _switch_to_wal(connection: dbapi.Connection) -> None:
    """Have the file use a write-ahead log; costs nothing where it does already.

    Raises:
        OperationalError: Others have held the file for too long.
    """
    for _ in range(_WAL_TRIES):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except dbapi.OperationalError as error:
            if name_of(error) not in LOCKED:
                raise
            # Of several processes that switch at once SQLite refuses all but one, and at once,
            # whatever the busy timeout. A transaction does wait for that one.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        else:
            return
    connection.execute("PRAGMA journal_mode = WAL")
