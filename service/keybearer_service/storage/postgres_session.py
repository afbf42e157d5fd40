"""How statements of `transactions` are executed on PostgreSQL."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

import psycopg

from keybearer_service.domain.model import SecretId
from keybearer_service.storage import NEVER, UNUSED, ReadAbandonedError, Waiting, rows
from keybearer_service.storage.first_uses import FirstUses
from keybearer_service.storage.postgres_connections import Connection
from keybearer_service.storage.postgres_errors import store_error

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


class PostgresSession:
    """A Session over a connection that is inside a transaction.

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
        self, connection: Connection, first_uses: FirstUses, caller: Waiting | None = None
    ) -> None:
        """Create the session; the store tells `first_uses` when its transaction ends.

        Args:
            connection: Inside a transaction.
            first_uses: Notes the uses of young secrets.
            caller: Who waits for what is read; no statement begins for one that has gone.
        """
        self._caller = caller
        self.connection = connection
        self._first_uses = first_uses
        self._failure: Exception | None = None
        self.has_changes = False
        """Whether watchers have something to read."""

    def one(self, sql: str, *values: object) -> rows.Row | None:
        """Return the first row of a statement; None when there is none."""
        return self._execute(sql, tuple(map(_sought, values))).fetchone()

    def all(self, sql: str, *values: object) -> list[rows.Row]:
        """Return the rows of a statement."""
        if sql.startswith("UPDATE"):
            self._allow_more_time()
        return self._execute(sql, tuple(map(_sought, values))).fetchall()

    def run(self, sql: str, *values: object) -> int:
        """Execute a statement that changes rows; return how many."""
        return self._execute(sql, values).rowcount

    def run_many(self, sql: str, values: Sequence[Sequence[object]]) -> None:
        """Execute a statement once for each of some values, without waiting between them."""
        if values:
            self._allow_more_time()
            self._perform(lambda cursor: cursor.executemany(numbered(sql), values))

    def insert(self, table: str, row: rows.Columns) -> None:
        """Insert a row."""
        self._insert(table, row)

    def replace(self, table: str, row: rows.Columns, key: Sequence[str]) -> None:
        """Insert a row, or write it in the place of the one with the same key."""
        others = [f"{name} = excluded.{name}" for name in row if name not in key]
        self._insert(
            table, row, f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join(others)}"
        )

    def update(self, table: str, row_id: str, columns: rows.Columns) -> None:
        """Write columns of the row with this id."""
        if table == "api_keys":
            columns = self._without_usage(row_id, columns)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        changed = self.run(
            f"UPDATE {table} SET {assignments} WHERE id = ?", *columns.values(), row_id
        )
        if changed != 1:
            raise LookupError(f"no row of {table} has this id")

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
        self.has_changes |= table == "changes"
        places = ", ".join("?" * len(columns))
        self._execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places}){conflict}",
            tuple(columns.values()),
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
            self._execute(
                "INSERT INTO key_usage (key_id, used_version) VALUES (?, ?)"
                " ON CONFLICT (key_id) DO UPDATE SET used_version = excluded.used_version",
                (key_id, columns["secret_version"]),
            )
        return stored

    def _allow_more_time(self) -> None:
        limit_s = self.connection.limit_s
        if limit_s is not None and limit_s < LONG_LIMIT_S:
            self.connection.limit_s = LONG_LIMIT_S
            self._execute(f"SET LOCAL statement_timeout = '{LONG_LIMIT_S:.0f}s'", ())

    def assert_whole(self) -> None:
        """Raise the error that has ended the transaction, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _execute(self, sql: str, values: Sequence[object]) -> psycopg.Cursor[rows.Row]:
        return self._perform(lambda cursor: cursor.execute(numbered(sql), values))

    def _perform(
        self, work: Callable[[psycopg.Cursor[rows.Row]], object]
    ) -> psycopg.Cursor[rows.Row]:
        self.assert_whole()
        if self._caller is not None and not self._caller.is_alive:
            raise ReadAbandonedError("the caller no longer waits")
        try:
            cursor = self.connection.cursor()
            work(cursor)
        except psycopg.Error as error:
            self._failure = store_error(error)
            raise self._failure from error
        return cursor


def _sought(value: object) -> object:
    # PostgreSQL takes no NUL. No text that is stored has a control character of any kind.
    return value.replace("\0", "\1") if isinstance(value, str) else value
