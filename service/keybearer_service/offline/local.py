"""What is done at the server's own command line: begin, break glass, keep, bring back, look after.

No network, no caller: whoever may write the data directory may do this, and the audit log says so.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keybearer.access import Role
from keybearer_service.container import Core
from keybearer_service.domain import token_format, validators
from keybearer_service.domain.clock import Clock, Entropy, rfc3339
from keybearer_service.domain.errors import ResourceNotFound
from keybearer_service.domain.model import (
    Action,
    FieldChange,
    Installation,
    Pepper,
    SubjectKind,
    TargetType,
    User,
    UserType,
)
from keybearer_service.installation.data_directory import DataDir, DataDirError
from keybearer_service.installation.keyring import Keyring
from keybearer_service.storage import Reader
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.usecases.accounts import Founded, NewAccount, found
from keybearer_service.usecases.audit import AuditLog, ChainReport
from keybearer_service.usecases.keys import Expiration, Mint, Minted, NewKey
from keybearer_service.usecases.mutations import Change, Changes
from keybearer_service.usecases.users import NewUser, insert_user

EPOCH_LENGTH = 16
PEPPER_ID_LENGTH = 8
BREAK_GLASS_KEY_NAME = "break-glass admin key"


class LocalError(Exception):
    """The command cannot do what was asked. The text says why."""


# --- beginning ------------------------------------------------------------------------------------


def initialise(
    data_dir: DataDir, clock: Clock, entropy: Entropy, new: NewAccount, prefix: str
) -> Founded:
    """Make an installation: key files, database, operator account, administrator, key.

    The database appears under its name last and complete, so that a beginning that was cut off is
    never taken for an installation.

    Raises:
        DataDirError: There is an installation already, or the key files of one.
        LocalError: The prefix is none.
    """
    if not token_format.is_prefix(prefix):
        raise LocalError(f"prefix {prefix!r}: [a-z][a-z0-9], 2 to 16 characters")
    data_dir.create()
    if data_dir.peppers.exists():
        raise DataDirError(
            f"{data_dir.peppers} exists without a database: move it away if a backup needs it, "
            "remove it if none does"
        )
    unfinished = data_dir.path / "keybearer.db.new"
    for left_over in data_dir.path.glob("keybearer.db.new*"):
        left_over.unlink()
    unfinished_keys = data_dir.path / "peppers.new"
    shutil.rmtree(unfinished_keys, ignore_errors=True)
    keyring = Keyring.create(unfinished_keys, entropy)
    store = SqliteStore.create(unfinished)
    try:
        changes = Changes(store, AuditLog(keyring.audit_key, entropy), clock)
        mint = Mint(keyring, entropy, prefix)
        with changes.begin_local() as change:
            pepper = _insert_pepper(change, keyring, entropy)
            founded = _found_operator(change, mint, new, prefix, entropy)
            change.record(
                Action.INSTALLATION_CREATED,
                account_id=founded.account.id,
                target_type=TargetType.INSTALLATION,
                target_id=founded.account.id,
                changes=(
                    FieldChange("account_name", "", new.name),
                    FieldChange("admin_user_id", "", founded.user.id),
                    FieldChange("api_key_id", "", founded.minted.key.id),
                    FieldChange("pepper_id", "", pepper.id),
                    FieldChange("prefix", "", prefix),
                ),
            )
            change.invalidate(SubjectKind.EVERYTHING, "", founded.account.id)
    finally:
        store.close()
    data_dir.publish(unfinished_keys, data_dir.peppers)
    data_dir.publish(unfinished, data_dir.database)
    return founded


def _found_operator(
    change: Change, mint: Mint, new: NewAccount, prefix: str, entropy: Entropy
) -> Founded:
    founded = found(change, mint, new, is_operator=True, created_by="")
    change.tx.put_installation(
        Installation(
            epoch=entropy.base62(EPOCH_LENGTH),
            revision=0,
            prefix=prefix,
            retired_prefixes=(),
            operator_account_id=founded.account.id,
            create_time=change.now,
        )
    )
    return founded


# --- breaking glass -------------------------------------------------------------------------------


def issue_admin_token(core: Core, email: str, account_id: str, ttl: int) -> Minted:
    """Issue an ADMIN key to a user, who is made when there is none with this address.

    Raises:
        ResourceNotFound: No such account.
        LocalError: The user is there and is no administrator.
    """
    address = validators.email("email", email)
    account_id = account_id or core.installation.operator_account_id
    with core.changes.begin_local() as change:
        if change.tx.account(account_id) is None:
            raise ResourceNotFound("account", account_id)
        user = change.tx.user_by_email(account_id, address)
        if user is not None and user.role is not Role.ADMIN:
            raise LocalError(
                f"{address} is {user.role.name}, and a key never holds more than its owner; "
                "name an administrator, or an address that is not there yet"
            )
        if user is None:
            user = _insert_administrator(change, core.mint, account_id, address)
        minted = core.mint.issue(
            change,
            NewKey(
                name=BREAK_GLASS_KEY_NAME,
                role=Role.ADMIN,
                expiration=Expiration(ttl=ttl),
                labels={},
            ),
            owner=user,
            created_by=user.id,
        )
        change.record(
            Action.ADMIN_TOKEN_ISSUED,
            account_id=account_id,
            target_type=TargetType.API_KEY,
            target_id=minted.key.id,
            changes=(
                FieldChange("owner_id", "", user.id),
                FieldChange("expire_time", "", rfc3339(minted.key.expire_time or 0)),
            ),
        )
        change.invalidate(SubjectKind.KEY, minted.key.id, account_id)
        return minted


def _insert_administrator(change: Change, mint: Mint, account_id: str, email: str) -> User:
    new = NewUser(email=email, display_name=email[:100], role=Role.ADMIN, type=UserType.PERSON)
    user = insert_user(change, mint, account_id, new)
    change.record(
        Action.USER_CREATED,
        account_id=account_id,
        target_type=TargetType.USER,
        target_id=user.id,
        changes=(FieldChange("email", "", email), FieldChange("role", "", "ADMIN")),
    )
    return user


# --- keeping and bringing back --------------------------------------------------------------------


def keys_beside(backup: Path) -> Path:
    """Name the directory of key files that goes with a backup."""
    return backup.with_name(backup.name + ".peppers")


def back_up(core: Core, data_dir: DataDir, file: Path, *, with_keys: bool) -> None:
    """Write a copy of the database, and of the key files into a directory beside it.

    Raises:
        LocalError: Something is there already.
    """
    for target in (file, keys_beside(file)):
        if target.exists():
            raise LocalError(f"{target} exists already")
    core.store.backup(file)
    if with_keys:
        _copy_keys(data_dir.peppers, keys_beside(file))


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore brought back."""

    last_change: int
    """The time of the newest audit event in the backup: what came after is undone."""
    epoch: str
    keys: int


