"""Erases the personal data of deleted users."""

from dataclasses import dataclass

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_event import ERASED
from keybearer_service.offline.errors import LocalError
from keybearer_service.storage import FileStore, Store
from keybearer_service.usecases.mutations import Mutations


@dataclass(frozen=True, slots=True)
class Erasure:
    """What erasing a user did."""

    texts: int
    """How many texts were erased from the audit log."""
    old_events: int
    """How many events of an older version go on holding personal texts inside their hash."""
    is_log_empty: bool
    """Whether nothing of the texts is left in the write-ahead log."""


def erase_user(mutations: Mutations, store: Store, user_id: str) -> Erasure:
    """Erase the e-mail address and the names of a deleted user, from the audit log too.

    Raises:
        LocalError: There is no such user, the user is not deleted, or erased already.
    """
    with mutations.begin_local() as mutation:
        user = mutation.tx.user(mutation.scope, user_id)
        if user is None:
            raise LocalError(f"there is no user {user_id!r}")
        if user.delete_time is None:
            raise LocalError(
                f"the user {user_id} is not deleted; run `keybearer users delete {user_id}` first"
            )
        if user.email == ERASED:
            raise LocalError(f"the user {user_id} is erased already")
        old_events = mutation.tx.events_with_texts(user)
        texts = mutation.erase_texts(user_id)
        mutation.tx.erase_user(user_id, mutation.now)
        mutation.record(
            AuditAction.USER_ERASED,
            account_id=user.account_id,
            target_type=AuditTargetType.USER,
            target_id=user_id,
        )
    is_log_empty = store.fold_log() if isinstance(store, FileStore) else True
    return Erasure(texts, old_events, is_log_empty)
