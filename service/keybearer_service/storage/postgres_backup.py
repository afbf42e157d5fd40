"""Copies a PostgreSQL database into the file that every backend writes as its backup."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from keybearer_service.storage import OnProgress, dbapi
from keybearer_service.storage.files import new_copy
from keybearer_service.storage.postgres_connections import Connection
from keybearer_service.storage.postgres_session import KEYS
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.storage.sqlite_errors import store_error

_BATCH: Final = 5000
_SOURCES: Final = {
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
    tables = _tables(target)
    counts = " + ".join(f"(SELECT count(*) FROM {table})" for table in tables)
    total = int((connection.execute(f"SELECT {counts}").fetchone() or (0,))[0])
    done = 0
    target.execute("BEGIN")
    for table in tables:
        for copied in _copy_table(connection, target, table):
            done += copied
            on_progress(done, total)
    target.execute("COMMIT")


def _tables(target: Any) -> list[str]:
    found = target.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        " AND name NOT LIKE '%_migrations'"
    )
    return [name for (name,) in found.fetchall()]


def _copy_table(connection: Connection, target: Any, table: str) -> Iterator[int]:
    """Copy a table; yield the number of rows of each batch."""
    columns = [row[1] for row in target.execute(f"PRAGMA table_info({table})").fetchall()]
    connection.execute(
        f"DECLARE rows NO SCROLL CURSOR FOR SELECT {', '.join(columns)}"
        f" FROM {_SOURCES.get(table, table)}"
    )
    # What triggers of the file have counted is replaced by what was counted before.
    insert = f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(columns))})"
    while found := connection.execute(f"FETCH {_BATCH} FROM rows").fetchall():
        target.executemany(insert, found)
        yield len(found)
    connection.execute("CLOSE rows")
