"""The mark of a file whose installation leaves it for a database elsewhere, or has left it.

Another number in the header of the file has every program refuse it, older ones too. A table says
where the installation goes.
"""

from typing import Final

from keybearer_service.storage import Departure, migrations
from keybearer_service.storage.dbapi import Connection

APPLICATION_ID: Final = 0x6B62724D
"""Marks a file that must not be served: "kbrM"."""
TABLE: Final = "departure"
_CREATE: Final = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} (id INTEGER PRIMARY KEY CHECK (id = 1),"
    " move_id TEXT NOT NULL, target TEXT NOT NULL, is_done INTEGER NOT NULL) STRICT"
)


def of(connection: Connection) -> Departure | None:
    """Return the mark of a file; None when it may be served."""
    [number] = connection.execute("PRAGMA application_id").fetchone()
    if number != APPLICATION_ID:
        return None
    row = connection.execute(f"SELECT move_id, target, is_done FROM {TABLE}").fetchone()
    return Departure(row[0], row[1], is_done=bool(row[2]))


def mark(connection: Connection, departure: Departure | None) -> None:
    """Write the mark, or take it away, in the transaction that is open."""
    if departure is None:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
        return
    connection.execute(_CREATE)
    connection.execute(
        f"INSERT OR REPLACE INTO {TABLE} VALUES (1, ?, ?, ?)",
        (departure.move_id, departure.target, int(departure.is_done)),
    )
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def refusal(name: str, departure: Departure | None) -> str:
    """Return why a file is refused, and what to do.

    Args:
        name: Of the file.
        departure: Its mark; None when that was taken away meanwhile.
    """
    if departure is None:
        return f"{name} is being moved to another database"
    if departure.is_done:
        return (
            f"{name} was moved to {departure.target}; the installation is there: give that as "
            "--database"
        )
    return (
        f"{name} is being moved to {departure.target}; run `keybearer-server move` again to end "
        "that, or `keybearer-server move --abandon` to stay with the file"
    )
