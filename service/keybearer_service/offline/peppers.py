"""Adds, activates, lists and retires peppers."""

from pathlib import Path

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Pepper
from keybearer_service.installation.keyring import Keyring
from keybearer_service.offline.errors import LocalError
from keybearer_service.storage import ServerStore, Store
from keybearer_service.usecases.mutations import Mutation, Mutations

PEPPER_ID_LENGTH = 8


def add_pepper(
    mutations: Mutations,
    keyring: Keyring,
    entropy: Entropy,
    operator_account_id: str,
    *,
    is_announced: bool = False,
    file: Path | None = None,
) -> Pepper:
    """Create a pepper; every secret issued from now on uses it, or once it is activated.

    Args:
        mutations: Open changes.
        keyring: Writes the file.
        entropy: The randomness.
        operator_account_id: The account of the audit event.
        is_announced: Whether it is to be activated once every node has its file.
        file: Where the file is written; by default among the other key files.
    """
    with mutations.begin_local() as mutation:
        pepper = insert_pepper(mutation, keyring, entropy, is_announced=is_announced, file=file)
        mutation.record(
            AuditAction.PEPPER_ADDED,
            account_id=operator_account_id,
            target_type=AuditTargetType.INSTALLATION,
            target_id=pepper.id,
        )
        return pepper


def activate_pepper(
    mutations: Mutations, store: ServerStore, account_id: str, pepper_id: str
) -> None:
    """Have every secret that is issued from now on use a pepper that every node has.

    Raises:
        LocalError: The pepper is unknown, retired, or active already, or a node lacks its file.
    """
    with mutations.begin_local() as mutation:
        pepper = _known(mutation, pepper_id)
        if not pepper.is_announced:
            raise LocalError(f"the pepper {pepper_id} is active already")
        # A node that joins from here on waits for this change, and does not serve without the file.
        lacking = sorted(one.name for one in store.nodes() if pepper_id not in one.peppers)
        if lacking:
            raise LocalError(
                f"the nodes {', '.join(lacking)} have no file of the pepper {pepper_id}; copy it "
                "into their peppers/ and try again after a second"
            )
        mutation.tx.activate_pepper(pepper_id)
        mutation.record(
            AuditAction.PEPPER_ACTIVATED,
            account_id=account_id,
            target_type=AuditTargetType.INSTALLATION,
            target_id=pepper_id,
        )


def _known(mutation: Mutation, pepper_id: str) -> Pepper:
    pepper = next((one for one in mutation.tx.peppers() if one.id == pepper_id), None)
    if pepper is None:
        raise LocalError(f"there is no pepper {pepper_id!r}; see `pepper list`")
    if pepper.retire_time is not None:
        raise LocalError(f"the pepper {pepper_id} is retired already")
    return pepper


def list_peppers(store: Store, now: Micros) -> list[tuple[Pepper, int]]:
    """Return all peppers, newest first, each with the number of live secrets that need it."""
    with store.read() as reader:
        return [(pepper, reader.live_secrets(pepper.id, now)) for pepper in reader.peppers()]


def retire_pepper(mutations: Mutations, operator_account_id: str, pepper_id: str) -> None:
    """Retire a pepper that no live secret needs; those of expired keys are not live.

    Raises:
        LocalError: The pepper is unknown, retired, needed, or the only one.
    """
    with mutations.begin_local() as mutation:
        pepper = _known(mutation, pepper_id)
        live_secrets = mutation.tx.live_secrets(pepper_id, mutation.now)
        if live_secrets:
            raise LocalError(
                f"the pepper {pepper_id} is needed by {live_secrets} live secrets; "
                "rotate or revoke their keys first"
            )
        active = [
            one for one in mutation.tx.peppers() if one.retire_time is None and not one.is_announced
        ]
        if active == [pepper]:
            raise LocalError("this is the only pepper; run `pepper add` first")
        mutation.tx.retire_pepper(pepper_id, mutation.now)
        mutation.record(
            AuditAction.PEPPER_RETIRED,
            account_id=operator_account_id,
            target_type=AuditTargetType.INSTALLATION,
            target_id=pepper_id,
        )


def insert_pepper(
    mutation: Mutation,
    keyring: Keyring,
    entropy: Entropy,
    *,
    is_announced: bool = False,
    file: Path | None = None,
) -> Pepper:
    """Draw a pepper, write its file and insert its row."""
    pepper_id = entropy.base62(PEPPER_ID_LENGTH)
    pepper = Pepper(
        id=pepper_id,
        check=keyring.add_pepper(pepper_id, entropy, file),
        create_time=mutation.now,
        is_announced=is_announced,
    )
    mutation.tx.insert_pepper(pepper)
    return pepper
