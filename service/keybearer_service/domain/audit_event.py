"""The entries of the audit log, and the forms in which they are stored, hashed and exported."""

import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.domain.clock import Micros


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who made a change."""

    type: AuditActorType
    key_id: str = ""
    user_id: str = ""
    user_email: str = ""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a change as text, before and after."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One entry of the audit log."""

    id: str
    seq: int
    time: Micros
    account_id: str
    actor: Actor
    action: AuditAction
    target_type: AuditTargetType
    target_id: str
    changes: tuple[FieldChange, ...]
    request_id: str
    peer: str
    hash: bytes


def changes_as_json(changes: Sequence[FieldChange]) -> str:
    """Return the changes of an event as a JSON list of [field, before, after].

    The text is stored and hashed as it is: ASCII, without blanks, always the same for the same
    changes. Another form would break the chain of every installation.
    """
    return json.dumps(
        [[change.field, change.before, change.after] for change in changes],
        separators=(",", ":"),
        ensure_ascii=True,
    )


def changes_from_json(text: str) -> tuple[FieldChange, ...]:
    """Return the changes that `changes_as_json` wrote."""
    return tuple(FieldChange(*change) for change in json.loads(text))


def event_hash(audit_key: bytes, previous_hash: bytes, event: AuditEvent) -> bytes:
    """Return the hash that ties an event to the one before it.

    HMAC-SHA-256 under the audit key over the previous hash and these fields, each as UTF-8 text
    prefixed with its length in four big-endian bytes: seq, id, time (microseconds), account_id,
    actor type (number), actor key id, actor user id, actor user email, action (number), target type
    (number), target id, changes (`changes_as_json`), request_id, peer.
    """
    fields = (
        str(event.seq),
        event.id,
        str(event.time),
        event.account_id,
        str(int(event.actor.type)),
        event.actor.key_id,
        event.actor.user_id,
        event.actor.user_email,
        str(int(event.action)),
        str(int(event.target_type)),
        event.target_id,
        changes_as_json(event.changes),
        event.request_id,
        event.peer,
    )
    message = previous_hash + b"".join(
        len(text).to_bytes(4) + text for text in (field.encode() for field in fields)
    )
    return hmac.digest(audit_key, message, "sha256")


def export_line(event: AuditEvent) -> str:
    """Return an event as the line of JSON that an export of the log holds."""
    return json.dumps(
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


def export_head(seq: int, head_hash: bytes) -> str:
    """Return the last line of an export: where the chain ends."""
    return json.dumps({"head": {"seq": seq, "hash": head_hash.hex()}})
