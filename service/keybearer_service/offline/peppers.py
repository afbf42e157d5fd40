"""Adds, lists and retires peppers."""

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Pepper
from keybearer_service.installation.keyring import Keyring
from keybearer_service.offline.errors import LocalError
from keybearer_service.storage import Store
from keybearer_service.usecases.mutations import Mutation, Mutations

PEPPER_ID_LENGTH = 8


def add_pepper(
    mutations: Mutations, keyring: Keyring, entropy: Entropy, operator_account_id: str
) -> Pepper:
    """Create a pepper; every secret issued from now on uses it."""
    with mutations.begin_local() as mutation:
        pepper = insert_pepper(mutation, keyring, entropy)
        mutation.record(
            AuditAction.PEPPER_ADDED,
            account_id=operator_account_id,
            target_type=AuditTargetType.INSTALLATION,
            target_id=pepper.id,
        )
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
        peppers = {pepper.id: pepper for pepper in mutation.tx.peppers()}
        pepper = peppers.get(pepper_id)
        if pepper is None:
            raise LocalError(f"there is no pepper {pepper_id!r}; see `pepper list`")
        if pepper.retire_time is not None:
            raise LocalError(f"the pepper {pepper_id} is retired already")
        live_secrets = mutation.tx.live_secrets(pepper_id, mutation.now)
        if live_secrets:
            raise LocalError(
                f"the pepper {pepper_id} is needed by {live_secrets} live secrets; "
                "rotate or revoke their keys first"
            )
        if sum(one.retire_time is None for one in peppers.values()) == 1:
            raise LocalError("this is the only pepper; run `pepper add` first")
        mutation.tx.retire_pepper(pepper_id, mutation.now)
        mutation.record(
            AuditAction.PEPPER_RETIRED,
            account_id=operator_account_id,
            target_type=AuditTargetType.INSTALLATION,
            target_id=pepper_id,
        )


def insert_pepper(mutation: Mutation, keyring: Keyring, entropy: Entropy) -> Pepper:
    """Draw a pepper, write its file and insert its row."""
    pepper_id = entropy.base62(PEPPER_ID_LENGTH)
    pepper = Pepper(
        id=pepper_id, check=keyring.add_pepper(pepper_id, entropy), create_time=mutation.now
    )
    mutation.tx.insert_pepper(pepper)
    return pepper
