"""The SQLite driver: this module chooses it, and no other imports one.

The wheels of `pysqlite3` carry a current SQLite, and sqlite-utils picks it up by itself. Where
there is no wheel, the standard library's module is used, with the SQLite of the system.
"""

try:
    import pysqlite3.dbapi2 as driver
except ImportError:  # no wheel for this platform
    import sqlite3.dbapi2 as driver  # the same interface, other classes

Connection = driver.Connection
Cursor = driver.Cursor
DatabaseError = driver.DatabaseError
IntegrityError = driver.IntegrityError
OperationalError = driver.OperationalError
ProgrammingError = driver.ProgrammingError
BROKEN_STATEMENT = (
    driver.DataError,
    driver.IntegrityError,
    driver.NotSupportedError,
    driver.ProgrammingError,
)
"""What a statement of ours is wrong with, whatever the state of the database."""
connect = driver.connect

VERSION: tuple[int, ...] = tuple(driver.sqlite_version_info)
"""The version of SQLite itself."""

_FIXED = (3, 51, 3)
_BACKPORTS = ((3, 50, 7), (3, 44, 6))


def has_wal_reset_bug(version: tuple[int, ...] = VERSION) -> bool:
    """Return whether a SQLite of this version can corrupt a WAL database that two processes write.

    Fixed in 3.51.3, with backports in 3.50.7 and 3.44.6 (sqlite.org/wal.html, "the WAL reset bug").
    """
    if version >= _FIXED:
        return False
    return not any(version[:2] == fixed[:2] and fixed <= version for fixed in _BACKPORTS)
