"""The audit log: one chain for the installation, written inside the transactions it tells of."""

import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from keybearer_service.domain.audit_event import (
    Action,
    Actor,
    ActorType,
    AuditEvent,
    FieldChange,
    TargetType,
)
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.storage import Reader, Store, StoreError, Writer
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.usecases.call_context import CallContext

log = structlog.get_logger(__name__)

REFUSALS_A_MINUTE = 10
"""Refused management calls of one caller that get an event each; the rest are counted."""
MAX_LISTED_IDS = 1000
"""Ids named in the event of a cascade; beyond, only the count."""
_CHAIN_BATCH = 1000


def event_hash(audit_key: bytes, previous_hash: bytes, event: AuditEvent) -> bytes:
    """Answer the hash that ties an event to the one before it.

    HMAC-SHA-256 under the audit key over the previous hash and these fields, each as UTF-8 text
    prefixed with its length in four big-endian bytes: seq, id, time (microseconds), account_id,
    actor type (number), actor key id, actor user id, actor user email, action (number), target type
    (number), target id, changes (a JSON list of [field, before, after] without blanks, ASCII),
    request_id, peer.
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
        json.dumps(
            [[change.field, change.before, change.after] for change in event.changes],
            separators=(",", ":"),
        ),
        event.request_id,
        event.peer,
    )
    message = previous_hash + b"".join(
        len(text).to_bytes(4) + text for text in (field.encode() for field in fields)
    )
    return hmac.digest(audit_key, message, "sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What checking the chain found."""

    events: int
    """How many events were checked, up to the first broken one."""
    head_seq: int
    head_hash: bytes
    broken_seq: int | None = None
    """The first event that does not fit, None when all do."""
    problem: str = ""


class AuditLog:
    """Writes and checks the chain."""

    def __init__(self, audit_key: bytes, entropy: Entropy) -> None:
        """Take the key of the chain and the source of event ids."""
        self._audit_key = audit_key
        self._entropy = entropy

    def append(
        self,
        tx: Writer,
        *,
        time: Micros,
        account_id: str,
        actor: Actor,
        action: Action,
        target_type: TargetType,
        target_id: str,
        changes: Sequence[FieldChange] = (),
        request_id: str = "",
        peer: str = "",
    ) -> None:
        """Add one event to the end of the chain, in the transaction of the change."""
        last_seq, last_hash = tx.audit_head()
        event = AuditEvent(
            id=self._entropy.base62(ID_LENGTH),
            seq=last_seq + 1,
            time=time,
            account_id=account_id,
            actor=actor,
            action=action,
            target_type=target_type,
            target_id=target_id,
            changes=tuple(changes),
            request_id=request_id,
            peer=peer,
            hash=b"",
        )
        tx.append_audit(replace(event, hash=event_hash(self._audit_key, last_hash, event)))

    def verify(self, reader: Reader, expect: tuple[int, bytes] | None = None) -> ChainReport:
        """Check the whole chain, and that it holds the head that was noted elsewhere.

        Without `expect` a chain whose end was cut off looks whole: only a head kept outside, as in
        the server's log, tells.
        """
        previous = bytes(32)
        seq = 0
        for event in self.events(reader):
            if event.seq != seq + 1:
                return self._broken(seq, previous, f"event {seq + 1} is missing")
            if not hmac.compare_digest(event_hash(self._audit_key, previous, event), event.hash):
                return self._broken(seq, previous, f"event {event.seq} was altered")
            seq, previous = event.seq, event.hash
            if expect is not None and expect[0] == seq and expect[1] != previous:
                return self._broken(seq - 1, previous, f"event {seq} is not the expected one")
        if expect is not None and expect[0] > seq:
            return self._broken(seq, previous, f"event {seq + 1} and what follows were cut off")
        return ChainReport(events=seq, head_seq=seq, head_hash=previous)

    @staticmethod
    def events(reader: Reader) -> Iterator[AuditEvent]:
        """Answer every event in the order of the chain."""
        after = 0
        while batch := reader.audit_chain(after, _CHAIN_BATCH):
            yield from batch
            after = batch[-1].seq

    @staticmethod
    def _broken(good_seq: int, head: bytes, problem: str) -> ChainReport:
        return ChainReport(
            events=good_seq,
            head_seq=good_seq,
            head_hash=head,
            broken_seq=good_seq + 1,
            problem=problem,
        )


def ids_change(field: str, ids: Sequence[str], count: int) -> tuple[FieldChange, ...]:
    """Tell of a cascade: the ids while they are few, always the count."""
    listed = (FieldChange(field, "", ",".join(ids)),) if 0 < count <= MAX_LISTED_IDS else ()
    return (*listed, FieldChange(f"{field}_count", "", str(count)))


class RefusalLog:
    """Audits refused management calls, ten a minute for each caller and then one with a count.

    A refusal stands whatever becomes of its event: a store that cannot take it costs the event.
    """

    def __init__(self, store: Store, audit: AuditLog, clock: Clock, operator_account: str) -> None:
        """Take the account whose log tells of callers that nobody knows."""
        self._store = store
        self._audit = audit
        self._clock = clock
        self._operator_account = operator_account
        self._quota = MinuteQuota(clock, REFUSALS_A_MINUTE)

    def refused(self, call: CallContext, reason: str) -> None:
        """Tell of one refused call, or count it."""
        caller = call.caller
        if self._quota.admit("" if caller is None else caller.key_id):
            self._write(
                call.actor,
                self._operator_account if caller is None else caller.account_id,
                call.method,
                [FieldChange("reason", "", reason)],
                call.request_id,
                call.peer,
            )

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Tell of what was only counted; called every minute, and with `everything` at the end."""
        for key_id, count in self._quota.collect(everything=everything).items():
            self._write_count(key_id, count)

    def _write_count(self, key_id: str, count: int) -> None:
        actor, account = Actor(type=ActorType.ANONYMOUS), self._operator_account
        if key_id:
            try:
                record, _ = self._store.lookup(key_id)
            except StoreError:
                record = None
            if record is not None:
                account = record.account_id
                actor = Actor(
                    type=ActorType.KEY,
                    key_id=key_id,
                    user_id=record.owner_id,
                    user_email=record.owner_email,
                )
        change = FieldChange("refused_calls_not_listed", "", str(count))
        self._write(actor, account, "", [change], "", "")

    def _account_of(self, call: CallContext) -> str:
        return self._operator_account if call.caller is None else call.caller.account_id

    def _write(
        self,
        actor: Actor,
        account_id: str,
        method: str,
        changes: Sequence[FieldChange],
        request_id: str,
        peer: str,
    ) -> None:
        try:
            with self._store.write() as tx:
                self._audit.append(
                    tx,
                    time=self._clock.now(),
                    account_id=account_id,
                    actor=actor,
                    action=Action.CALL_REFUSED,
                    target_type=TargetType.METHOD,
                    target_id=method,
                    changes=changes,
                    request_id=request_id,
                    peer=peer,
                )
        except StoreError as error:
            log.warning("refusal_not_audited", cause=type(error).__name__)
        except Exception:  # raised from here, its text would go to the refused caller
            log.exception("refusal_not_audited")
