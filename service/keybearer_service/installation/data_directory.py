"""The data directory: the files of an installation, and who may use them.

DATA/keybearer.db     the database, with its -wal and -shm beside it; not where it is elsewhere
DATA/peppers/         the key files; keep a copy of them apart from the backups
DATA/metrics/         metrics of several processes; emptied at every start
DATA/lock             held by the one `serve`
DATA/workers.lock     held by each of its workers
DATA/restore.unfinished/  where a restore is made; what one leaves that is killed is of no use
DATA/admin-token      written by a first `quickstart` without a terminal

What root makes in it belongs to the owner of the installation, whose server must read it.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from keybearer_service.installation.ownership import give, give_open_file, problems, user_name
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import files


class DataDirError(Exception):
    """The directory cannot be used. The text names the reason."""


class DataDir:
    """One data directory."""

    def __init__(self, path: Path, url: DatabaseUrl | None = None) -> None:
        """Name a directory.

        Args:
            path: The directory.
            url: The database, where it is no file in the directory.
        """
        self.path = path
        self.url = url
        self.database = path / "keybearer.db"
        self.peppers = path / "peppers"
        self.admin_token = path / "admin-token"
        self.metrics = path / "metrics"
        self.unfinished_restore = path / "restore.unfinished"
        self._lock = path / "lock"
        self._workers_lock = path / "workers.lock"

    @property
    def location(self) -> Path | DatabaseUrl:
        """Where the database is, for what opens its store."""
        return self.database if self.url is None else self.url

    @property
    def is_initialised(self) -> bool:
        """Whether there is a database; where it is elsewhere, whether there are its key files.

        Raises:
            DataDirError: This user may not look into the directory.
        """
        try:
            return self._mark.exists()
        except PermissionError:
            raise DataDirError(_why_not_writable(self.path)) from None

    def assert_initialised(self) -> None:
        """Refuse a directory without an installation.

        Raises:
            DataDirError: There is none; the text says how to make one.
        """
        if self.is_initialised:
            return
        if self.url is not None:
            raise DataDirError(
                f"{self.path} holds no key files; copy the directory peppers/ of another node into "
                "it, or run `keybearer-server init` for the first one"
            )
        raise DataDirError(
            f"{self.path} holds no installation; run `keybearer-server init` or `quickstart`"
        )

    def assert_writable(self) -> None:
        """Refuse a database that this user cannot write: SQLite writes even for those who read.

        Raises:
            DataDirError: It is read-only, or belongs to somebody else.
        """
        for path in () if self.url is not None else (self.path, self.database):
            if not os.access(path, os.W_OK):
                raise DataDirError(_why_not_writable(path))

    def problems(self) -> list[str]:
        """Return what is wrong with the owners and modes of the files.

        The owner that all should have is that of the database, or of the key files without one.

        Raises:
            DataDirError: The directory cannot be looked at.
        """
        try:
            return list(problems(self.path, self._mark, besides=self.metrics))
        except OSError as error:
            raise DataDirError(f"{error.filename}: {error.strerror}") from None

    def create(self) -> None:
        """Make the directory, for its owner alone.

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
            DataDirError: A database still has a log beside it, which the name would lose.
        """
        if unfinished.with_name(unfinished.name + "-wal").exists():
            raise DataDirError(f"{unfinished} was not closed; its last changes are in its log")
        give(unfinished)
        unfinished.rename(target)
        directory = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def locked(self, why: str = "") -> Iterator[None]:
        """Hold the directory against another `serve`.

        Args:
            why: More for the refusal, where it is not plain why two may not work here.

        Raises:
            DataDirError: Another process holds it.
        """
        with self._held(self._lock, fcntl.LOCK_EX, why):
            # Workers outlive a killed supervisor by as long as they take to drain.
            with self._held(self._workers_lock, fcntl.LOCK_EX, why):
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
    def shared_with_server(
        self, find_hazard: Callable[[], str | None] = files.sharing_hazard
    ) -> Iterator[None]:
        """Write beside a running `serve`, where several processes may write the database.

        Args:
            find_hazard: Returns why they may not; None when they may.

        Raises:
            DataDirError: They may not, and a server is running.
        """
        hazard = find_hazard()
        if hazard is None or self.url is not None:
            yield
            return
        with self.locked(f": {hazard}"):
            yield

    @property
    def _mark(self) -> Path:
        """What is there once there is an installation."""
        return self.database if self.url is None else self.peppers

    @contextmanager
    def _held(self, lock: Path, kind: int, why: str = "") -> Iterator[None]:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(lock, flags, 0o600)
        except PermissionError:
            at_fault = lock if lock.exists() else self.path
            raise DataDirError(_why_not_writable(at_fault)) from None
        except OSError as error:
            raise DataDirError(f"{lock}: {error.strerror}") from None
        try:
            holder = self._mark if self.is_initialised else self.path
            give_open_file(descriptor, holder.stat())
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirError(
                    f"{self.path} is in use by another keybearer-server; stop that one first{why}"
                ) from None
            yield
        finally:
            os.close(descriptor)


def _why_not_writable(path: Path) -> str:
    owner = path.stat().st_uid
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return f"{path} is on a file system that is mounted read-only"
    if owner == os.geteuid():
        return f"{path} is read-only; run: chmod u+w {path}"
    return (
        f"this user may not write {path}, which belongs to {user_name(owner)}; run the command as "
        "that user"
    )


@contextmanager
def secret_file(path: Path) -> Iterator[TextIO]:
    """Make a new file that only this user can read, for a secret that is drawn in the block.

    A block that fails leaves no file.

    Raises:
        DataDirError: The file exists or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        file = os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii")
    except OSError as error:
        raise DataDirError(f"{path}: {error.strerror}") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DataDirError(f"{path}: {error.strerror}") from None
        raise


def write_secret_file(path: Path, secret: str) -> None:
    """Write a token to a new file that only this user can read.

    Raises:
        DataDirError: The file exists or cannot be written.
    """
    with secret_file(path) as file:
        file.write(secret + "\n")
