"""Fills an empty PostgreSQL database with the rows of a file, inside one transaction.

Indexes and references between tables are taken away first and made again over all rows, which takes
a fraction of the time. The transaction has them back, or nothing of this has happened. They stay
where changes of the schema are transactions of their own, as on YugabyteDB.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final, NamedTuple

from keybearer_service.storage import OnStep, StoreConflictError, StoreDamagedError, dbapi, rows
from keybearer_service.storage.postgres_backup import (
    BATCH,
    columns_of,
    rows_as_in_a_file,
    tables_of,
)
from keybearer_service.storage.postgres_connections import Connection
from keybearer_service.storage.sqlite_errors import store_error

_OLD_USE_VERSION: Final = (
    "CASE WHEN old_secret_version IS NOT NULL THEN old_secret_version"
    " WHEN old_secret_last_used_time IS NOT NULL THEN secret_version - 1 END"
)
"""Of an old secret that was erased only the time of its last use is left. Its version was one less
than that of the secret that has replaced it."""
_USAGE_OF: Final = {
    "key_id": "id",
    "last_used_time": "last_used_time",
    "use_count": "use_count",
    "used_version": "CASE WHEN secret_used THEN secret_version END",
    "old_used_version": (
        f"CASE WHEN old_secret_last_used_time IS NOT NULL THEN {_OLD_USE_VERSION} END"
    ),
    "old_secret_last_used_time": "old_secret_last_used_time",
}
"""The columns of `key_usage`, by those of a key in a file."""
_USED: Final = (
    "last_used_time IS NOT NULL OR use_count <> 0 OR secret_used"
    " OR old_secret_last_used_time IS NOT NULL"
)
_OF_USAGE: Final = frozenset(
    {"last_used_time", "use_count", "secret_used", "old_secret_last_used_time"}
)
_REFERENCES: Final = (
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE contype = 'f' AND connamespace = current_schema()::regnamespace"
)
_TARGETS: Final = (
    "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
    " WHERE contype = 'f' AND connamespace = current_schema()::regnamespace"
)
_COUNTS: Final = "key_counts"
"""How many keys each account has, which triggers keep."""
_INDEXES: Final = (
    "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid)"
    " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " WHERE c.relnamespace = current_schema()::regnamespace AND i.indrelid = ANY($1::regclass[])"
    " AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)"
)
_TYPES: Final = (
    "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = $1::regclass"
)


class _Source(NamedTuple):
    """What one table of the database is filled with."""

    table: str
    columns: Sequence[str]
    select: str
    """The statement that reads it from the file."""


class _Steps:
    """Counts what is done."""

    def __init__(self, on_step: OnStep, what: str, total: int) -> None:
        self._on_step = on_step
        self._what = what
        self._total = total
        self._done = 0
        on_step(what, 0, total)

    def add(self, count: int = 1) -> None:
        """Count more of it."""
        self._done += count
        self._on_step(self._what, self._done, self._total)


def fill(connection: Connection, path: Path, on_step: OnStep) -> None:
    """Copy every row of a file into the tables, and compare what is there afterwards.

    Args:
        connection: It is inside a transaction that has the row of all writes.
        path: The file, in which nobody writes.
        on_step: Told how much is done.

    Raises:
        StoreConflictError: The database holds an installation.
        StoreDamagedError: Rows that were read back differ from those of the file.
    """
    if connection.execute("SELECT 1 FROM installation").fetchone() is not None:
        raise StoreConflictError("the database holds an installation already")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with closing(dbapi.connect(uri, uri=True, isolation_level=None)) as file:
            file.execute("BEGIN")
            _fill(connection, file, on_step)
    except dbapi.DatabaseError as error:
        raise store_error(error) from error


def _fill(connection: Connection, file: Any, on_step: OnStep) -> None:
    tables = _in_order_of_references(connection, tables_of(file))
    counts = {table: _count(file, table) for table in tables}
    sources = [one for table in tables for one in _sources(file, table)]
    again = (
        []
        if connection.is_yugabyte
        else _take_indexes_away(connection, [one.table for one in sources])
    )
    copied = _Steps(on_step, "rows copied", sum(counts.values()))
    for one in sources:
        if one.table == _COUNTS:
            # Where triggers run they have counted; the file may name accounts without keys too.
            connection.execute(f"DELETE FROM {_COUNTS}")
        for number in _copy(connection, file, one):
            if one.table in counts:
                copied.add(number)
    _make_again(connection, again, on_step)
    compared = _Steps(on_step, "rows compared", sum(counts.values()))
    for table in tables:
        _compare(connection, file, table, compared)


def _in_order_of_references(connection: Connection, tables: Sequence[str]) -> list[str]:
    """Return tables in such an order that each comes after those that its rows point to."""
    order = TopologicalSorter(dict.fromkeys(tables, ()))
    for table, target in connection.execute(_TARGETS).fetchall():
        order.add(table, target)
    order.add(_COUNTS, "api_keys")
    return list(order.static_order())


def _count(file: Any, table: str) -> int:
    return int(file.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _sources(file: Any, table: str) -> Iterator[_Source]:
    columns = columns_of(file, table)
    if table != "api_keys":
        # Of two peppers of one moment the newer one is read later.
        order = " ORDER BY rowid" if table == "peppers" else ""
        yield _Source(table, columns, f"SELECT {', '.join(columns)} FROM {table}{order}")
        return
    own = [name for name in columns if name not in _OF_USAGE]
    yield _Source(
        table,
        [*own, "old_use_version"],
        f"SELECT {', '.join(own)}, {_OLD_USE_VERSION} FROM api_keys",
    )
    yield _Source(
        "key_usage",
        list(_USAGE_OF),
        f"SELECT {', '.join(_USAGE_OF.values())} FROM api_keys WHERE {_USED}",
    )


def _take_indexes_away(connection: Connection, tables: Sequence[str]) -> list[str]:
    """Drop references and indexes; return the statements that make them again."""
    references = connection.execute(_REFERENCES).fetchall()
    indexes = connection.execute(_INDEXES, (list(tables),)).fetchall()
    for table, name, _ in references:
        connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    # The counts that the triggers keep are copied.
    connection.execute("ALTER TABLE api_keys DISABLE TRIGGER USER")
    return [
        *(definition for _, definition in indexes),
        *(
            f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"
            for table, name, definition in references
        ),
        "ALTER TABLE api_keys ENABLE TRIGGER USER",
        *(f"ANALYZE {table}" for table in tables),
    ]


def _make_again(connection: Connection, statements: Sequence[str], on_step: OnStep) -> None:
    steps = _Steps(on_step, "indexes made", len(statements))
    for statement in statements:
        connection.execute(statement)
        steps.add()


def _copy(connection: Connection, file: Any, source: _Source) -> Iterator[int]:
    """Copy one table; yield the number of rows of each batch."""
    found = connection.execute(_TYPES, (source.table,)).fetchall()
    types = {str(row[0]): str(row[1]) for row in found}
    into = f"COPY {source.table} ({', '.join(source.columns)}) FROM STDIN (FORMAT BINARY)"
    selected = file.execute(source.select)
    with connection.cursor() as cursor, cursor.copy(into) as copy:
        copy.set_types([types[name] for name in source.columns])
        while batch := selected.fetchmany(BATCH):
            for row in batch:
                copy.write_row(row)
            yield len(batch)


def _compare(connection: Connection, file: Any, table: str, steps: _Steps) -> None:
    columns = columns_of(file, table)
    cursor = file.execute(f"SELECT {', '.join(columns)} FROM {table}")
    expected = _fingerprint(iter(lambda: cursor.fetchmany(BATCH), []))

    def counted() -> Iterator[Sequence[rows.Row]]:
        for batch in rows_as_in_a_file(connection, table, columns):
            steps.add(len(batch))
            yield batch

    if _fingerprint(counted()) != expected:
        raise StoreDamagedError(f"what was read back of {table} differs from the file")


def _fingerprint(batches: Iterable[Sequence[rows.Row]]) -> tuple[int, int]:
    """Return the number of rows and the sum of their digests, which no order changes."""
    count = total = 0
    for batch in batches:
        count += len(batch)
        for row in batch:
            total += int.from_bytes(hashlib.sha256(repr(row).encode()).digest())
    return count, total
