"""Checks the chain of audit events, in parts, and the head that says where it ends."""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from keybearer_service.domain.audit_digests import HEAD_VERSION, AuditBase, AuditDigests
from keybearer_service.domain.audit_event import (
    AuditRecord,
    PersonalText,
    event_hash,
    split_digests,
)
from keybearer_service.storage import NO_AUDIT_HEAD, OnStep, Reader, Snapshots

CHAIN_BATCH: Final = 5000
"""Events that are read in one snapshot. A snapshot of the whole log would keep the write-ahead log
from being folded into the database for as long as the check runs."""
BASE_ALTERED: Final = "the base of the audit log, where it begins, was altered"
_TEXTS_KEPT: Final = 100_000
"""What is remembered of personal texts, so that they are not read with every event."""

Inspect = Callable[[Reader, Sequence[AuditRecord]], None]
"""Takes each part of the chain in the snapshot in which it was read."""


def no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """The result of checking the chain."""

    events: int
    """How many events are right, up to the first broken one."""
    head_seq: int
    head_hash: bytes
    pruned: int = 0
    """The seq of the last event that was pruned; the check begins behind it."""
    erased: int = 0
    """How many of them mention a personal text that was erased."""
    broken_seq: int | None = None
    """The seq of the first event that does not fit, None when all do."""
    problem: str = ""


def base_in(reader: Reader, digests: AuditDigests) -> AuditBase | None:
    """Return where the log begins, which is behind the events that were pruned; None if forged."""
    found = reader.audit_base()
    if found is None:
        return digests.base(*NO_AUDIT_HEAD, 0)
    right = digests.base(found.seq, found.hash, int.from_bytes(found.rows))
    return found if hmac.compare_digest(found.mac, right.mac) else None


