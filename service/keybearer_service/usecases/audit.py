"""The audit log: one chain of events, each written in the transaction of the change it records."""

import hmac
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.domain.audit_digests import (
    SALT_BYTES,
    AuditDigests,
    CoveredRow,
    Head,
    Subject,
    Value,
)
from keybearer_service.domain.audit_event import (
    Actor,
    AuditEvent,
    AuditRecord,
    FieldChange,
    PersonalText,
    changes_as_json,
    event_from_record,
    event_hash,
    is_personal,
    personal_texts,
    split_digests,
)
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.storage import AuditQuery, Foreseen, Found, Reader, Store, StoreError, Writer
from keybearer_service.telemetry.log_quotas import MinuteQuota, OutageLog
from keybearer_service.usecases.access import assert_account_exists
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.pagination import Listed, PageTokens, reading_for

log = structlog.get_logger(__name__)

REFUSALS_A_MINUTE = 10
"""Refused management calls of one caller that each get an event; the rest are counted."""
MAX_LISTED_IDS = 1000
"""A cascade of more ids is recorded with their count alone; each of them finds its event."""
PERSONAL_COLUMNS: Mapping[str, tuple[str, ...]] = {"users": ("email", "display_name")}
"""The columns that name a person. The digest of their row covers them by their own digests."""
_CHAIN_BATCH = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What an event is to say."""

    time: Micros
    account_id: str
    actor: Actor
    action: AuditAction
    target_type: AuditTargetType
    target_id: str
    changes: Sequence[FieldChange] = ()
    request_id: str = ""
    peer: str = ""
    also: Sequence[Subject] = ()
    """Further rows that the change left and that no other event is about, in a fixed order."""
    revoked: Sequence[CoveredRow] | None = None
    """The keys that the change revoked with its target, or deleted, in the order of their ids."""
    found_by: Sequence[str] = ()
    """Ids that find the event, beside its target and what stands in `also`."""


class AuditLog:
    """Writes the chain and the head."""

    def __init__(self, audit_key: bytes, entropy: Entropy) -> None:
        self._audit_key = audit_key
        self._digests = AuditDigests(audit_key)
        self._entropy = entropy
        self._was_wrong = False

    def write(
        self, tx: Writer, entries: Sequence[AuditEntry], *, revisions: Sequence[int] = ()
    ) -> None:
        """Append the events of a change to the chain, and write the head, in its transaction.

        Everything else that the change does must be done, because an event holds digests of the
        rows as the change leaves them. A head that does not fit what is stored is left as it is:
        somebody has altered the database, and the next change must not hide that.

        Args:
            tx: The transaction.
            entries: The events.
            revisions: The revisions that the transaction has added, in their order.
        """
        seq, last_hash = tx.audit_head()
        revision = revisions[-1] if revisions else tx.revision()
        fits = self._fits(tx, self._digests.head(seq, last_hash, revision - len(revisions)))
        for entry in entries:
            seq += 1
            last_hash = self._append(tx, entry, seq, last_hash)
        if fits:
            tx.put_head(self._digests.head(seq, last_hash, revision))
        elif not self._was_wrong:
            self._was_wrong = True
            log.error("audit_head_wrong", next_step="keybearer-server check")

    @staticmethod
    def foreseen(actor: Actor) -> Foreseen:
        """Return what `write` is going to read for the events of an actor."""
        yield lambda reader: reader.audit_head()
        yield lambda reader: reader.head()
        yield lambda reader: reader.revision()
        if is_personal(actor.user_id, actor.user_email):
            yield lambda reader: reader.personal_digest(actor.user_id, actor.user_email)

    def erase_texts(self, tx: Writer, user_id: str) -> int:
        """Erase every personal text of a user; return how many that were."""
        texts = [one for one in tx.personal_texts_of(user_id) if one.erasure is None]
        for text in texts:
            tx.erase_personal_text(text.digest, self._digests.erasure(text.digest, user_id))
        return len(texts)

    @staticmethod
    def _fits(tx: Writer, right: Head) -> bool:
        head = tx.head()
        if head is None:
            # The first change since a version that kept no head.
            last = tx.audit_chain(right.seq - 1, 1)
            return not last or last[0].is_of_first_version
        return hmac.compare_digest(head.mac, right.mac)

    def _append(self, tx: Writer, entry: AuditEntry, seq: int, last_hash: bytes) -> bytes:
        actor = entry.actor
        texts = [self._text_digest(tx, *one) for one in personal_texts(actor, entry.changes)]
        is_apart = is_personal(actor.user_id, actor.user_email)
        record = AuditRecord(
            id=self._entropy.base62(ID_LENGTH),
            seq=seq,
            time=entry.time,
            account_id=entry.account_id,
            actor_type=int(actor.type),
            actor_key_id=actor.key_id,
            actor_user_id=actor.user_id,
            actor_user_email="" if is_apart else actor.user_email,
            action=int(entry.action),
            target_type=int(entry.target_type),
            target_id=entry.target_id,
            changes=changes_as_json(entry.changes),
            request_id=entry.request_id,
            peer=entry.peer,
            target_digest=self._target_digest(tx, entry),
            personal_digest=b"".join(texts),
            hash=b"",
            actor_session_id=actor.session_id,
        )
        record = record._replace(hash=event_hash(self._audit_key, last_hash, record))
        found_by = dict.fromkeys((*(subject.id for subject in entry.also), *entry.found_by))
        found_by.pop(entry.target_id, None)
        tx.append_audit(record, tuple(found_by))
        return record.hash

    def _target_digest(self, tx: Writer, entry: AuditEntry) -> bytes:
        subjects = (Subject(entry.target_type, entry.target_id), *entry.also)
        rows = [tx.covered_row(subject) for subject in subjects]
        digests = [
            row_digest(self._digests, row, partial(self._text_digest, tx))
            for row in rows
            if row is not None
        ]
        if entry.revoked is not None:
            digests.append(self._digests.cascade(self._digests.row(row) for row in entry.revoked))
        return b"".join(digests)

    def _text_digest(self, tx: Writer, user_id: str, text: str) -> bytes:
        known = tx.personal_digest(user_id, text)
        if known is not None:
            return known
        salt = self._entropy.key_bytes(SALT_BYTES)
        digest = self._digests.text(salt, user_id, text)
        tx.insert_personal_text(PersonalText(digest, user_id, salt, text))
        return digest


def row_digest(
    digests: AuditDigests, row: CoveredRow, text_digest: Callable[[str, str], bytes | None]
) -> bytes:
    """Return the digest of a row, whose personal columns are covered by digests of their own.

    Args:
        digests: Makes it.
        row: The row.
        text_digest: Returns the digest of a personal text of a user, None for an unknown text.
    """
    columns: dict[str, Value] = dict(row.columns)
    for name in PERSONAL_COLUMNS.get(row.table, ()):
        user_id, text = str(columns["id"]), str(columns[name])
        if is_personal(user_id, text):
            columns[name] = text_digest(user_id, text)
    return digests.row(CoveredRow(row.table, columns))


def events_in(reader: Reader) -> Iterator[AuditEvent]:
    """Yield every event in the order of the chain."""
    after = 0
    while batch := reader.audit_chain(after, _CHAIN_BATCH):
        yield from with_texts(reader, batch)
        after = batch[-1].seq


def with_texts(reader: Reader, records: Sequence[AuditRecord]) -> list[AuditEvent]:
    """Return events with the personal texts that they mention."""
    mentioned = [one for record in records for one in split_digests(record.personal_digest)]
    texts = reader.personal_texts(mentioned)
    return [event_from_record(record, texts) for record in records]


def ids_change(field: str, ids: Sequence[str]) -> tuple[FieldChange, ...]:
    """Return the changes of a cascade: its ids unless there are too many, and their count."""
    listed = (FieldChange(field, "", ",".join(ids)),) if 0 < len(ids) <= MAX_LISTED_IDS else ()
    return (*listed, FieldChange(f"{field}_count", "", str(len(ids))))


class AuditHistory:
    """Reads the audit log."""

    def __init__(self, store: Store, page_tokens: PageTokens) -> None:
        self._store = store
        self._page_tokens = page_tokens

    def list(
        self, call: CallContext, query: AuditQuery, page_size: int, page_token: str
    ) -> Listed[AuditEvent]:
        """Return a page of events, newest first.

        Raises:
            FieldInvalid: The page size or the page token is not valid.
            ResourceNotFound: An operator named an account that does not exist.
            CallAbandoned: The caller no longer waits.
        """
        bound_to = ("audit", query)
        page = self._page_tokens.page(page_size, page_token, bound_to)
        with reading_for(call, self._store) as reader:
            assert_account_exists(reader, query.scope)
            found = reader.list_audit_events(query, page)
            events = Found(with_texts(reader, found.items), found.rest)
        return self._page_tokens.listed(
            events, page, bound_to, lambda event: (event.time, event.seq)
        )

    def head(self, call: CallContext) -> tuple[int, bytes]:
        """Return the seq and the hash of the newest event of the installation.

        Raises:
            CallAbandoned: The caller no longer waits.
        """
        with reading_for(call, self._store) as reader:
            return reader.audit_head()


class RefusalLog:
    """Audits refused calls of one kind, ten a minute for each caller and then one with a count.

    A call is refused whether its event can be written or not: a store that fails costs the event.
    """

    def __init__(
        self,
        store: Store,
        audit: AuditLog,
        clock: Clock,
        operator_account: str,
        action: AuditAction = AuditAction.CALL_REFUSED,
    ) -> None:
        """Create the log.

        Args:
            store: Holds the audit log.
            audit: Writes it.
            clock: Counts minutes.
            operator_account: The account of the events about callers who are not known.
            action: What the events are about.
        """
        self._action = action
        self._store = store
        self._audit = audit
        self._clock = clock
        self._operator_account = operator_account
        self._quota = MinuteQuota(clock, REFUSALS_A_MINUTE)
        self._outage = OutageLog("refusal_not_audited")

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
                entry = AuditEntry(
                    time=self._clock.now(),
                    account_id=account_id,
                    actor=actor,
                    action=self._action,
                    target_type=AuditTargetType.METHOD,
                    target_id=method,
                    changes=changes,
                    request_id=request_id,
                    peer=peer,
                )
                self._audit.write(tx, [entry])
            self._outage.recovered()
        except StoreError as error:
            self._outage.failed(error)
        except Exception:  # must not reach the caller, whose call is refused anyway
            log.exception("refusal_not_audited")
