"""The data directory: where everything of an installation lies, and who may use it.

DATA/keybearer.db     the database, with its -wal and -shm beside it
DATA/peppers/         the key files; keep a copy of them apart from the backups
DATA/metrics/         figures of several processes; emptied at every start
DATA/lock             held by the one `serve`
DATA/admin-token      written by a first `quickstart` without a terminal
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keybearer_service.storage import files


class DataDirError(Exception):
    """The directory cannot be used. The text says why."""


class DataDir:
    """One data directory."""

    def __init__(self, path: Path) -> None:
        """Name the directory; nothing is touched."""
        self.path = path
        self.database = path / "keybearer.db"
        self.peppers = path / "peppers"
        self.admin_token = path / "admin-token"
        self.metrics = path / "metrics"
        self._lock = path / "lock"
        self._workers_lock = path / "workers.lock"

    @property
    def is_initialised(self) -> bool:
        """Whether there is a database."""
        return self.database.exists()

    def assert_initialised(self) -> None:
        """Refuse a directory without a database.

        Raises:
            DataDirError: Saying how to make one.
        """
        if not self.is_initialised:
            raise DataDirError(
                f"{self.path} holds no installation; run `keybearer-server init` or `quickstart`"
            )

    def create(self) -> None:
        """Make the directory, for this user alone.

        Raises:
            DataDirError: It cannot be made, or an installation is in it.
        """
        if self.is_initialised:
            raise DataDirError(f"{self.path} holds an installation already")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise DataDirError(f"{self.path}: {error.strerror}") from None

    def publish(self, unfinished: Path, target: Path) -> None:
        """Give a finished file or directory its name, and make the name last.

        Raises:
            DataDirError: A database that still has a log beside it, which the name would lose.
        """
        if unfinished.with_name(unfinished.name + "-wal").exists():
            raise DataDirError(f"{unfinished} was not closed; its last changes are in its log")
        unfinished.rename(target)
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against another `serve`.

        Raises:
            DataDirError: Another process holds it.
        """
        with self._held(self._lock, fcntl.LOCK_EX):
            # Workers outlive a killed supervisor by as long as they take to drain.
            with self._held(self._workers_lock, fcntl.LOCK_EX):
                pass
            yield

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the directory as one of the workers of the `serve` that holds it.

        Raises:
            DataDirError: Another `serve` is just about to take it.
        """
        with self._held(self._workers_lock, fcntl.LOCK_SH):
            yield

    @contextmanager
    def _held(self, lock: Path, kind: int) -> Iterator[None]:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirError(f"{lock}: {error.strerror}") from None
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirError(
                    f"{self.path} is in use by another keybearer-server; stop that one first"
                ) from None
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def shared_with_server(self) -> Iterator[None]:
        """Write beside a running `serve`, where several processes may write the database.

        Raises:
            DataDirError: They may not, and a server is running.
        """
        if files.sharing_hazard() is None:
            yield
            return
        with self.locked():
            yield


def write_secret_file(path: Path, secret: str) -> None:
    """Write a token to a new file that only this user can read.

    Raises:
        DataDirError: The file exists or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise DataDirError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
