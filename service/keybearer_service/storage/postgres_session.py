"""How statements of `transactions` are executed on PostgreSQL."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

import psycopg

from keybearer_service.domain.model import SecretId
from keybearer_service.storage import (
    NEVER,
    UNUSED,
    Foreseen,
    ReadAbandonedError,
    StoreLockedError,
    Waiting,
    rows,
)
from keybearer_service.storage.first_uses import FirstUses
from keybearer_service.storage.postgres_connections import Connection
from keybearer_service.storage.postgres_errors import is_conflict, store_error
from keybearer_service.storage.transactions import REVISION, not_initialised, reader_over

T = TypeVar("T")
KEYS: Final = (
    "(SELECT a.*, t.last_used_time, coalesce(t.use_count, 0) AS use_count,"
    " CASE WHEN t.used_version = a.secret_version THEN 1 ELSE 0 END AS secret_used,"
    " CASE WHEN t.old_used_version = a.old_use_version THEN t.old_secret_last_used_time END"
    " AS old_secret_last_used_time"
    " FROM api_keys a LEFT JOIN key_usage t ON t.key_id = a.id) k"
)
"""A key's usage stands in a table of its own: a count then writes neither the key's row nor its
indexes, and waits for no change of the key."""
LONG_LIMIT_S: Final = 60.0
"""How long a statement may take that changes rows by the thousand."""
SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SNAPSHOTS: Final = 10
"""How many snapshots are tried for one statement."""
_WRITTEN_WITH: Final = {"api_keys": ("api_keys", "key_counts")}
"""Tables that a trigger of another one writes to, with that one."""

_USAGE: Final = ("secret_used", "old_secret_last_used_time")
"""Columns of a key that stand in `key_usage`, of those that are written with the key."""
_PLACE: Final = re.compile(r"\?(\d*)")


@lru_cache(maxsize=1000)
def numbered(sql: str) -> str:
    """Return a statement with `$1` for `?`, counted as SQLite does."""
    highest = 0

    def number(match: re.Match[str]) -> str:
        nonlocal highest
        place = int(match[1]) if match[1] else highest + 1
        highest = max(highest, place)
        return f"${place}"

    return _PLACE.sub(number, sql)


class Statement(NamedTuple):
    """A statement with its values."""

    sql: str
    values: Sequence[object] = ()
    changes_one_row: bool = False
    """Whether it is an error of ours when it changes none."""


def execute_all(
    connection: Connection, statements: Sequence[Statement]
) -> list[psycopg.Cursor[rows.Row]]:
    """Execute statements with one round trip; after one that fails the server executes no other.

    Raises:
        psycopg.Error: What the first one that failed has failed with.
        LookupError: One that changes a row has found none.
    """
    cursors = [connection.cursor() for _ in statements]
    with connection.pipeline():
        for cursor, one in zip(cursors, statements, strict=True):
            # Prepared, they cost the server half: its planning is the other half.
            cursor.execute(one.sql, one.values, prepare=bool(one.values))
    for cursor, one in zip(cursors, statements, strict=True):
        if one.changes_one_row and cursor.rowcount != 1:
            raise LookupError(f"no row was there for: {one.sql}")
    return cursors


class PostgresSession:
    """A Session over a connection that is inside a transaction.

    Statements whose answers nobody needs go together with the next one that reads, or with COMMIT.
    The first error ends the transaction on the server. Every later statement raises it again.
    """

    keys = KEYS
    contains = 'strpos(lower({column}), lower(CAST(? AS text) COLLATE "C")) > 0'
    inserted = "seq"
    expire_order = f"coalesce(k.expire_time, {NEVER})"
    last_used_order = f"coalesce(k.last_used_time, {UNUSED})"
    row = "ctid"
    by_index = ""
    by_row = ""

    def __init__(
        self,
        connection: Connection,
        first_uses: FirstUses,
        caller: Waiting | None = None,
        read: Iterable[tuple[Statement, Sequence[rows.Row]]] = (),
    ) -> None:
        """Create the session; the store tells `first_uses` when its transaction ends.

        Args:
            connection: Inside a transaction.
            first_uses: Notes the uses of young secrets.
            caller: Who waits for what is read; no statement begins for one that has gone.
            read: What was read in this transaction already, by statements of this class.
        """
        self._caller = caller
        self.connection = connection
        self._first_uses = first_uses
        self._failure: Exception | None = None
        self._read = dict(read)
        self._waiting: list[Statement] = []
        self._revision: int | None = None
        self.has_changes = False
        """Whether watchers have something to read."""

    def one(self, sql: str, *values: object) -> rows.Row | None:
        """Return the first row of a statement; None when there is none."""
        found = self._read.get(reading(sql, values))
        if found is not None:
            self.assert_whole()
            return found[0] if found else None
        return self._execute(reading(sql, values)).fetchone()

    def all(self, sql: str, *values: object) -> list[rows.Row]:
        """Return the rows of a statement."""
        found = self._read.get(reading(sql, values))
        if found is not None:
            self.assert_whole()
            return list(found)
        if sql.startswith(("UPDATE", "DELETE")):
            self._read.clear()
            self._allow_more_time()
        return self._execute(reading(sql, values)).fetchall()

    def run(self, sql: str, *values: object) -> int:
        """Execute a statement that changes rows; return how many."""
        self._read.clear()
        return self._execute(Statement(numbered(sql), values)).rowcount

    def submit(self, sql: str, *values: object) -> None:
        """Execute a statement that changes rows, perhaps later."""
        self._read.clear()
        self._waiting.append(Statement(numbered(sql), values))

    def settle(self) -> None:
        """Execute what waits; raise what it fails with."""
        if self._waiting:
            self._perform(lambda: execute_all(self.connection, self._taken()))

    def finish(self) -> Sequence[Statement]:
        """Return the statements that are to go with COMMIT; execute those that may stop it.

        Raises:
            Exception: What has ended the transaction.
        """
        if any(one.changes_one_row for one in self._waiting):
            self.settle()
        self.assert_whole()
        if self.connection.closed:
            raise StoreLockedError("the connection was closed before the commit")
        return self._taken()

    def run_many(self, sql: str, values: Sequence[Sequence[object]]) -> None:
        """Execute a statement once for each of some values, without waiting between them."""
        if values:
            self._read.clear()
            self._allow_more_time()
            self.settle()
            cursor = self.connection.cursor()
            self._perform(lambda: cursor.executemany(numbered(sql), values))

    def next_revision(self) -> int:
        """Advance the revision; return the new one.

        Nobody else changes it while this transaction has the row that orders them.
        """
        if self._revision is None:
            row = self.one(REVISION)
            if row is None:
                raise not_initialised()
            self._revision = int(row[0])
        self._revision += 1
        self._write("installation", "UPDATE installation SET revision = ?", self._revision)
        return self._revision

    def begin_history(self, epoch_suffix: str = "") -> None:
        """Have the epoch hold for this server, under a name that ends differently."""
        self._write(
            "installation",
            "UPDATE installation SET server = ?, epoch_suffix = ?",
            self.connection.history,
            epoch_suffix,
        )
        self.has_changes = True

    def insert(self, table: str, row: rows.Columns) -> None:
        """Insert a row."""
        self._insert(table, row)

    def replace(self, table: str, row: rows.Columns, key: Sequence[str]) -> None:
        """Insert a row, or write it in the place of the one with the same key."""
        others = [f"{name} = excluded.{name}" for name in row if name not in key]
        self._insert(
            table, row, f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(others)}"
        )
        if table == "installation":
            self._revision = None

    def update(self, table: str, row_id: str, columns: rows.Columns) -> None:
        """Write columns of the row with this id."""
        if table == "api_keys":
            columns = self._without_usage(row_id, columns)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._write(
            table,
            f"UPDATE {table} SET {assignments} WHERE id = ?",
            *columns.values(),
            row_id,
            changes_one_row=True,
        )

    def replace_unused(self, secret: SecretId, columns: rows.Columns) -> bool:
        """Write columns of a key, on the condition that this secret of it was never used.

        The row of its usage is what a claim writes too, so of both one alone finds its condition.
        """
        if not self._first_uses.replace(secret):
            return False
        claimed = self.run(
            "INSERT INTO key_usage AS t (key_id, replaced_version) VALUES (?, ?)"
            " ON CONFLICT (key_id) DO UPDATE SET replaced_version = excluded.replaced_version"
            " WHERE coalesce(t.used_version, 0) < excluded.replaced_version",
            *secret,
        )
        if not claimed:
            return False
        stored = self._without_usage(secret.key_id, columns)
        assignments = ", ".join(f"{name} = ?" for name in stored)
        replaced = self.run(
            f"UPDATE api_keys SET {assignments} WHERE id = ? AND secret_version = ?",
            *stored.values(),
            *secret,
        )
        return replaced == 1

    def forget_uses(self, key_ids: Sequence[str]) -> None:
        """Delete the rows that count the uses of deleted keys."""
        self.run_many("DELETE FROM key_usage WHERE key_id = ?", [(one,) for one in key_ids])

    def _insert(self, table: str, row: rows.Columns, conflict: str = "") -> None:
        columns = self._without_usage(row["id"], row) if table == "api_keys" else row
        if table == "installation":
            # Of the first row; one that is replaced keeps what it has.
            columns = {**row, "server": self.connection.history}
        self.has_changes |= table == "changes"
        places = ", ".join("?" * len(columns))
        self._write(
            table,
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}){conflict}",
            *columns.values(),
        )

    def _without_usage(self, key_id: str, columns: rows.Columns) -> rows.Columns:
        """Return what is written to `api_keys`, and write the rest where it belongs."""
        if "secret_version" not in columns:
            return columns
        stored = {name: value for name, value in columns.items() if name not in _USAGE}
        # Uses of which version count as those of the old secret. Known for longer than the secret
        # itself, which is erased when it is dead.
        if columns["old_secret_version"] is not None:
            stored["old_use_version"] = columns["old_secret_version"]
        elif columns["old_secret_last_used_time"] is None:
            stored["old_use_version"] = None
        if columns["secret_used"]:
            self._write(
                "key_usage",
                "INSERT INTO key_usage (key_id, used_version) VALUES (?, ?)"
                " ON CONFLICT (key_id) DO UPDATE SET used_version = excluded.used_version",
                key_id,
                columns["secret_version"],
            )
        return stored

    def _allow_more_time(self) -> None:
        limit_s = self.connection.limit_s
        if limit_s is not None and limit_s < LONG_LIMIT_S:
            self.connection.limit_s = LONG_LIMIT_S
            self._waiting.append(Statement(f"SET LOCAL statement_timeout = '{LONG_LIMIT_S:.0f}s'"))

    def assert_whole(self) -> None:
        """Raise the error that has ended the transaction, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _taken(self) -> list[Statement]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _write(self, table: str, sql: str, *values: object, changes_one_row: bool = False) -> None:
        """Have a statement that writes to one table wait, and forget what was read of that one."""
        self.assert_whole()
        written = _WRITTEN_WITH.get(table, (table,))
        # What a statement reads stands in a table that it names.
        self._read = {
            one: found
            for one, found in self._read.items()
            if not any(name in one.sql for name in written)
        }
        self._waiting.append(Statement(numbered(sql), values, changes_one_row))

    def _execute(self, statement: Statement) -> psycopg.Cursor[rows.Row]:
        """Execute what waits and a statement, with one round trip."""
        cursor = self.connection.cursor()

        def execute() -> psycopg.Cursor[rows.Row]:
            waiting = self._taken()
            if waiting:
                return execute_all(self.connection, [*waiting, statement])[-1]
            return cursor.execute(statement.sql, statement.values)

        return self._perform(execute)

    def _perform(self, work: Callable[[], T]) -> T:
        self.assert_whole()
        if self._caller is not None and not self._caller.is_alive:
            raise ReadAbandonedError("the caller no longer waits")
        try:
            return work()
        except LookupError as error:
            self._failure = error
            raise
        except psycopg.Error as error:
            self._failure = store_error(error)
            raise self._failure from error


