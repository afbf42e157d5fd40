"""What is different where YugabyteDB answers instead of PostgreSQL.

It speaks the protocol of PostgreSQL 15 from its version 2025.1 on. Every row has a leader, which
holds a lease: a leader that was replaced does not answer. So nothing has to prove that it is the
real one, and no promotion begins another history. Of what PostgreSQL does, these are missing:

- Each statement that changes the schema is a transaction of its own, so each may be run twice.
- Triggers see one row at a time.
- There is no log of the server to ask for a timeline.
- Commits are not announced unless a flag is set, and later than looking for them finds them.

Formats and settings: https://docs.yugabyte.com/stable/api/ysql/ (CREATE TABLE, CREATE DATABASE,
SHOW TRANSACTION) and https://docs.yugabyte.com/stable/additional-features/colocation/.
"""

import re
from collections.abc import Iterator
from typing import Final

import psycopg

from keybearer_service.storage import StoreUnusableError, rows

_MARK: Final = b"-YB-"
"""In the version that a server says it has, as in 15.12-YB-2025.1.0.0-b1."""
_NEEDED_ISOLATION: Final = "read committed"
_SETTINGS: Final = (
    "SET yb_read_from_followers = off; SET yb_default_copy_from_rows_per_transaction = 0"
)
"""Only leaders answer; and a copy is of the transaction that it is in, as a whole."""
_SETTINGS_KEPT: Final = (
    "SELECT current_setting('yb_read_from_followers'),"
    " current_setting('yb_default_copy_from_rows_per_transaction')"
)
_ISOLATION: Final = "SELECT yb_get_effective_transaction_isolation_level()"
_IS_COLOCATED: Final = "SELECT yb_is_database_colocated()"
_RANGE_BY_DEFAULT: Final = "SET yb_use_hash_splitting_by_default = off"
"""Keys are in order unless they say that they are spread by a hash: lists read them in order."""

_BY_HASH: Final = frozenset({"api_keys", "key_usage", "users"})
"""Read by their id, which is random."""
_APART: Final = frozenset(
    {
        *_BY_HASH,
        "audit_event_subjects",
        "audit_events",
        "changes",
        "personal_texts",
        "request_records",
    }
)
"""Tables that grow with use. The others lie together in one tablet, so that a write finds them in
one place."""
_TABLE: Final = re.compile(
    r"CREATE TABLE IF NOT EXISTS (?P<name>\w+) \((?P<body>.*?)\)(?: WITH \(fillfactor = \d+\))?\Z",
    re.DOTALL,
)
_ID: Final = re.compile(r"^(  (\w+) text COLLATE \"C\") PRIMARY KEY", re.MULTILINE)


def is_yugabyte(version: bytes | None) -> bool:
    """Return whether a server with this `server_version` is one."""
    return version is not None and _MARK in version


def prepare(connection: psycopg.Connection[rows.Row]) -> None:
    """Have a new connection read from leaders alone, whatever its role or database says.

    Raises:
        StoreUnusableError: It does not take the settings.
    """
    connection.execute(_SETTINGS)
    if connection.execute(_SETTINGS_KEPT).fetchone() != ("off", "0"):
        raise StoreUnusableError("the database does not take yb_read_from_followers = off")


def assert_suitable(connection: psycopg.Connection[rows.Row]) -> None:
    """Refuse a database that cannot keep the promises.

    Raises:
        StoreUnusableError: Statements of a write would not see what others have committed, or the
            small tables would not lie together.
    """
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    found = connection.execute(_ISOLATION).fetchone()
    connection.execute("ROLLBACK")
    if found != (_NEEDED_ISOLATION,):
        raise StoreUnusableError(
            "the database runs READ COMMITTED as another isolation level; start its tablet servers "
            "with --yb_enable_read_committed_isolation=true"
        )
    if connection.execute(_IS_COLOCATED).fetchone() != (True,):
        raise StoreUnusableError(
            "the database is not colocated; create it by CREATE DATABASE … WITH COLOCATION = true"
        )


def statements(script: str) -> Iterator[str]:
    """Yield the statements by which a script for PostgreSQL is executed, one after another.

    They begin with a setting of the connection.
    """
    yield _RANGE_BY_DEFAULT
    for statement in _split(script):
        table = _TABLE.search(statement)
        yield statement if table is None else _spread(table)


def _spread(table: re.Match[str]) -> str:
    name, body = table["name"], table["body"]
    if name in _BY_HASH:
        body, count = _ID.subn(r"\1 NOT NULL", body)
        if count != 1:
            raise AssertionError(name)
        [(_, column)] = _ID.findall(table["body"])
        body = f"{body.rstrip()},\n  PRIMARY KEY ({column} HASH)\n"
    where = " WITH (colocation = false)" if name in _APART else ""
    return f"CREATE TABLE IF NOT EXISTS {name} ({body}){where}"


def _split(script: str) -> Iterator[str]:
    """Yield the statements of a script, in which bodies of functions stand between `$$`."""
    statement = ""
    for part in script.split(";"):
        statement += part
        if statement.count("$$") % 2:
            statement += ";"
            continue
        if statement.strip():
            yield statement.strip()
        statement = ""
