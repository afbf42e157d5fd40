"""What an error of the PostgreSQL driver means, as an error of the store."""

from typing import Final

import psycopg

from keybearer_service.storage import (
    EmailConflictError,
    StoreConflictError,
    StoreDamagedError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
    StoreUnusableError,
)

_EMAIL_INDEX: Final = "users_by_email"
_DISK_FULL: Final = "53100"
_UNIQUE_VIOLATION: Final = "23505"
_READ_ONLY: Final = "25006"
_DAMAGED: Final = frozenset({"XX001", "XX002"})
_NO_SCHEMA: Final = frozenset({"42P01", "42703"})
_PASSING: Final = frozenset({"08", "40", "53", "55", "57", "58"})
"""Classes of errors that say nothing about the statement: another try may succeed."""
_CONFLICTS: Final = frozenset({"40001", "40P01"})


def is_conflict(error: psycopg.Error) -> bool:
    """Return whether a statement lost against another transaction, and may be tried again."""
    return error.sqlstate in _CONFLICTS


def store_error(error: psycopg.Error) -> Exception:
    """Return a driver's error as the store's; a bug of ours stays what it is."""
    state = error.sqlstate
    if state is None:
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return StoreLockedError(f"the database cannot be reached: {_first_line(error)}")
        return error
    if state == _DISK_FULL:
        return StoreFullError("the disk of the database is full")
    if state == _UNIQUE_VIOLATION:
        name = error.diag.constraint_name
        if name == _EMAIL_INDEX:
            return EmailConflictError("the e-mail address is taken")
        # Never the detail: it holds the values.
        return StoreConflictError(f"taken: {name}")
    if state in _DAMAGED:
        return StoreDamagedError(f"the database is damaged: {state} {_first_line(error)}")
    if state in _NO_SCHEMA:
        return StoreUnusableError("the database has no schema of keybearer; run `migrate`")
    if state == _READ_ONLY:
        return StoreReadOnlyError("the database takes no changes")
    if state[:2] in _PASSING:
        return StoreLockedError(f"the database refuses: {state} {_first_line(error)}")
    return error


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error)).partition("\n")[0]
