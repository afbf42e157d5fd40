"""The entries of the audit log, and the forms in which they are stored, hashed and exported."""

import functools
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.domain.clock import Micros

ERASED = "erased"
"""Stands where the personal text of a deleted user was erased."""
MISSING = "missing"
"""Stands where a personal text cannot be found; `check` names the event."""
DIGEST_BYTES = 32
PRUNED_KEY_IDS = "pruned_key_ids"
"""The change of an event API_KEYS_PRUNED that lists the keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who made a change."""

    type: AuditActorType
    key_id: str = ""
    user_id: str = ""
    user_email: str = ""
    session_id: str = ""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of a change as text, before and after."""

    field: str
    before: str
    after: str
    user_id: str = ""
    """The user whose personal texts the two values are; empty when they are none."""


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
    target_digest: bytes | None = None
    personal_digest: bytes | None = None
    salts: tuple[bytes | None, ...] = ()
    """The salts of the personal texts, in the order of their digests; None for an erased one."""


class AuditRecord(NamedTuple):
    """An event as it is stored and hashed: personal texts are in rows of their own.

    The two digests are both None in events of the first version, whose texts stand in
    `actor_user_email` and `changes`, and both bytes in all others.
    """

    seq: int
    id: str
    time: Micros
    account_id: str
    actor_type: int
    actor_key_id: str
    actor_user_id: str
    actor_user_email: str
    action: int
    target_type: int
    target_id: str
    changes: str
    request_id: str
    peer: str
    target_digest: bytes | None
    """The digests of the rows that the change left, 32 bytes each: the target's own comes first."""
    personal_digest: bytes | None
    """The digests of the personal texts, 32 bytes each: the actor's address comes first."""
    hash: bytes
    actor_session_id: str = ""
    """Empty for an actor that is no session, and in every event of before there were sessions."""

    @property
    def is_of_first_version(self) -> bool:
        """Whether the event says nothing about rows, and holds its personal texts itself."""
        return self.target_digest is None and self.personal_digest is None


class PersonalText(NamedTuple):
    """An e-mail address or a name that events mention, once for all of them."""

    digest: bytes
    """What events hold of it: see `AuditDigests.text`."""
    user_id: str
    salt: bytes | None
    """None once the text is erased."""
    text: str | None
    """None once it is erased."""
    erasure: bytes | None = None
    """Proves that the text was erased by who holds the audit key; None as long as it is there."""


def personal_texts(actor: Actor, changes: Sequence[FieldChange]) -> Iterator[tuple[str, str]]:
    """Yield the personal texts of an event as (user id, text), in the order of their digests."""
    if is_personal(actor.user_id, actor.user_email):
        yield actor.user_id, actor.user_email
    for change in changes:
        for text in (change.before, change.after):
            if is_personal(change.user_id, text):
                yield change.user_id, text


def is_personal(user_id: str, text: str) -> bool:
    """Return whether a text must be kept where it can be erased."""
    return bool(user_id and text)


def split_digests(digests: bytes | None) -> list[bytes]:
    """Return the single digests of a `target_digest` or a `personal_digest`."""
    text = digests or b""
    return [text[start : start + DIGEST_BYTES] for start in range(0, len(text), DIGEST_BYTES)]


def pruned_key_ids(record: AuditRecord) -> frozenset[str]:
    """Return the ids of the keys that an event API_KEYS_PRUNED lists; of any other event none."""
    if record.action != AuditAction.API_KEYS_PRUNED:
        return frozenset()
    return _listed_ids(record.changes, PRUNED_KEY_IDS)


@functools.lru_cache(maxsize=100)
def _listed_ids(changes: str, field: str) -> frozenset[str]:
    # Looked up for each of the keys that one event lists.
    listed = [after for name, _, after in json.loads(changes) if name == field and after]
    return frozenset(one for ids in listed for one in ids.split(","))


def event_from_record(record: AuditRecord, texts: Mapping[bytes, PersonalText]) -> AuditEvent:
    """Return an event with its personal texts.

    Args:
        record: The event as it is stored.
        texts: The texts that it mentions, by their digests.
    """
    pairs = json.loads(record.changes)
    digests = split_digests(record.personal_digest)
    in_changes = sum(value is None for pair in pairs for value in pair)
    email = record.actor_user_email
    if len(digests) > in_changes:
        email, _ = _shown(digests[0], texts)
    rest = iter(digests[len(digests) - in_changes :] if in_changes else ())
    return AuditEvent(
        id=record.id,
        seq=record.seq,
        time=record.time,
        account_id=record.account_id,
        actor=Actor(
            type=AuditActorType(record.actor_type),
            key_id=record.actor_key_id,
            user_id=record.actor_user_id,
            user_email=email,
            session_id=record.actor_session_id,
        ),
        action=AuditAction(record.action),
        target_type=AuditTargetType(record.target_type),
        target_id=record.target_id,
        changes=tuple(_change(pair, rest, texts) for pair in pairs),
        request_id=record.request_id,
        peer=record.peer,
        hash=record.hash,
        target_digest=record.target_digest,
        personal_digest=record.personal_digest,
        salts=tuple(texts[one].salt if one in texts else None for one in digests),
    )


