"""Prunes old events from the audit log: exports them first, and keeps what they vouch for.

Every step is a transaction that leaves the log whole. After an interrupted run the log begins at
one of the events on the way, and the command can be run again.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_digests import (
    REVOKED_WITH_USER,
    AuditBase,
    AuditDigests,
    BaseRow,
)
from keybearer_service.domain.audit_event import (
    AuditRecord,
    FieldChange,
    event_hash,
    export_base,
    export_head,
    export_line,
    pruned_key_ids,
    split_digests,
)
from keybearer_service.domain.clock import Micros, rfc3339
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.verification import BASE_ALTERED, base_in
from keybearer_service.storage import Reader, Store, Writer
from keybearer_service.storage.files import sync
from keybearer_service.usecases.audit import with_texts
from keybearer_service.usecases.mutations import Mutation, Mutations

PRUNE_BATCH: Final = 1000
"""Events that are deleted in one transaction, so that no change waits long behind it."""

_ACCOUNT: Final = int(AuditTargetType.ACCOUNT)
_USER: Final = int(AuditTargetType.USER)
_KEY: Final = int(AuditTargetType.API_KEY)
_INSTALLATION: Final = int(AuditTargetType.INSTALLATION)
_FURTHER_ROWS: Final[Mapping[int, tuple[tuple[int, str], ...]]] = {
    AuditAction.ACCOUNT_CREATED: ((_USER, "admin_user_id"), (_KEY, "api_key_id")),
    AuditAction.INSTALLATION_CREATED: (
        (_ACCOUNT, ""),
        (_USER, "admin_user_id"),
        (_KEY, "api_key_id"),
        (_INSTALLATION, "pepper_id"),
    ),
    AuditAction.USER_DELETED: ((REVOKED_WITH_USER, ""),),
}
"""What the digests of an event are about behind the first, which is that of its target: the kind,
and the change that holds the id; empty for the id of the target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """The result of pruning."""

    events: int
    first_kept_seq: int
    export_sha256: str
    """In hexadecimal, of the file that the events were exported to; empty without events."""


def prune_audit(
    store: Store,
    mutations: Mutations,
    audit_key: bytes,
    before: Micros,
    file: Path,
    on_batch: Callable[[int], None] = lambda _seq: None,
) -> Pruned:
    """Export the events before a moment to a new file, and then delete them.

    The last event always stays, and so does every event behind the first that stays.

    Args:
        store: The store.
        mutations: Opens changes of the same store.
        audit_key: The key of the audit log.
        before: The moment.
        file: Where to export to; as lines of JSON, as `audit export` writes them. Without such
            events none is made.
        on_batch: Is told the last seq of each batch, once that is deleted.

    Raises:
        LocalError: The log does not verify, or the file cannot be written.
    """
    pruner = _Pruner(audit_key)
    with store.read() as reader:
        start = pruner.base_of(reader)
        until = _last_to_prune(reader, before)
    if until <= start.seq:
        return Pruned(events=0, first_kept_seq=start.seq + 1, export_sha256="")
    digest = _export(file, pruner.lines(store, start, until))
    seq = start.seq
    while seq < until:
        upto = min(seq + PRUNE_BATCH, until)
        with mutations.begin_local() as mutation:
            pruner.prune(mutation.tx, seq, upto)
            if seq == start.seq:
                _record(mutation, start.seq, until, before, digest)
        seq = upto
        on_batch(seq)
    return Pruned(events=until - start.seq, first_kept_seq=until + 1, export_sha256=digest)