class ChainVerifier:
    """Checks the chain of one installation."""

    def __init__(self, audit_key: bytes) -> None:
        self._audit_key = audit_key
        self._digests = AuditDigests(audit_key)
        self._erased: dict[bytes, bool | None] = {}
        """For each `personal_digest` that was looked up: whether a text of it is erased; None where
        one is missing or wrong."""

    def verify(
        self,
        store: Snapshots,
        expect: tuple[int, bytes] | None = None,
        *,
        progress: OnStep = no_progress,
        inspect: Inspect | None = None,
    ) -> ChainReport:
        """Check the chain from its first event, or its base, to the event that is the last now.

        Args:
            store: The store; each part is read in a snapshot of its own.
            expect: The seq and hash of an event that was noted outside the database, for example
                in the server's log. Without it an old copy of everything looks whole.
            progress: Is told how far the check is.
            inspect: Is handed each part.
        """
        seq, previous = NO_AUDIT_HEAD
        with store.read() as reader:
            until, _ = reader.audit_head()
        erased = pruned = 0
        pruned_hash = previous
        may_be_of_first_version = True
        while seq < until:
            with store.read() as reader:
                base = base_in(reader, self._digests)
                if base is None:
                    return _broken(pruned, seq, previous, erased, BASE_ALTERED)
                if base.seq > seq:  # events were pruned before, or while this goes on
                    pruned, seq, previous = base.seq, base.seq, base.hash
                    pruned_hash = base.hash
                batch = reader.audit_chain(seq, min(CHAIN_BATCH, max(until - seq, 1)))
                self._look_up_texts(reader, batch)
                if inspect is not None:
                    inspect(reader, batch)
            if not batch:
                return _broken(pruned, seq, previous, erased, f"event {seq + 1} is missing")
            for record in batch:
                problem = self._problem(record, seq, previous) or _misplaced(
                    record, expect, may_be_of_first_version=may_be_of_first_version
                )
                if problem:
                    return _broken(pruned, seq, previous, erased, problem)
                may_be_of_first_version = record.is_of_first_version
                seq, previous = record.seq, record.hash
                if record.personal_digest and self._erased[record.personal_digest]:
                    erased += 1
            progress("audit events", seq, until)
        problem = _not_expected(expect, (pruned, pruned_hash), seq)
        if problem:
            return _broken(pruned, seq, previous, erased, problem)
        return ChainReport(
            events=seq - pruned, head_seq=seq, head_hash=previous, pruned=pruned, erased=erased
        )

    def head_findings(self, reader: Reader) -> list[str]:
        """Return what contradicts the head, one sentence for each finding.

        A database that no newer version has written to has no head, and nothing to compare.
        """
        seq, last_hash = reader.audit_head()
        head = reader.head()
        if head is None:
            last = reader.audit_chain(seq - 1, 1) if seq else ()
            if not last:
                return ["the audit log is empty"]
            return [] if last[0].is_of_first_version else ["the head of the audit log is missing"]
        if head.version > HEAD_VERSION:
            return [f"the head of the audit log has the form {head.version}, of a newer version"]
        right = self._digests.head(head.seq, head.hash, head.revision)
        if not hmac.compare_digest(right.mac, head.mac):
            return ["the head of the audit log was altered"]
        findings = []
        if head.seq > seq:
            findings.append(f"event {seq + 1} and what follows to event {head.seq} were cut off")
        elif head.seq < seq:
            findings.append(f"the head is of event {head.seq}, and the audit log ends with {seq}")
        elif head.hash != last_hash:
            findings.append(f"event {seq} is not the one that the head is of")
        revision = reader.installation().revision
        if head.seq <= seq and head.revision != revision:
            findings.append(f"the revision is {revision}, and the head says {head.revision}")
        return findings

    def _problem(self, record: AuditRecord, seq: int, previous: bytes) -> str:
        if record.seq != seq + 1:
            return f"event {seq + 1} is missing"
        right = event_hash(self._audit_key, previous, record)
        if not hmac.compare_digest(right, record.hash):
            return f"event {record.seq} was altered"
        if record.personal_digest and self._erased[record.personal_digest] is None:
            return f"a personal text of event {record.seq} is missing or was altered"
        return ""

    def _look_up_texts(self, reader: Reader, batch: Sequence[AuditRecord]) -> None:
        if len(self._erased) > _TEXTS_KEPT:
            self._erased.clear()
        mentioned = {one.personal_digest for one in batch if one.personal_digest}
        for digests in mentioned - self._erased.keys():
            singles = split_digests(digests)
            found = reader.personal_texts(singles)
            states = [self._is_erased(found[one]) if one in found else None for one in singles]
            self._erased[digests] = None if None in states else True in states

    def _is_erased(self, text: PersonalText) -> bool | None:
        if text.text is not None and text.salt is not None:
            right = self._digests.text(text.salt, text.user_id, text.text)
            return False if hmac.compare_digest(right, text.digest) else None
        proof = self._digests.erasure(text.digest, text.user_id)
        return True if hmac.compare_digest(proof, text.erasure or b"") else None


def _misplaced(
    record: AuditRecord, expect: tuple[int, bytes] | None, *, may_be_of_first_version: bool
) -> str:
    """Return why an event whose hash is right may not stand where it does; empty when it may."""
    if record.is_of_first_version and not may_be_of_first_version:
        return f"event {record.seq} was altered"
    if expect is not None and expect[0] == record.seq and expect[1] != record.hash:
        return f"event {record.seq} is not the expected one"
    return ""


def _not_expected(expect: tuple[int, bytes] | None, pruned: tuple[int, bytes], last: int) -> str:
    """Return why an expected event is not among those that were checked; empty when it is."""
    if expect is not None and expect[0] > last:
        return f"event {last + 1} and what follows were cut off"
    if expect is not None and expect[0] <= pruned[0] and expect != pruned:
        return f"event {expect[0]} was pruned; expect a later one, or look at what was exported"
    return ""


def _broken(pruned: int, good_seq: int, head: bytes, erased: int, problem: str) -> ChainReport:
    return ChainReport(
        events=good_seq - pruned,
        pruned=pruned,
        head_seq=good_seq,
        head_hash=head,
        erased=erased,
        broken_seq=good_seq + 1,
        problem=problem,
    )
