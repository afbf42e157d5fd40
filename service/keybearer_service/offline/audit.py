"""Checks the store and the audit chain, and exports the audit log."""

import json
from collections.abc import Iterator

from keybearer_service.storage import FileStore, Store
from keybearer_service.usecases.audit import AuditLog, ChainReport


def check_store(store: Store) -> list[str]:
    """Return a sentence for each damaged page and each row that contradicts another."""
    damage = store.check_file() if isinstance(store, FileStore) else ()
    # The rows of a damaged file say nothing, and may not even be read.
    return list(damage or store.check())


def check(store: Store, audit_log: AuditLog) -> list[str]:
    """Return a sentence for each finding in the database and the audit chain."""
    findings = check_store(store)
    report = verify_audit(store, audit_log, None)
    if report.broken_seq is not None:
        findings.append(f"audit: {report.problem}")
    return findings


def verify_audit(
    store: Store, audit_log: AuditLog, expect: tuple[int, bytes] | None
) -> ChainReport:
    """Check the audit chain, against a head noted elsewhere if there is one."""
    with store.read() as reader:
        return audit_log.verify(reader, expect)


def export_audit(store: Store, audit_log: AuditLog) -> Iterator[str]:
    """Answer the audit log as JSON lines, oldest first, the last one being the head."""
    with store.read() as reader:
        for event in audit_log.events(reader):
            yield json.dumps(
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
        seq, head = reader.audit_head()
        yield json.dumps({"head": {"seq": seq, "hash": head.hex()}})
