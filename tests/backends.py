"""The backends that the contract of a store is tested against."""

import atexit
import functools
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import postgres_server
from keybearer_service.domain.clock import Micros, SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import Store, dbapi
from keybearer_service.storage.sqlite import BUSY_TIMEOUT_S, SqliteStore
from postgres_proxy import FAILING_READ, Proxy
from storeprocess import AlternatingStore, StoreProcess

PATIENCE_S = 60.0
"""How long a write goes on trying where others may be faster again and again."""
Dump = dict[str, list[dict[str, Any]]]


class Backend(Protocol):
    """One empty database, and the ways to look at it that the contract does not have."""

    store: Store

    def open_another(self, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
        """Open the same database as another process would."""
        ...

    def open_file(self, path: Path) -> Store:
        """Open a backup."""
        ...

    def dump(self) -> Dump:
        """Return every column of every row."""
        ...

    def execute(self, statement: str) -> None:
        """Execute a statement behind the store's back, without checks between tables."""
        ...

    def append_changes(self, count: int, time: Micros) -> None:
        """Commit many changes of one time."""
        ...

    def append_keys(self, count: int) -> None:
        """Commit many keys that are like those there are."""
        ...

    def close(self) -> None:
        """Close every store that was opened."""
        ...


def dump_database(path: Path) -> Dump:
    """Return every column of every row of a SQLite file, as its last commit left it."""
    connection = dbapi.connect(str(path))
    try:
        names = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        return {name: _rows(connection, name) for (name,) in names}
    finally:
        connection.close()


def _rows(connection: Any, table: str) -> list[dict[str, Any]]:
    # Without the columns that are computed.
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    cursor = connection.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - our names
    return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


def append_changes(connection: Any, count: int, time: Micros) -> None:
    """Add many changes of keys, in one statement."""
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO changes (revision, time, account_id, kind, subject_id)"
        " SELECT revision + i, ?, operator_account_id, 1, printf('%016d', i) FROM n, installation",
        (count, time),
    )
    connection.execute("UPDATE installation SET revision = revision + ?", (count,))


def append_keys(connection: Any, count: int, key_id: str = "") -> None:
    """Add many copies of a key, or of the first one, in one statement."""
    columns = [row[1] for row in connection.execute("PRAGMA table_info(api_keys)")]
    values = ["printf('copy%012d', i)" if name == "id" else name for name in columns]
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"  # noqa: S608 - our names
        f" INSERT INTO api_keys ({', '.join(columns)}) SELECT {', '.join(values)}"
        " FROM n, (SELECT * FROM api_keys WHERE ? IN ('', id) ORDER BY rowid LIMIT 1)",
        (count, key_id),
    )


def append_keys_to_postgres(url: DatabaseUrl, count: int, key_id: str = "") -> None:
    """Add many copies of a key, or of the first one, in one statement."""
    copy = "jsonb_build_object('id', 'copy' || lpad(i::text, 12, '0'))"
    postgres_server.execute(
        url.text,
        f"INSERT INTO api_keys SELECT (jsonb_populate_record(k, {copy})).*"  # noqa: S608 - ours
        f" FROM generate_series(1, {count}) i, (SELECT k FROM api_keys k"
        f" WHERE '{key_id}' IN ('', id) ORDER BY id LIMIT 1) AS first (k)",
    )


