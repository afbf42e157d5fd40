"""Checks of the store and the audit log, and the export of the log."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from keybearer._wire.enums import AuditTargetType
from keybearer_service.domain.audit_digests import Subject
from keybearer_service.domain.audit_event import (
    AuditRecord,
    export_base,
    export_head,
    export_line,
    pruned_key_ids,
)
from keybearer_service.offline.comparison import RowComparer, pruning_of
from keybearer_service.offline.verification import (
    ChainReport,
    ChainVerifier,
    no_progress,
)
from keybearer_service.storage import (
    FileStore,
    OnStep,
    Reader,
    Snapshots,
    Store,
    StoreDamagedError,
)
from keybearer_service.usecases.audit import events_in

UNSEEN = (
    "an old copy of everything put back (--expect with a head noted elsewhere sees it)",
    "use counts, times of last use, and the records of requests and of invalidations",
)
"""What no check of a database can see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The result of a check."""

    findings: Sequence[str]
    """What is wrong, one sentence for each finding."""
    head_seq: int = 0
    head_hash: bytes = b""
    """The last event that the check has seen, to be noted elsewhere."""
    events: int = 0
    compared: Mapping[str, int] = field(default_factory=dict)
    """How many rows of each table were compared with their events."""
    not_compared: int = 0
    """Rows that a version without digests has changed last: nothing to compare."""
    has_head: bool = True
    """Whether a version that keeps a head has written to the database."""


def check_store(store: Store) -> list[str]:
    """Return a sentence for each damaged page and each row that contradicts another."""
    damage = store.check_file() if isinstance(store, FileStore) else ()
    # The rows of a damaged file say nothing, and may not even be read.
    return list(damage or store.check())


def check(
    store: Store,
    audit_key: bytes,
    expect: tuple[int, bytes] | None = None,
    *,
    progress: OnStep = no_progress,
) -> CheckReport:
    """Look for damage, and for changes that went past keybearer.

    Args:
        store: The store.
        audit_key: The key of the audit log.
        expect: The seq and hash of an event that was noted outside the database.
        progress: Is told how far the check is.
    """
    findings = check_store(store)
    try:
        return _check_events(store, audit_key, expect, progress, findings)
    except StoreDamagedError as error:
        return CheckReport(findings=[*findings, f"audit: {error}"])


def _check_events(
    store: Store,
    audit_key: bytes,
    expect: tuple[int, bytes] | None,
    progress: OnStep,
    findings: Sequence[str],
) -> CheckReport:
    missing: dict[Subject, None] = {}

    def note_gone(reader: Reader, batch: Sequence[AuditRecord]) -> None:
        if batch:
            for subject in reader.targets_without_rows(batch[0].seq - 1, batch[-1].seq):
                missing[subject] = None
        for record in batch:
            for key_id in pruned_key_ids(record):
                missing.pop(Subject(AuditTargetType.API_KEY, key_id), None)

    verifier = ChainVerifier(audit_key)
    with store.read() as reader:
        head_findings = verifier.head_findings(reader)
        has_head = reader.head() is not None
    report = verifier.verify(store, expect, progress=progress, inspect=note_gone)
    comparison = RowComparer(audit_key, report.head_seq).compare(store, progress)
    audit_findings = [report.problem] if report.problem else []
    audit_findings += [one for one in head_findings if one != report.problem]
    return CheckReport(
        findings=[
            *findings,
            *(f"audit: {one}" for one in audit_findings),
            *comparison.findings,
            *_gone(store, missing, report.head_seq),
        ],
        head_seq=report.head_seq,
        head_hash=report.head_hash,
        events=report.events,
        compared=comparison.compared,
        not_compared=comparison.not_compared,
        has_head=has_head,
    )


def _gone(store: Store, missing: Iterable[Subject], checked_seq: int) -> Iterator[str]:
    """Yield a finding for each missing row that was not pruned while the check was going on."""
    for subject in missing:
        with store.read() as reader:
            pruning = pruning_of(reader, subject.id)
            is_pruned_since = pruning is not None and pruning.seq > checked_seq
            if is_pruned_since or reader.last_event(subject) is None:
                continue
        noun = subject.kind.name.lower().replace("api_", "")
        yield f"{noun} {subject.id} is gone, and events are about it"


def verify_audit(
    store: Snapshots,
    audit_key: bytes,
    expect: tuple[int, bytes] | None,
    *,
    progress: OnStep = no_progress,
) -> tuple[ChainReport, Sequence[str]]:
    """Check the audit chain, and that it holds a head that was noted elsewhere, if one is given.

    Returns:
        The report on the chain, and what contradicts the head that is stored.
    """
    verifier = ChainVerifier(audit_key)
    with store.read() as reader:
        head_findings = verifier.head_findings(reader)
    report = verifier.verify(store, expect, progress=progress)
    return report, [one for one in head_findings if one != report.problem]


def export_audit(store: Store) -> Iterator[str]:
    """Yield the audit log as lines of JSON, oldest first; the last one is the head of the chain."""
    with store.read() as reader:
        base = reader.audit_base()
        if base is not None:
            yield export_base(base.seq, base.hash)
        for event in events_in(reader):
            yield export_line(event)
        yield export_head(*reader.audit_head())
