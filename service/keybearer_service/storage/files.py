"""The engine behind a FileStore, for commands that show it or that must not share a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keybearer_service.storage import dbapi


def engine(version: tuple[int, ...] = dbapi.VERSION) -> str:
    """Return the engine's name and version."""
    return f"SQLite {'.'.join(map(str, version))}"


def sharing_hazard(version: tuple[int, ...] = dbapi.VERSION) -> str | None:
    """Return why several processes must not write one file with this engine; None if they may."""
    if not dbapi.has_wal_reset_bug(version):
        return None
    return (
        f"{engine(version)} can damage a database that several processes write; install pysqlite3, "
        "which brings a newer one on x86_64 Linux, or run a Python whose sqlite3 module has SQLite "
        "3.51.3 or newer"
    )


def sync(path: Path) -> None:
    """Make what was written of a file, or the names in a directory, last a loss of power.

    Raises:
        OSError: The disk refuses it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_copy(path: Path) -> Iterator[None]:
    """Create a file for a block that fills it; sync it afterwards, or remove it when that fails.

    Raises:
        FileExistsError: The file exists.
        OSError: The disk refuses it.
    """
    path.touch(mode=0o600, exist_ok=False)
    try:
        yield
        sync(path)
    except BaseException:
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        raise
