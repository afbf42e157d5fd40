"""The first step of every installation."""

import shutil
from collections.abc import Callable
from pathlib import Path

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain import token_format
from keybearer_service.domain.audit_digests import Subject
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.identity import INVITATION_PREFIX
from keybearer_service.domain.model import Installation, SubjectKind
from keybearer_service.domain.session import SESSION_PREFIX
from keybearer_service.installation.data_directory import DataDir, DataDirError
from keybearer_service.installation.keyring import Keyring
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.offline.epochs import EPOCH_LENGTH
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.peppers import insert_pepper
from keybearer_service.storage import Reader, Store, StoreUnusableError
from keybearer_service.usecases.accounts import CreatedAccount, NewAccount, create_account_rows
from keybearer_service.usecases.audit import AuditLog
from keybearer_service.usecases.issuing import KeyIssuer
from keybearer_service.usecases.mutations import Mutation, Mutations

_TAKEN_PREFIXES = {SESSION_PREFIX: "sessions", INVITATION_PREFIX: "invitations"}


def initialise(
    data_dir: DataDir,
    new: NewAccount,
    prefix: str,
    *,
    create_store: Callable[[Path | DatabaseUrl], Store],
    clock: Clock,
    entropy: Entropy,
) -> CreatedAccount:
    """Create an installation: key files, database, operator account, administrator and key.

    A file gets its name last, when it is complete, and a database elsewhere is filled by one
    transaction, so that an interrupted attempt is never mistaken for an installation.

    Raises:
        DataDirError: The directory holds an installation, or the key files of one.
        LocalError: The prefix is not valid, or the database holds an installation.
        StoreError: The database cannot be used.
    """
    if not token_format.is_prefix(prefix):
        raise LocalError(f"prefix {prefix!r}: [a-z][a-z0-9], 2 to 16 characters")
    if prefix in _TAKEN_PREFIXES:
        raise LocalError(f"prefix {prefix!r}: {_TAKEN_PREFIXES[prefix]} have it; give another one")
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
    store = create_store(unfinished if data_dir.url is None else data_dir.url)
    try:
        mutations = Mutations(store, AuditLog(keyring.audit_key, entropy), clock)
        issuer = KeyIssuer(keyring, entropy, prefix)
        with mutations.begin_local() as mutation:
            _assert_empty(mutation.tx)
            pepper = insert_pepper(mutation, keyring, entropy)
            created = _create_operator_rows(mutation, issuer, new, prefix, entropy)
            mutation.record(
                AuditAction.INSTALLATION_CREATED,
                account_id=created.account.id,
                target_type=AuditTargetType.INSTALLATION,
                target_id=created.account.id,
                changes=(
                    FieldChange("account_name", "", new.name),
                    FieldChange("admin_user_id", "", created.user.id),
                    FieldChange("api_key_id", "", created.issued.key.id),
                    FieldChange("pepper_id", "", pepper.id),
                    FieldChange("prefix", "", prefix),
                ),
                also=(
                    Subject(AuditTargetType.ACCOUNT, created.account.id),
                    Subject(AuditTargetType.USER, created.user.id),
                    Subject(AuditTargetType.API_KEY, created.issued.key.id),
                    Subject(AuditTargetType.INSTALLATION, pepper.id),
                ),
            )
            mutation.invalidate(SubjectKind.EVERYTHING, "", created.account.id)
            if data_dir.url is not None:
                # From the commit on other nodes may open the installation.
                data_dir.publish(unfinished_keys, data_dir.peppers)
    finally:
        store.close()
    if data_dir.url is None:
        data_dir.publish(unfinished_keys, data_dir.peppers)
        data_dir.publish(unfinished, data_dir.database)
    return created


def _assert_empty(tx: Reader) -> None:
    try:
        tx.installation()
    except StoreUnusableError:
        return
    raise LocalError("the database holds an installation already")


def _create_operator_rows(
    mutation: Mutation, issuer: KeyIssuer, new: NewAccount, prefix: str, entropy: Entropy
) -> CreatedAccount:
    created = create_account_rows(mutation, issuer, new, is_operator=True, created_by="")
    mutation.tx.put_installation(
        Installation(
            epoch=entropy.base62(EPOCH_LENGTH),
            revision=0,
            prefix=prefix,
            retired_prefixes=(),
            operator_account_id=created.account.id,
            create_time=mutation.now,
        )
    )
    return created
