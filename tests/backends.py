"""The backends that the contract of a store is tested against."""

from pathlib import Path
from typing import Any, Protocol

from keybearer_service.storage import Store, dbapi
from keybearer_service.storage.sqlite import SqliteStore

Dump = dict[str, list[dict[str, Any]]]


class Backend(Protocol):
    """One empty database, and the ways to look at it that the contract has not."""

    store: Store

    def open_another(self) -> Store:
        """Open the same database as another process would."""
        ...

    def open_file(self, path: Path) -> Store:
        """Open a backup."""
        ...

    def dump(self) -> Dump:
        """Answer every column of every row."""
        ...

    def close(self) -> None:
        """Close every store that was opened."""
        ...


def dump_database(path: Path) -> Dump:
    """Answer every column of every row of a SQLite file, as its last commit left it."""
    connection = dbapi.connect(str(path))
    try:
        names = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        return {name: _rows(connection, name) for (name,) in names}
    finally:
        connection.close()


def _rows(connection: Any, table: str) -> list[dict[str, Any]]:
    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY rowid")  # noqa: S608 - our names
    columns = [one[0] for one in cursor.description]
    return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


class SqliteBackend:
    """SQLite files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "store.db"
        self.store: Store = SqliteStore.create(self._path)
        self._opened: list[Store] = [self.store]

    def open_another(self) -> Store:
        return self.open_file(self._path)

    def open_file(self, path: Path) -> Store:
        store = SqliteStore(path)
        self._opened.append(store)
        return store

    def dump(self) -> Dump:
        return dump_database(self._path)

    def close(self) -> None:
        for store in self._opened:
            store.close()


BACKENDS = {"sqlite": SqliteBackend}
