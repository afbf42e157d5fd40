"""Backups and their restoration."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from keybearer._wire.enums import AuditAction
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import Keyring
from keybearer_service.installation.ownership import give
from keybearer_service.offline.audit import check_store
from keybearer_service.offline.epochs import begin_epoch
from keybearer_service.offline.errors import LocalError
from keybearer_service.storage import (
    CommitFailedError,
    OnProgress,
    OnStep,
    Reader,
    ServerStore,
    Store,
    StoreConflictError,
    StoreFullError,
    Writer,
    no_progress,
)
from keybearer_service.storage.files import sync
from keybearer_service.usecases.audit import AuditLog
from keybearer_service.usecases.mutations import Mutations


def keys_beside(backup: Path) -> Path:
    """Return the directory of key files that goes with a backup."""
    return backup.with_name(backup.name + ".peppers")


UNFINISHED = ".unfinished"
"""What the directory's name ends with in which a backup or a restore is made."""
_DATABASE = "database"
_KEYS = "peppers"
_CHUNK = 4 * 1024 * 1024


def no_steps(_what: str, _done: int, _total: int) -> None:
    """Ignore it."""


def back_up(
    store: Store,
    data_dir: DataDir,
    file: Path,
    *,
    with_keys: bool,
    on_step: OnStep = no_steps,
) -> None:
    """Write a copy of the database, and of the key files into a directory beside it.

    They are made in FILE.unfinished and get their names when they are whole and on the disk: first
    the key files, then the database. So where there is a FILE, everything is there. What a killed
    backup has left is removed by the next one to the same file.

    Raises:
        LocalError: The file or the directory exists, there is no room, or another backup to the
            same file is at work.
    """
    keys = keys_beside(file)
    _assert_absent(file, keys)
    with _workshop(file.with_name(file.name + UNFINISHED), file) as place:
        if with_keys:
            _copy_keys(data_dir.peppers, place / _KEYS)
        try:
            store.backup(place / _DATABASE, partial(on_step, "pages copied"))
        except StoreFullError:
            raise LocalError(f"{file.parent}: no room left for the backup") from None
        _assert_absent(file, keys)
        if with_keys:
            (place / _KEYS).rename(keys)
        try:
            (place / _DATABASE).rename(file)
        except BaseException:
            if with_keys:
                shutil.rmtree(keys)
            raise
        sync(file.parent)


def _assert_absent(file: Path, keys: Path) -> None:
    if file.exists():
        raise LocalError(f"{file} exists already")
    if keys.exists():
        raise LocalError(
            f"{keys} exists already, without {file.name}: remove it if a backup was broken off "
            "here, move it if it belongs to a backup that is kept elsewhere"
        )


@contextmanager
def _workshop(place: Path, target: Path) -> Iterator[Path]:
    """Make a directory for what is not finished; remove it after the block with what is left in it.

    Args:
        place: The directory.
        target: What is made in it, for errors.

    Raises:
        LocalError: It cannot be made, somebody is at work in it, or it holds something else.
    """
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LocalError(f"{target}: {error.strerror}") from None
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(f"another command is at work in {place}") from None
        strangers = [one.name for one in place.iterdir() if not one.name.startswith(_OURS)]
        if strangers:
            raise LocalError(f"{place} holds {strangers[0]}, which no backup made; move it away")
        _empty(place)
        try:
            yield place
        finally:
            _empty(place)
            place.rmdir()
    finally:
        os.close(descriptor)


_OURS = (_DATABASE, _KEYS)


