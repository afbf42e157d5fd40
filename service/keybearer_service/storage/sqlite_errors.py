"""What an error of the SQLite driver means, as an error of the store."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, cast

from keybearer_service.storage import (
    EmailConflictError,
    StoreClosedError,
    StoreConflictError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnusableError,
    dbapi,
)

FULL: Final = frozenset({"SQLITE_FULL"})
LOCKED: Final = frozenset(
    {"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_BUSY_SNAPSHOT", "SQLITE_CANTOPEN"}
)
_TAKEN: Final = "UNIQUE constraint failed: "
"""How SQLite's message begins; not every driver tells the kinds of constraints apart."""
_EMAIL_TAKEN: Final = _TAKEN + "users.account_id, users.email"
_DAMAGED: Final = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})


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
    """Return a driver's error as the store's; a bug of ours stays what it is."""
    name = name_of(error)
    if name in _DAMAGED:
        return StoreUnusableError(f"the database is damaged: {name}")
    if str(error) == _EMAIL_TAKEN:
        return EmailConflictError("the e-mail address is taken")
    if str(error).startswith(_TAKEN):
        return StoreConflictError(f"taken: {str(error).removeprefix(_TAKEN)}")
    if isinstance(error, dbapi.ProgrammingError) and "closed" in str(error):
        return StoreClosedError("the store is closed")
    if not isinstance(error, dbapi.OperationalError):
        return cast("Exception", error)
    if name in FULL:
        return StoreFullError("the disk is full")
    if name.startswith("SQLITE_READONLY"):
        return StoreReadOnlyError("the database is read-only")
    return StoreLockedError(f"the store cannot be used: {name}")
