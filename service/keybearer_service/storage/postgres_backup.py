"""Copies a PostgreSQL database into the file that every backend writes as its backup."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from keybearer_service.storage import OnProgress, dbapi, rows
from keybearer_service.storage.files import new_copy
from keybearer_service.storage.postgres_connections import Connection
from keybearer_service.storage.postgres_session import KEYS
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.storage.sqlite_departures import TABLE as DEPARTURE
from keybearer_service.storage.sqlite_errors import store_error

BATCH: Final = 5000
SOURCES: Final = {
    "api_keys": KEYS,
    # Of two peppers of one moment the newer one is read later.
    "peppers": "(SELECT * FROM peppers ORDER BY seq) k",
}


def copy_to_file(connection: Connection, path: Path, on_progress: OnProgress) -> None:
    """Write every row that a transaction sees to a new SQLite file.

    Args:
        connection: It is inside a transaction with one snapshot.
        path: The file.
        on_progress: Told how many rows are done.

    Raises:
        FileExistsError: The file exists.
        StoreFullError: There is no room for it.
    """
    with new_copy(path):
        SqliteStore(path).close()  # the schema
        target = dbapi.connect(str(path), isolation_level=None)
        try:
            # A copy that is not whole is thrown away. It is a file by itself: no log beside it.
            target.execute("PRAGMA journal_mode = DELETE")
            target.execute("PRAGMA synchronous = OFF")
            _copy_tables(connection, target, on_progress)
        except dbapi.DatabaseError as error:
            raise store_error(error) from error
        finally:
            target.close()


def _copy_tables(connection: Connection, target: Any, on_progress: OnProgress) -> None:
    tables = tables_of(target)
    counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    total = int((connection.execute(f"SELECT {counts}").fetchone() or (0,))[0])
    done = 0
    target.execute("BEGIN")
    for table in tables:
        for copied in _copy_table(connection, target, table):
            done += copied
            on_progress(done, total)
    target.execute("COMMIT")


def tables_of(file: Any) -> list[str]:
    """Return the tables of a file that hold an installation."""
    found = file.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        f" AND name NOT LIKE '%_migrations' AND name <> '{DEPARTURE}'"
    )
    return [name for (name,) in found.fetchall()]


def columns_of(file: Any, table: str) -> list[str]:
    """Return the columns of a table of a file, without those that are computed."""
    return [row[1] for row in file.execute(f"PRAGMA table_info({table})").fetchall()]


def rows_as_in_a_file(
    connection: Connection, table: str, columns: Sequence[str]
) -> Iterator[Sequence[rows.Row]]:
    """Yield the rows of a table in batches, with the columns that a file has."""
    connection.execute(
        f"DECLARE rows NO SCROLL CURSOR FOR SELECT {', '.join(columns)}"
        f" FROM {SOURCES.get(table, table)}"
    )
    while found := connection.execute(f"FETCH {BATCH} FROM rows", binary=True).fetchall():
        yield found
    connection.execute("CLOSE rows")


def _copy_table(connection: Connection, target: Any, table: str) -> Iterator[int]:
    """Copy a table; yield the number of rows of each batch."""
    columns = columns_of(target, table)
    # What triggers of the file have counted is replaced by what was counted before.
    insert = f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(columns))})"
    for found in rows_as_in_a_file(connection, table, columns):
        target.executemany(insert, found)
        yield len(found)