class _Pruner:
    """Moves what pruned events vouch for into the base."""

    def __init__(self, audit_key: bytes) -> None:
        self._audit_key = audit_key
        self._digests = AuditDigests(audit_key)

    def base_of(self, reader: Reader) -> AuditBase:
        """Return where the log begins.

        Raises:
            LocalError: The base was altered.
        """
        base = base_in(reader, self._digests)
        if base is None:
            raise LocalError(f"{BASE_ALTERED}; run `keybearer-server check`")
        return base

    def lines(self, store: Store, start: AuditBase, until: int) -> Iterator[str]:
        """Yield the lines of the export, each event once its place in the chain is verified.

        Raises:
            LocalError: An event does not fit.
        """
        seq, previous = start.seq, start.hash
        if seq:
            yield export_base(seq, previous)
        while seq < until:
            with store.read() as reader:
                records = reader.audit_chain(seq, min(PRUNE_BATCH, until - seq))
                events = with_texts(reader, records)
            if not records:
                raise LocalError(_broken(seq + 1))
            for record, event in zip(records, events, strict=True):
                right = event_hash(self._audit_key, previous, record)
                if record.seq != seq + 1 or not hmac.compare_digest(right, record.hash):
                    raise LocalError(_broken(seq + 1))
                yield export_line(event)
                seq, previous = record.seq, record.hash
        yield export_head(seq, previous)

    def prune(self, tx: Writer, after: int, upto: int) -> None:
        """Delete events behind the base, and have it hold what the last of them say of rows.

        Raises:
            LocalError: Somebody else has pruned meanwhile.
        """
        base = self.base_of(tx)
        records = tx.audit_chain(after, upto - after)
        if base.seq != after or len(records) != upto - after:
            raise LocalError("somebody else prunes the audit log at the same time")
        total = int.from_bytes(base.rows)
        for row in rows_left_by(records):
            before = tx.base_row(row.kind, row.id)
            if before is not None:
                total -= self._digests.base_row(before)
            total += self._digests.base_row(row)
            tx.put_base_row(row)
        for key_id in sorted({one for record in records for one in pruned_key_ids(record)}):
            row_of_key = tx.base_row(_KEY, key_id)
            if row_of_key is not None:
                total -= self._digests.base_row(row_of_key)
                tx.delete_base_row(_KEY, key_id)
        tx.delete_audit_events(upto)
        tx.put_audit_base(self._digests.base(upto, records[-1].hash, total))


def rows_left_by(records: Sequence[AuditRecord]) -> Sequence[BaseRow]:
    """Return what events say of the rows that they left, for each row what the last event says."""
    found: dict[tuple[int, str], BaseRow] = {}
    for record in records:
        if record.target_type == AuditTargetType.METHOD:
            continue
        changes = {name: after for name, _, after in json.loads(record.changes) if after}
        further = _FURTHER_ROWS.get(record.action, ())
        about = [(record.target_type, record.target_id)]
        about += [(kind, changes.get(name, "") or record.target_id) for kind, name in further]
        digests: Sequence[bytes] = split_digests(record.target_digest)
        if record.is_of_first_version:
            digests = [b""] * len(about)
        for (kind, row_id), digest in zip(about, digests, strict=False):
            found[kind, row_id] = BaseRow(kind, row_id, record.seq, digest)
    return list(found.values())


def _last_to_prune(reader: Reader, before: Micros) -> int:
    last, _ = reader.audit_head()
    kept = reader.first_event_since(before)
    return min(last if kept is None else kept, last) - 1


def _record(mutation: Mutation, start: int, until: int, before: Micros, digest: str) -> None:
    operator_account = mutation.tx.installation().operator_account_id
    mutation.record(
        AuditAction.AUDIT_PRUNED,
        account_id=operator_account,
        target_type=AuditTargetType.INSTALLATION,
        target_id=operator_account,
        changes=(
            FieldChange("first_kept_seq", str(start + 1), str(until + 1)),
            FieldChange("events_before", "", rfc3339(before)),
            FieldChange("export_sha256", "", digest),
        ),
    )


def _export(file: Path, lines: Iterator[str]) -> str:
    digest = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(file, flags, 0o600), "wb") as target:
            try:
                for line in lines:
                    text = line.encode() + b"\n"
                    digest.update(text)
                    target.write(text)
                target.flush()
                os.fsync(target.fileno())
            except BaseException:
                file.unlink()
                raise
        sync(file.parent)  # the name must be on the disk too before anything is deleted
    except OSError as error:
        raise LocalError(f"{file}: {error.strerror}") from None
    return digest.hexdigest()


def _broken(seq: int) -> str:
    return (
        f"event {seq} of the audit log is missing or was altered: nothing is pruned; "
        "run `keybearer-server check`"
    )