class SnapshotSession(PostgresSession):
    """A session in a snapshot, which a database may take away in the middle.

    PostgreSQL never does; others with its protocol do, when a clock of theirs turns out to be off.
    Then what the block has read is read again in a new snapshot. When it is all the same, the block
    goes on in that one.
    """

    def __init__(
        self, connection: Connection, first_uses: FirstUses, caller: Waiting | None = None
    ) -> None:
        super().__init__(connection, first_uses, caller)
        self._done: list[tuple[Statement, list[rows.Row]]] = []
        self._is_lost = False

    def one(self, sql: str, *values: object) -> rows.Row | None:
        """Return the first row of a statement; None when there is none."""
        found = self.all(sql, *values)
        return found[0] if found else None

    def all(self, sql: str, *values: object) -> list[rows.Row]:
        """Return the rows of a statement."""
        statement = reading(sql, values)
        found = self._perform(lambda: self._read_patiently(statement))
        self._done.append((statement, found))
        return found

    def _read_patiently(self, statement: Statement) -> list[rows.Row]:
        for remaining in reversed(range(_SNAPSHOTS)):
            try:
                if self._is_lost:
                    self._begin_again()
                return self.connection.execute(statement.sql, statement.values).fetchall()
            except psycopg.Error as error:
                if not is_conflict(error) or not remaining:
                    raise
                self._is_lost = True
        raise AssertionError

    def _begin_again(self) -> None:
        self.connection.execute("ROLLBACK")
        self.connection.execute(SNAPSHOT)
        for statement, before in self._done:
            if self.connection.execute(statement.sql, statement.values).fetchall() != before:
                raise StoreLockedError("the snapshot was lost, and what it had shown has changed")
        self._is_lost = False


class _AskedForError(Exception):
    """A statement would have been executed."""

    def __init__(self, statement: Statement) -> None:
        super().__init__()
        self.statement = statement


class _IdleSession(PostgresSession):
    """Raises the first statement instead of executing it."""

    def __init__(self) -> None:
        self._read = {}

    def _execute(self, statement: Statement) -> psycopg.Cursor[rows.Row]:
        raise _AskedForError(statement)


def statements_of(foreseen: Foreseen) -> list[Statement]:
    """Return the statements by which a transaction will read what is foreseen."""
    found = []
    for read in foreseen:
        try:
            read(reader_over(_IdleSession()))
        except _AskedForError as asked:
            found.append(asked.statement)
    return found


def reading(sql: str, values: Sequence[object]) -> Statement:
    """Return a statement that reads."""
    return Statement(numbered(sql), tuple(map(_sought, values)))


def _sought(value: object) -> object:
    # PostgreSQL takes no NUL. No text that is stored has a control character of any kind.
    return value.replace("\0", "\1") if isinstance(value, str) else value
