"""The audit log: one chain of events, each written in the transaction of the change it records."""

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import structlog

from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.domain.audit_event import Actor, AuditEvent, FieldChange, event_hash
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.storage import AuditQuery, Reader, Store, StoreError, Writer
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.usecases.access import assert_account_exists
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.pagination import PageTokens

log = structlog.get_logger(__name__)

REFUSALS_A_MINUTE = 10
"""Refused management calls of one caller that each get an event; the rest are counted."""
MAX_LISTED_IDS = 1000
"""A cascade of more than so many ids is recorded with their count alone."""
_CHAIN_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """The result of checking the chain."""

    events: int
    """How many events are right, up to the first broken one."""
    head_seq: int
    head_hash: bytes
    broken_seq: int | None = None
    """The seq of the first event that does not fit, None when all do."""
    problem: str = ""


class AuditLog:
    """Writes and checks the chain."""

    def __init__(self, audit_key: bytes, entropy: Entropy) -> None:
        self._audit_key = audit_key
        self._entropy = entropy

    def append(
        self,
        tx: Writer,
        *,
        time: Micros,
        account_id: str,
        actor: Actor,
        action: AuditAction,
        target_type: AuditTargetType,
        target_id: str,
        changes: Sequence[FieldChange] = (),
        request_id: str = "",
        peer: str = "",
    ) -> None:
        """Append one event to the chain, in the transaction of the change."""
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
        """Check the whole chain.

        Args:
            reader: A snapshot of the store.
            expect: The seq and hash of an event that was noted outside the database, for example
                in the server's log. Without it, a chain whose end was cut off looks whole.
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
        """Yield every event in the order of the chain."""
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
    """Return the changes of a cascade: its ids unless there are too many, and their count."""
    listed = (FieldChange(field, "", ",".join(ids)),) if 0 < count <= MAX_LISTED_IDS else ()
    return (*listed, FieldChange(f"{field}_count", "", str(count)))


class AuditHistory:
    """Reads the audit log."""

    def __init__(self, store: Store, page_tokens: PageTokens) -> None:
        self._store = store
        self._page_tokens = page_tokens

    def list(
        self, query: AuditQuery, page_size: int, page_token: str
    ) -> tuple[Sequence[AuditEvent], str]:
        """Return a page of events, newest first, and the token of the next one.

        Raises:
            FieldInvalid: The page size or the page token is not valid.
            ResourceNotFound: An operator named an account that does not exist.
        """
        bound_to = ("audit", query)
        page = self._page_tokens.page(page_size, page_token, bound_to)
        with self._store.read() as reader:
            assert_account_exists(reader, query.scope)
            found = reader.list_audit_events(query, page)
        return self._page_tokens.split(found, page, bound_to, lambda event: (event.seq, event.id))


class RefusalLog:
    """Audits refused management calls, ten a minute for each caller and then one with a count.

    A call is refused whether its event can be written or not: a store that fails costs the event.
    """

    def __init__(self, store: Store, audit: AuditLog, clock: Clock, operator_account: str) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._operator_account = operator_account
        self._quota = MinuteQuota(clock, REFUSALS_A_MINUTE)

    def refused(self, call: CallContext, reason: str) -> None:
        """Write an event about one refused call, or count it."""
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
        """Write an event for each count of the minutes that are over; `everything` at the end."""
        for key_id, count in self._quota.collect(everything=everything).items():
            self._write_count(key_id, count)

    def _write_count(self, key_id: str, count: int) -> None:
        actor, account = Actor(type=AuditActorType.ANONYMOUS), self._operator_account
        if key_id:
            try:
                record, _ = self._store.lookup(key_id)
            except StoreError:
                record = None
            if record is not None:
                account = record.account_id
                actor = Actor(
                    type=AuditActorType.KEY,
                    key_id=key_id,
                    user_id=record.owner_id,
                    user_email=record.owner_email,
                )
        change = FieldChange("refused_calls_not_listed", "", str(count))
        self._write(actor, account, "", [change], "", "")

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
                    action=AuditAction.CALL_REFUSED,
                    target_type=AuditTargetType.METHOD,
                    target_id=method,
                    changes=changes,
                    request_id=request_id,
                    peer=peer,
                )
        except StoreError as error:
            log.warning("refusal_not_audited", cause=type(error).__name__)
        except Exception:  # must not reach the caller, whose call is refused anyway
            log.exception("refusal_not_audited")