def _empty(place: Path) -> None:
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore."""

    last_change: Micros
    """The time of the newest audit event in the backup; later changes are lost."""
    epoch: str
    keys: int


def restore(
    data_dir: DataDir,
    file: Path,
    keys: Path,
    *,
    open_file: Callable[[Path], Store],
    open_target: Callable[[], ServerStore] | None = None,
    clock: Clock,
    entropy: Entropy,
    on_step: OnStep = no_steps,
) -> Restored:
    """Restore a backup into an empty directory under a new epoch, and record that.

    Everything is made in DATA/restore.unfinished, and the database gets its name last: a restore
    that is killed has left no installation, and can be run again. A database elsewhere gets
    everything in one transaction, and the directory the key files alone.

    Args:
        data_dir: The directory.
        file: What `back_up` wrote.
        keys: The key files that go with it.
        open_file: Opens a file.
        open_target: Makes the tables of the database elsewhere, and opens it; None for a file.
        clock: The time.
        entropy: The randomness.
        on_step: Told how much is done.

    Raises:
        LocalError: The directory is not empty, the backup or its key files are not there or not
            whole, there is no room, or the database elsewhere holds an installation.
        StoreError, KeyringError: They cannot be used, or do not belong together.
    """
    _assert_empty(data_dir)
    if not file.is_file():
        raise LocalError(f"{file} is no file")
    if file.parent.name.endswith(UNFINISHED):
        raise LocalError(f"{file} is of a backup that was broken off")
    if not keys.is_dir():
        raise LocalError(
            f"{keys} is no directory; name the key files of this backup with --peppers"
        )
    data_dir.create()
    with _workshop(data_dir.unfinished_restore, data_dir.path) as place:
        give(place)
        try:
            copies = _take(place, file, keys, open_file, clock, on_step)
            if open_target is None:
                return _publish(copies, data_dir, open_file, clock, entropy)
            with closing(open_target()) as target:
                return _send(copies, data_dir, target, clock, entropy, on_step)
        except StoreFullError:
            raise LocalError(f"{data_dir.path}: no room left for the restore") from None


def _assert_empty(data_dir: DataDir) -> None:
    if not data_dir.path.exists():
        return
    names = {path.name for path in data_dir.path.iterdir()} - {data_dir.unfinished_restore.name}
    if names == {data_dir.peppers.name}:
        raise LocalError(
            f"{data_dir.peppers} exists without a database: remove it if a restore was broken off "
            "here, move it away if a backup needs it"
        )
    if names:
        raise LocalError(f"{data_dir.path} is not empty; restore into an empty directory")


@dataclass(frozen=True, slots=True)
class _Copies:
    """Copies of both parts of a backup, in a directory that is thrown away."""

    database: Path
    peppers: Path
    keyring: Keyring
    last_change: Micros
    keys: int


def _take(
    place: Path,
    file: Path,
    keys: Path,
    open_file: Callable[[Path], Store],
    clock: Clock,
    on_step: OnStep,
) -> _Copies:
    """Copy both parts of a backup, and check them."""
    database, peppers = place / _DATABASE, place / _KEYS
    _copy_keys(keys, peppers)
    _copy(file, database, partial(on_step, "bytes copied"))
    keyring = Keyring(peppers)
    with closing(open_file(database)) as store:
        on_step("databases checked", 0, 1)
        damage = check_store(store)
        if damage:
            raise LocalError(f"{file} is damaged: {damage[0]}")
        with store.read() as reader:
            keyring.verify(reader.peppers(), lambda one: reader.live_secrets(one, clock.now()))
            return _Copies(database, peppers, keyring, _last_event_time(reader), reader.key_count())


def _publish(
    copies: _Copies,
    data_dir: DataDir,
    open_file: Callable[[Path], Store],
    clock: Clock,
    entropy: Entropy,
) -> Restored:
    """Make the copies the installation of a directory."""
    with closing(open_file(copies.database)) as store, store.write() as tx:
        restored = _begin(copies, store, tx, clock, entropy)
    sync(copies.database)
    data_dir.publish(copies.peppers, data_dir.peppers)
    try:
        data_dir.publish(copies.database, data_dir.database)
    except BaseException:
        shutil.rmtree(data_dir.peppers)
        raise
    return restored


def _send(
    copies: _Copies,
    data_dir: DataDir,
    target: ServerStore,
    clock: Clock,
    entropy: Entropy,
    on_step: OnStep,
) -> Restored:
    """Make a database elsewhere the installation, and put its key files into a directory."""
    try:
        with target.receive(copies.database, on_step) as tx:
            restored = _begin(copies, target, tx, clock, entropy)
            # From the commit on other nodes may open the installation.
            data_dir.publish(copies.peppers, data_dir.peppers)
    except CommitFailedError:
        raise  # the key files may be needed
    except BaseException as error:
        if data_dir.peppers.exists():
            shutil.rmtree(data_dir.peppers)
        if isinstance(error, StoreConflictError):
            raise LocalError(str(error)) from None
        raise
    return restored


def _begin(copies: _Copies, store: Store, tx: Writer, clock: Clock, entropy: Entropy) -> Restored:
    mutations = Mutations(store, AuditLog(copies.keyring.audit_key, entropy), clock)
    with mutations.local_in(tx) as mutation:
        epoch = begin_epoch(mutation, entropy, AuditAction.INSTALLATION_RESTORED)
    return Restored(copies.last_change, epoch, copies.keys)


def _last_event_time(reader: Reader) -> Micros:
    seq, _ = reader.audit_head()
    events = reader.audit_chain(seq - 1, 1)
    return events[0].time if events else reader.installation().create_time


def _copy_keys(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for path in sorted(source.iterdir()):
        _copy(path, target / path.name, no_progress)
    sync(target)


def _copy(source: Path, target: Path, on_progress: OnProgress) -> None:
    """Copy a file into a new one that only this user can read, and have it on the disk."""
    target.touch(mode=0o600, exist_ok=False)
    total = source.stat().st_size
    with source.open("rb") as read, target.open("wb") as written:
        while chunk := read.read(_CHUNK):
            written.write(chunk)
            on_progress(written.tell(), total)
        written.flush()
        os.fsync(written.fileno())
