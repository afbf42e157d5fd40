"""How statements of `transactions` are executed on SQLite."""

from collections.abc import Sequence
from typing import Final, cast

from keybearer_service.domain.model import SecretId
from keybearer_service.storage import dbapi, rows
from keybearer_service.storage.first_uses import FirstUses
from keybearer_service.storage.sqlite_errors import conflicts
from keybearer_service.storage.transactions import not_initialised

KEYS: Final = "api_keys k"
"""A key's usage stands in its own row."""


class SqliteSession:
    """A Session over a connection that is inside a transaction."""

    keys = KEYS
    contains = "instr(lower({column}), lower(?)) > 0"
    inserted = "rowid"
    expire_order = "k.expire_order"
    last_used_order = "k.last_used_order"
    row = "rowid"
    by_index = "INDEXED BY {index}"
    by_row = "NOT INDEXED"

    def __init__(self, connection: dbapi.Connection, first_uses: FirstUses) -> None:
        """Create the session; the store tells `first_uses` when its transaction ends."""
        self._connection = connection
        self._first_uses = first_uses

    def one(self, sql: str, *values: object) -> rows.Row | None:
        """Return the first row of a statement; None when there is none."""
        return cast("rows.Row | None", self._connection.execute(sql, values).fetchone())

    def all(self, sql: str, *values: object) -> list[rows.Row]:
        """Return the rows of a statement."""
        return cast("list[rows.Row]", self._connection.execute(sql, values).fetchall())

    def run(self, sql: str, *values: object) -> int:
        """Execute a statement that changes rows; return how many."""
        return int(self._connection.execute(sql, values).rowcount)

    def run_many(self, sql: str, values: Sequence[Sequence[object]]) -> None:
        """Execute a statement once for each of some values."""
        self._connection.executemany(sql, values)

    def submit(self, sql: str, *values: object) -> None:
        """Execute a statement that changes rows."""
        self.run(sql, *values)

    def settle(self) -> None:
        """Do nothing: everything is executed at once."""

    def next_revision(self) -> int:
        """Advance the revision of the installation; return the new one."""
        row = self.one("UPDATE installation SET revision = revision + 1 RETURNING revision")
        if row is None:
            raise not_initialised()
        return int(row[0])

    def insert(self, table: str, row: rows.Columns) -> None:
        """Insert a row."""
        with conflicts():
            self._insert("INSERT", table, row)

    def replace(self, table: str, row: rows.Columns, key: Sequence[str]) -> None:  # noqa: ARG002 - SQLite knows the table's key
        """Insert a row, or write it in the place of the one with the same key."""
        self._insert("INSERT OR REPLACE", table, row)

    def update(self, table: str, row_id: str, columns: rows.Columns) -> None:
        """Write columns of the row with this id."""
        values = ", ".join(f"{name} = ?" for name in columns)
        with conflicts():
            changed = self.run(
                f"UPDATE {table} SET {values} WHERE id = ?", *columns.values(), row_id
            )
        if changed != 1:
            raise LookupError(f"no row of {table} has this id")

    def replace_unused(self, secret: SecretId, columns: rows.Columns) -> bool:
        """Write columns of a key, on the condition that this secret of it was never used."""
        if not self._first_uses.replace(secret):
            return False
        values = ", ".join(f"{name} = ?" for name in columns)
        replaced = self.run(
            f"UPDATE api_keys SET {values} WHERE id = ? AND secret_version = ? AND secret_used = 0",
            *columns.values(),
            *secret,
        )
        return replaced == 1

    def forget_uses(self, key_ids: Sequence[str]) -> None:
        """Do nothing: the uses of a key stand in its row."""

    def _insert(self, verb: str, table: str, row: rows.Columns) -> None:
        places = ", ".join("?" * len(row))
        self.run(f"{verb} INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())
