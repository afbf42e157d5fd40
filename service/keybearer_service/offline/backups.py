"""Backups and their restoration."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Installation, SubjectKind
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.installation.keyring import Keyring
from keybearer_service.installation.ownership import give
from keybearer_service.offline.audit import check_store
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.initialise import EPOCH_LENGTH
from keybearer_service.storage import Reader, Store
from keybearer_service.usecases.audit import AuditLog
from keybearer_service.usecases.mutations import Mutations


def keys_beside(backup: Path) -> Path:
    """Return the directory of key files that goes with a backup."""
    return backup.with_name(backup.name + ".peppers")


def back_up(store: Store, data_dir: DataDir, file: Path, *, with_keys: bool) -> None:
    """Write a copy of the database, and of the key files into a directory beside it.

    Raises:
        LocalError: The file or the directory exists.
    """
    for target in (file, keys_beside(file)):
        if target.exists():
            raise LocalError(f"{target} exists already")
    store.backup(file)
    if with_keys:
        _copy_keys(data_dir.peppers, keys_beside(file))


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
    open_store: Callable[[Path], Store],
    clock: Clock,
    entropy: Entropy,
) -> Restored:
    """Restore a backup into an empty directory under a new epoch, and record that.

    Raises:
        LocalError: The directory is not empty, or the backup or its key files are not there.
        StoreError, KeyringError: They cannot be used, or do not belong together.
    """
    if data_dir.path.exists() and any(data_dir.path.iterdir()):
        raise LocalError(f"{data_dir.path} is not empty; restore into an empty directory")
    if not file.is_file():
        raise LocalError(f"{file} is no file")
    if not keys.is_dir():
        raise LocalError(
            f"{keys} is no directory; name the key files of this backup with --peppers"
        )
    data_dir.create()
    try:
        return _restore(data_dir, file, keys, open_store, clock, entropy)
    except BaseException:
        # Remove what is half restored, so that the command can simply be run again.
        for path in data_dir.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _restore(
    data_dir: DataDir,
    file: Path,
    keys: Path,
    open_store: Callable[[Path], Store],
    clock: Clock,
    entropy: Entropy,
) -> Restored:
    _copy_keys(keys, data_dir.peppers)
    give(data_dir.peppers)
    unfinished = data_dir.path / "keybearer.db.new"
    unfinished.touch(mode=0o600)
    shutil.copyfile(file, unfinished)
    keyring = Keyring(data_dir.peppers)
    store = open_store(unfinished)
    try:
        damage = check_store(store)
        if damage:
            raise LocalError(f"{file} is damaged: {damage[0]}")
        with store.read() as reader:
            keyring.verify(reader.peppers(), lambda one: reader.live_secrets(one, clock.now()))
            last_change = _last_event_time(reader)
            count = reader.key_count()
        mutations = Mutations(store, AuditLog(keyring.audit_key, entropy), clock)
        with mutations.begin_local() as mutation:
            before = mutation.tx.installation()
            epoch = entropy.base62(EPOCH_LENGTH)
            mutation.tx.put_installation(
                Installation(
                    epoch=epoch,
                    revision=before.revision,
                    prefix=before.prefix,
                    retired_prefixes=before.retired_prefixes,
                    operator_account_id=before.operator_account_id,
                    create_time=before.create_time,
                )
            )
            mutation.record(
                AuditAction.INSTALLATION_RESTORED,
                account_id=before.operator_account_id,
                target_type=AuditTargetType.INSTALLATION,
                target_id=before.operator_account_id,
                changes=(FieldChange("epoch", before.epoch, epoch),),
            )
            mutation.invalidate(SubjectKind.EVERYTHING, "", before.operator_account_id)
    finally:
        store.close()
    data_dir.publish(unfinished, data_dir.database)
    return Restored(last_change, epoch, count)


def _last_event_time(reader: Reader) -> Micros:
    seq, _ = reader.audit_head()
    events = reader.audit_chain(seq - 1, 1)
    return events[0].time if events else reader.installation().create_time


def _copy_keys(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for path in sorted(source.iterdir()):
        copy = target / path.name
        copy.touch(mode=0o600)
        shutil.copyfile(path, copy)
