"""How a key is found for a change, and written with the event that audits it."""

from collections.abc import Sequence
from dataclasses import replace

from keybearer._wire.enums import AuditAction, AuditTargetType, RevocationReason
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Micros, rfc3339
from keybearer_service.domain.errors import ResourceNotFound
from keybearer_service.domain.model import KEY_SETTINGS, ApiKey, SubjectKind
from keybearer_service.storage import Foreseen, Reader
from keybearer_service.usecases.access import reach_of
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.mutations import Mutation

_AUDITED = (
    *KEY_SETTINGS,
    "owner_id",
    "role",
    "scopes",
    "expire_time",
    "overlap_end_time",
    "secret_version",
    "revocation_reason",
    "revocation_note",
)


def foreseen_key(call: CallContext, key_id: str) -> Foreseen:
    """Yield the read with which the change of a key begins."""
    yield lambda reader: reader.api_key(reach_of(call), key_id)


def reachable_key(reader: Reader, scope: AccountScope, key_id: str) -> ApiKey:
    """Return a key.

    Raises:
        FieldInvalid: This is no id.
        ResourceNotFound: The scope has no such key.
    """
    key = reader.api_key(scope, validators.required_id("id", key_id))
    if key is None:
        raise ResourceNotFound("API key", key_id)
    return key


def write_key(mutation: Mutation, action: AuditAction, before: ApiKey, after: ApiKey) -> ApiKey:
    """Write a changed key and audit the change; without a change do nothing.

    Returns:
        The key as the store has it now.
    """
    if after == before:
        return before
    mutation.tx.update_api_key(
        replace(after, update_time=mutation.now, row_version=before.row_version + 1)
    )
    written = mutation.tx.api_key(mutation.scope, before.id)
    if written is None:
        raise LookupError(before.id)
    record_key(mutation, action, before, written, None)
    return written


def record_key(
    mutation: Mutation,
    action: AuditAction,
    before: ApiKey | None,
    after: ApiKey,
    request: IdempotencyKey | None,
) -> None:
    """Audit what happened to a key, and invalidate what is kept of it.

    Args:
        mutation: The change.
        action: What happened.
        before: The key before; None for one that was created.
        after: The key as it was written.
        request: The request that may be repeated; None for one that may not.
    """
    mutation.record(
        action,
        account_id=after.account_id,
        target_type=AuditTargetType.API_KEY,
        target_id=after.id,
        changes=_differences(before, after, mutation.now),
        request_id=request.request_id if request else "",
    )
    mutation.invalidate(SubjectKind.KEY, after.id, after.account_id)


def _differences(before: ApiKey | None, after: ApiKey, now: Micros) -> Sequence[FieldChange]:
    texts = [
        (name, _text(name, getattr(before, name, None)), _text(name, getattr(after, name)))
        for name in _AUDITED
    ]
    changes = [FieldChange(*text) for text in texts if text[1] != text[2]]
    old_state = "" if before is None else before.state_at(now).name
    if old_state != after.state_at(now).name:
        changes.append(FieldChange("state", old_state, after.state_at(now).name))
    return changes


def _text(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.endswith("_time") and isinstance(value, int):
        return rfc3339(Micros(value))
    if isinstance(value, Role | RevocationReason):
        return value.name
    if isinstance(value, tuple):
        return " ".join(value)
    if isinstance(value, dict):
        return " ".join(f"{key}={value[key]}" for key in sorted(value))
    return str(value)
