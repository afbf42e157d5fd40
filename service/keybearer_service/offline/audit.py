"""Checks of the store and the audit chain, and the export of the audit log."""

from collections.abc import Iterator

from keybearer_service.domain.audit_event import export_head, export_line
from keybearer_service.storage import FileStore, Store, StoreDamagedError
from keybearer_service.usecases.audit import AuditLog, ChainReport


def check_store(store: Store) -> list[str]:
    """Return a sentence for each damaged page and each row that contradicts another."""
    damage = store.check_file() if isinstance(store, FileStore) else ()
    # The rows of a damaged file say nothing, and may not even be read.
    return list(damage or store.check())


def check(store: Store, audit_log: AuditLog) -> list[str]:
    """Return what is damaged in the database or the audit chain, one sentence for each finding."""
    findings = check_store(store)
    try:
        report = verify_audit(store, audit_log, None)
    except StoreDamagedError as error:
        return [*findings, f"audit: {error}"]
    if report.broken_seq is not None:
        findings.append(f"audit: {report.problem}")
    return findings


def verify_audit(
    store: Store, audit_log: AuditLog, expect: tuple[int, bytes] | None
) -> ChainReport:
    """Check the audit chain, and that it holds a head that was noted elsewhere, if one is given."""
    with store.read() as reader:
        return audit_log.verify(reader, expect)


def export_audit(store: Store, audit_log: AuditLog) -> Iterator[str]:
    """Yield the audit log as lines of JSON, oldest first; the last one is the head of the chain."""
    with store.read() as reader:
        for event in audit_log.events(reader):
            yield export_line(event)
        yield export_head(*reader.audit_head())
