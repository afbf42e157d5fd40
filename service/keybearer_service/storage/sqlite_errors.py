"""What an error of the SQLite driver means, as an error of the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

from keybearer_service.storage import (
    EmailConflictError,
    ReadAbandonedError,
    StoreClosedError,
    StoreConflictError,
    StoreDamagedError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    dbapi,
)

FULL: Final = frozenset({"SQLITE_FULL"})
LOCKED: Final = frozenset(
    {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_BUSY_SNAPSHOT", "SQLITE_CANTOPEN"}
)
_INTERRUPTED: Final = "SQLITE_INTERRUPT"
_TAKEN: Final = "UNIQUE constraint failed: "
"""How SQLite's message begins; not every driver tells the kinds of constraints apart."""
_EMAIL_TAKEN: Final = _TAKEN + "users.account_id, users.email"
_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT", "SQLITE_IOERR_CORRUPTFS")
"""How the names begin of errors about what a file holds."""
_FULL_IN_BACKUP: Final = "database or disk is full"
"""What the driver says while it copies a database; it gives no name there."""
_MISSING_TABLE: Final = "no such table"


def name_of(error: dbapi.DatabaseError) -> str:
    """Return SQLite's name of an error, as SQLITE_BUSY, or "unknown" without one."""
    return str(getattr(error, "sqlite_errorname", "unknown"))


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into the store's."""
    try:
        yield
    except dbapi.DatabaseError as error:
        raise store_error(error) from error


@contextmanager
def conflicts() -> Iterator[None]:
    """Raise StoreConflictError for a value that is taken, where the use case can catch it."""
    try:
        yield
    except dbapi.IntegrityError as error:
        raise store_error(error) from error


def store_error(error: dbapi.DatabaseError) -> Exception:
    """Return a driver's error as the store's.

    A broken statement of ours stays what it is; everything else that a database can say is trouble
    of the store. A table of ours that is missing is no broken statement: the file lost it.
    """
    name, text = name_of(error), str(error)
    if name.startswith(_DAMAGED) or text.startswith(_MISSING_TABLE):
        return StoreDamagedError(f"the database is damaged: {name}; run `keybearer-server check`")
    if text == _EMAIL_TAKEN:
        return EmailConflictError("the e-mail address is taken")
    if text.startswith(_TAKEN):
        return StoreConflictError(f"taken: {text.removeprefix(_TAKEN)}")
    if isinstance(error, dbapi.ProgrammingError) and "closed" in text:
        return StoreClosedError("the store is closed")
    if name in FULL or text == _FULL_IN_BACKUP:
        return StoreFullError("the disk is full")
    if name == _INTERRUPTED:
        return ReadAbandonedError("the caller no longer waits")
    if name.startswith("SQLITE_READONLY"):
        return StoreReadOnlyError("the database is read-only")
    if name == "SQLITE_ERROR" or isinstance(error, dbapi.BROKEN_STATEMENT):
        return cast("Exception", error)
    return StoreLockedError(f"the store cannot be used: {name}")