def restore(data_dir: DataDir, file: Path, keys: Path, clock: Clock, entropy: Entropy) -> Restored:
    """Bring a backup back into an empty directory, as a new epoch, and audit that.

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
        return _restore(data_dir, file, keys, clock, entropy)
    except BaseException:
        # Nothing half-restored stays behind, so that the command can simply be run again.
        for path in data_dir.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _restore(data_dir: DataDir, file: Path, keys: Path, clock: Clock, entropy: Entropy) -> Restored:
    _copy_keys(keys, data_dir.peppers)
    unfinished = data_dir.path / "keybearer.db.new"
    unfinished.touch(mode=0o600)
    shutil.copyfile(file, unfinished)
    keyring = Keyring(data_dir.peppers)
    store = SqliteStore(unfinished)
    try:
        damage = store.check()
        if damage:
            raise LocalError(f"{file} is damaged: {damage[0]}")
        with store.read() as reader:
            keyring.verify(reader.peppers())
            last_change = _last_event_time(reader)
            count = reader.key_count()
        changes = Changes(store, AuditLog(keyring.audit_key, entropy), clock)
        with changes.begin_local() as change:
            before = change.tx.installation()
            epoch = entropy.base62(EPOCH_LENGTH)
            change.tx.put_installation(
                Installation(
                    epoch=epoch,
                    revision=before.revision,
                    prefix=before.prefix,
                    retired_prefixes=before.retired_prefixes,
                    operator_account_id=before.operator_account_id,
                    create_time=before.create_time,
                )
            )
            change.record(
                Action.INSTALLATION_RESTORED,
                account_id=before.operator_account_id,
                target_type=TargetType.INSTALLATION,
                target_id=before.operator_account_id,
                changes=(FieldChange("epoch", before.epoch, epoch),),
            )
            change.invalidate(SubjectKind.EVERYTHING, "", before.operator_account_id)
    finally:
        store.close()
    data_dir.publish(unfinished, data_dir.database)
    return Restored(last_change, epoch, count)


def _last_event_time(reader: Reader) -> int:
    seq, _ = reader.audit_head()
    events = reader.audit_chain(seq - 1, 1)
    return events[0].time if events else reader.installation().create_time


def _copy_keys(source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for path in sorted(source.iterdir()):
        copy = target / path.name
        copy.touch(mode=0o600)
        shutil.copyfile(path, copy)


# --- looking after --------------------------------------------------------------------------------


def check(core: Core) -> list[str]:
    """Look for damage in the database, the key files and the audit chain."""
    findings = list(core.store.check())
    report = verify_audit(core, None)
    if report.broken_seq is not None:
        findings.append(f"audit: {report.problem}")
    return findings


def verify_audit(core: Core, expect: tuple[int, bytes] | None) -> ChainReport:
    """Check the audit chain, against a head noted elsewhere if there is one."""
    with core.store.read() as reader:
        return core.audit.verify(reader, expect)


def export_audit(core: Core) -> Iterator[str]:
    """Answer the audit log as JSON lines, oldest first, the last one being the head."""
    with core.store.read() as reader:
        for event in core.audit.events(reader):
            yield json.dumps(
                {
                    "seq": event.seq,
                    "id": event.id,
                    "time_us": event.time,
                    "account_id": event.account_id,
                    "actor": {
                        "type": event.actor.type.name,
                        "key_id": event.actor.key_id,
                        "user_id": event.actor.user_id,
                        "user_email": event.actor.user_email,
                    },
                    "action": event.action.name,
                    "target": {"type": event.target_type.name, "id": event.target_id},
                    "changes": [
                        {"field": one.field, "before": one.before, "after": one.after}
                        for one in event.changes
                    ],
                    "request_id": event.request_id,
                    "peer": event.peer,
                    "hash": event.hash.hex(),
                }
            )
        seq, head = reader.audit_head()
        yield json.dumps({"head": {"seq": seq, "hash": head.hex()}})


def add_pepper(core: Core) -> Pepper:
    """Make a pepper; every secret minted from now on uses it."""
    with core.changes.begin_local() as change:
        pepper = _insert_pepper(change, core.keyring, core.entropy)
        change.record(
            Action.PEPPER_ADDED,
            account_id=core.installation.operator_account_id,
            target_type=TargetType.INSTALLATION,
            target_id=pepper.id,
        )
        return pepper


def list_peppers(core: Core) -> list[tuple[Pepper, int]]:
    """Answer all peppers, newest first, with the number of live secrets that need each."""
    with core.store.read() as reader:
        return [(pepper, reader.live_secrets(pepper.id)) for pepper in reader.peppers()]


def retire_pepper(core: Core, pepper_id: str) -> None:
    """Retire a pepper that no live secret needs any more.

    Raises:
        LocalError: Unknown, retired, still needed, or the only one.
    """
    with core.changes.begin_local() as change:
        peppers = {pepper.id: pepper for pepper in change.tx.peppers()}
        pepper = peppers.get(pepper_id)
        if pepper is None:
            raise LocalError(f"there is no pepper {pepper_id!r}; see `pepper list`")
        if pepper.retire_time is not None:
            raise LocalError(f"the pepper {pepper_id} is retired already")
        live_secrets = change.tx.live_secrets(pepper_id)
        if live_secrets:
            raise LocalError(
                f"the pepper {pepper_id} is needed by {live_secrets} live secrets; "
                "rotate or revoke their keys first"
            )
        if sum(one.retire_time is None for one in peppers.values()) == 1:
            raise LocalError("this is the only pepper; run `pepper add` first")
        change.tx.retire_pepper(pepper_id, change.now)
        change.record(
            Action.PEPPER_RETIRED,
            account_id=core.installation.operator_account_id,
            target_type=TargetType.INSTALLATION,
            target_id=pepper_id,
        )


def _insert_pepper(change: Change, keyring: Keyring, entropy: Entropy) -> Pepper:
    pepper_id = entropy.base62(PEPPER_ID_LENGTH)
    pepper = Pepper(
        id=pepper_id, check=keyring.add_pepper(pepper_id, entropy), create_time=change.now
    )
    change.tx.insert_pepper(pepper)
    return pepper
