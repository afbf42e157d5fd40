"""Adds, lists and retires peppers."""

from keybearer_service.container import Core
from keybearer_service.domain.audit_event import Action, TargetType
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Pepper
from keybearer_service.installation.keyring import Keyring
from keybearer_service.offline.errors import LocalError
from keybearer_service.usecases.mutations import Change

PEPPER_ID_LENGTH = 8


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