def _change(
    pair: Sequence[str | None], digests: Iterator[bytes], texts: Mapping[bytes, PersonalText]
) -> FieldChange:
    field, before, after = pair
    user_id = ""
    if before is None:
        before, user_id = _shown(next(digests, b""), texts)
    if after is None:
        after, user_id = _shown(next(digests, b""), texts)
    return FieldChange(field or "", before, after, user_id)


def _shown(digest: bytes, texts: Mapping[bytes, PersonalText]) -> tuple[str, str]:
    found = texts.get(digest)
    if found is None:
        return MISSING, ""
    return ERASED if found.text is None else found.text, found.user_id


def changes_as_json(changes: Sequence[FieldChange]) -> str:
    """Return the changes of an event as a JSON list of [field, before, after].

    The text is stored and hashed as it is: ASCII, without blanks, always the same for the same
    changes. Another form would break the chain of every installation. A personal text is null.
    """
    return json.dumps(
        [
            [
                change.field,
                *(
                    None if is_personal(change.user_id, text) else text
                    for text in (change.before, change.after)
                ),
            ]
            for change in changes
        ],
        separators=(",", ":"),
        ensure_ascii=True,
    )


def event_hash(audit_key: bytes, previous_hash: bytes, record: AuditRecord) -> bytes:
    """Return the hash that ties an event to the one before it.

    HMAC-SHA-256 under the audit key over the previous hash and these fields, each as UTF-8 text
    prefixed with its length in four big-endian bytes: seq, id, time (microseconds), account_id,
    actor type (number), actor key id, actor user id, actor user email, action (number), target type
    (number), target id, changes (`changes_as_json`), request_id, peer; then, unless the event is of
    the first version, the bytes of target_digest and personal_digest, prefixed likewise; then, when
    the actor is a session, the actor session id.

    Events of the first version have 14 fields, those of sessions 17 and all others 16, so that no
    event can be read as one of another form.
    """
    fields = [
        str(record.seq),
        record.id,
        str(record.time),
        record.account_id,
        str(record.actor_type),
        record.actor_key_id,
        record.actor_user_id,
        record.actor_user_email,
        str(record.action),
        str(record.target_type),
        record.target_id,
        record.changes,
        record.request_id,
        record.peer,
    ]
    message = [previous_hash]
    for text in fields:
        encoded = text.encode()
        message += (_prefix(len(encoded)), encoded)
    if not record.is_of_first_version:
        for digests in (record.target_digest or b"", record.personal_digest or b""):
            message += (_prefix(len(digests)), digests)
    if record.actor_session_id:
        session_id = record.actor_session_id.encode()
        message += (_prefix(len(session_id)), session_id)
    return hmac.digest(audit_key, b"".join(message), "sha256")


@functools.cache
def _prefix(length: int) -> bytes:
    return length.to_bytes(4)


def export_line(event: AuditEvent) -> str:
    """Return an event as the line of JSON that an export of the log holds.

    The hash can be worked out from it: what `changes_as_json` writes as null are the values, not
    empty, of a change with a `user_id`, and the hash covers an empty address of an actor whose
    address is a personal text.
    """
    line = {
        "seq": event.seq,
        "id": event.id,
        "time_us": event.time,
        "account_id": event.account_id,
        "actor": {
            "type": event.actor.type.name,
            "key_id": event.actor.key_id,
            "user_id": event.actor.user_id,
            "user_email": event.actor.user_email,
            **({"session_id": event.actor.session_id} if event.actor.session_id else {}),
        },
        "action": event.action.name,
        "target": {"type": event.target_type.name, "id": event.target_id},
        "changes": [_change_in_export(change) for change in event.changes],
        "request_id": event.request_id,
        "peer": event.peer,
    }
    if event.target_digest is not None and event.personal_digest is not None:
        line["target_digest"] = event.target_digest.hex()
        line["personal_digest"] = event.personal_digest.hex()
        line["salts"] = [None if salt is None else salt.hex() for salt in event.salts]
    return json.dumps({**line, "hash": event.hash.hex()})


def _change_in_export(change: FieldChange) -> dict[str, str]:
    values = {"field": change.field, "before": change.before, "after": change.after}
    return {**values, "user_id": change.user_id} if change.user_id else values


def export_base(seq: int, last_hash: bytes) -> str:
    """Return the first line of an export of a log whose first events were pruned."""
    return json.dumps({"base": {"seq": seq, "hash": last_hash.hex()}})


def export_head(seq: int, head_hash: bytes) -> str:
    """Return the last line of an export: where the chain ends."""
    return json.dumps({"head": {"seq": seq, "hash": head_hash.hex()}})