class Connections:
    """Opens the connections of a store and keeps them, for a look behind the store's back."""

    def __init__(self, factory: type[Any] = dbapi.Connection) -> None:
        self._factory = factory
        self.opened: list[Any] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Open a connection, as the driver does."""
        connection = dbapi.connect(*arguments, factory=self._factory, **keywords)
        self.opened.append(connection)
        return connection

    @property
    def writer(self) -> Any:
        """The connection that changes go through: a store opens it first."""
        return self.opened[0]


class SqliteBackend:
    """SQLite files in a directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "store.db"
        SqliteStore.create(self._path).close()
        self._opened: list[Store] = []
        self.store = self.open_another()

    def open_another(self, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
        return self._keep(SqliteStore(self._path, busy_timeout_s=busy_timeout_s))

    def open_file(self, path: Path) -> Store:
        return self._keep(SqliteStore(path))

    def dump(self) -> Dump:
        return dump_database(self._path)

    def execute(self, statement: str) -> None:
        connection = dbapi.connect(str(self._path), isolation_level=None)
        connection.execute(statement)
        connection.close()

    def append_changes(self, count: int, time: Micros) -> None:
        connection = dbapi.connect(str(self._path))
        with connection:
            append_changes(connection, count, time)
        connection.close()

    def append_keys(self, count: int) -> None:
        connection = dbapi.connect(str(self._path))
        with connection:
            append_keys(connection, count)
        connection.close()

    def close(self) -> None:
        for store in self._opened:
            store.close()

    def _keep(self, store: Store) -> Store:
        self._opened.append(store)
        return store


@functools.cache
def _process() -> StoreProcess:
    process = StoreProcess()
    atexit.register(process.close)
    return process


class SqliteOfProcessesBackend(SqliteBackend):
    """The same, with every other operation carried out by another process."""

    def open_another(self, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Store:
        store = AlternatingStore(_process(), self._path, busy_timeout_s=busy_timeout_s)
        return self._keep(cast("Store", store))


class PostgresBackend:
    """A database of its own on a real server."""

    def __init__(self, directory: Path, url: DatabaseUrl | None = None) -> None:
        self.direct_url = url or postgres_server.new_database()
        self._opened: list[Store] = []
        self.store = self.open_another()

    def open_another(self, busy_timeout_s: float = BUSY_TIMEOUT_S, **options: Any) -> Store:
        return self._keep(open_postgres(self.direct_url, busy_timeout_s=busy_timeout_s, **options))

    def open_file(self, path: Path) -> Store:
        return self._keep(SqliteStore(path))

    def dump(self) -> Dump:
        return dump_postgres(self.direct_url)

    def execute(self, statement: str) -> None:
        # As a replica: without checks between tables.
        postgres_server.execute(
            self.direct_url.text, "SET session_replication_role = replica", statement
        )

    def append_changes(self, count: int, time: Micros) -> None:
        columns = "revision, time, account_id, kind, subject_id"
        added = f"revision + i, {time}, operator_account_id, 1, lpad(i::text, 16, '0')"
        source = f"generate_series(1, {count}) i, installation"
        insert = f"INSERT INTO changes ({columns}) SELECT {added} FROM {source}"  # noqa: S608 - numbers
        advance = f"UPDATE installation SET revision = revision + {count}"  # noqa: S608 - a number
        postgres_server.execute(self.direct_url.text, insert, advance)

    def append_keys(self, count: int) -> None:
        append_keys_to_postgres(self.direct_url, count)

    def close(self) -> None:
        for store in self._opened:
            store.close()
        postgres_server.drop_database(self.direct_url)

    def _keep(self, store: Store) -> Store:
        self._opened.append(store)
        return store


@functools.cache
def _hostile_template() -> DatabaseUrl:
    """Return a database with the schema that a hostile one is given."""
    from keybearer_service.storage.postgres import PostgresStore  # noqa: PLC0415 - needs psycopg

    direct = postgres_server.new_database(is_empty=True)
    postgres_server.execute(direct.text, FAILING_READ)
    with Proxy(direct, hostile=random.Random(1)) as proxy:
        PostgresStore.migrate(proxy.url)
    return direct


class HostilePostgresBackend(PostgresBackend):
    """The same behind a proxy that has writes and snapshots lost, and says it is YugabyteDB."""

    def __init__(self, directory: Path) -> None:
        seed = int(os.environ.get("KEYBEARER_TEST_SEED") or 1)
        print(f"KEYBEARER_TEST_SEED={seed}")  # noqa: T201 - shown with a test that fails
        direct = postgres_server.new_database(like=_hostile_template())
        self._proxy = Proxy(direct, hostile=random.Random(seed))
        self._proxy.open()
        super().__init__(directory, direct)

    def open_another(self, busy_timeout_s: float = PATIENCE_S, **options: Any) -> Store:
        return self._keep(open_postgres(self._proxy.url, busy_timeout_s=busy_timeout_s, **options))

    def close(self) -> None:
        super().close()
        self._proxy.close()


def open_postgres(url: DatabaseUrl, **options: Any) -> Store:
    """Open a store on PostgreSQL, with the clock and the randomness of the machine."""
    from keybearer_service.storage.postgres import PostgresStore  # noqa: PLC0415 - needs psycopg

    return PostgresStore(url, clock=SystemClock(), entropy=SystemEntropy(), **options)


def dump_postgres(url: DatabaseUrl) -> Dump:
    """Return every column of every row, without what only this backend keeps.

    The usage of a key stands in its row, as in SQLite.
    """
    import psycopg  # noqa: PLC0415 - it may not be installed

    from keybearer_service.storage.postgres_schema import BOOKKEEPING, OWN_COLUMNS  # noqa: PLC0415
    from keybearer_service.storage.postgres_session import KEYS  # noqa: PLC0415

    with psycopg.connect(url.text, row_factory=psycopg.rows.dict_row) as connection:
        names = connection.execute(
            "SELECT relname, attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
            " WHERE i.indisprimary AND c.relnamespace = current_schema()::regnamespace"
        ).fetchall()
        dump = {}
        for name, key in ((one["relname"], one["attname"]) for one in names):
            source = KEYS if name == "api_keys" else f"{name} k"
            if name not in BOOKKEEPING:
                select = f"SELECT k.* FROM {source} ORDER BY {key}"  # noqa: S608 - our names
                dump[name] = [
                    {
                        column: value
                        for column, value in row.items()
                        if (name, column) not in OWN_COLUMNS
                    }
                    for row in connection.execute(select.encode()).fetchall()
                ]
        return dump


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "postgres": PostgresBackend,
    "postgres-hostile": HostilePostgresBackend,
    "sqlite": SqliteBackend,
    "sqlite-processes": SqliteOfProcessesBackend,
}
