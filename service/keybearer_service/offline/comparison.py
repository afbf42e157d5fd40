"""Compares rows with the digests that the events about them hold."""

import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType, RevocationReason
from keybearer_service.domain.audit_digests import (
    REVOKED_WITH_USER,
    AuditDigests,
    CoveredRow,
    Subject,
)
from keybearer_service.domain.audit_event import AuditRecord, pruned_key_ids, split_digests
from keybearer_service.storage import OnStep, Reader, Store
from keybearer_service.usecases.audit import row_digest

ROW_BATCH: Final = 1000
"""Rows that are compared in one snapshot."""
_NOUNS: Final[Mapping[str, str]] = {
    "accounts": "account",
    "users": "user",
    "api_keys": "key",
    "peppers": "pepper",
}
"""The tables that are compared row by row, and what a row is called."""
_KINDS: Final[Mapping[str, AuditTargetType]] = {
    "accounts": AuditTargetType.ACCOUNT,
    "users": AuditTargetType.USER,
    "api_keys": AuditTargetType.API_KEY,
    "peppers": AuditTargetType.INSTALLATION,
}
_NOUNS_OF_KINDS: Final[Mapping[int, str]] = {
    int(_KINDS[table]): _NOUNS[table] for table in ("accounts", "users", "api_keys")
}
_CREATED_WITH_ACCOUNT: Final[Mapping[AuditAction, tuple[str, ...]]] = {
    AuditAction.ACCOUNT_CREATED: ("", "admin_user_id", "api_key_id"),
    AuditAction.INSTALLATION_CREATED: ("", "", "admin_user_id", "api_key_id", "pepper_id"),
}
"""For each digest of such an event the change that names its row; empty for the account itself."""
CASCADES: Final[Mapping[int, str]] = {
    int(RevocationReason.OWNER_DELETED): "owner_id",
    int(RevocationReason.CREATOR_DELETED): "created_by",
}
"""The reasons of keys that were revoked with a user, and the column that names that user."""


@dataclass(slots=True)
class Comparison:
    """What came of comparing rows with events."""

    findings: list[str] = field(default_factory=list)
    compared: Counter[str] = field(default_factory=Counter)
    """How many rows of each kind have been compared."""
    not_compared: int = 0
    """Rows that a version without digests has changed last."""


@dataclass(slots=True)
class _Cascade:
    """The keys that were revoked with a user."""

    seq: int
    digest: bytes
    """What the event says of them."""
    digests: list[bytes] = field(default_factory=list)
    """What their rows say, in the order of their ids."""
    ids: set[str] = field(default_factory=set)


class RowComparer:
    """Compares every account, user, key and pepper, and the installation, with its last event."""

    def __init__(self, audit_key: bytes, until_seq: int) -> None:
        """Prepare a comparison.

        Args:
            audit_key: The key of the audit log.
            until_seq: Keys that were revoked with their users in later events are left out: they
                are revoked while the comparison runs, some before and some after it looks.
        """
        self._digests = AuditDigests(audit_key)
        self._until_seq = until_seq
        self._cascades: dict[str, _Cascade | None] = {}
        """By the deleted user; None where there is nothing to compare."""
        self._result = Comparison()

    def compare(self, store: Store, progress: OnStep) -> Comparison:
        """Compare all rows, in parts that are each of one snapshot."""
        with store.read() as reader:
            self._compare_installation(reader)
            total = reader.key_count()
        for table in _NOUNS:
            after, done = "", 0
            while True:
                with store.read() as reader:
                    rows = reader.covered_rows(table, after, ROW_BATCH)
                    for row in rows:
                        self._compare(reader, row)
                if not rows:
                    break
                after, done = str(rows[-1].columns["id"]), done + len(rows)
                if table == "api_keys":
                    progress("keys", min(done, total), total)
        self._compare_base(store)
        with store.read() as reader:
            for user_id, cascade in self._cascades.items():
                if cascade is not None:
                    self._compare_cascade(reader, user_id, cascade)
        return self._result

    def compare_keys(self, reader: Reader, keys: Sequence[CoveredRow]) -> list[str]:
        """Return what is wrong with some keys that were revoked by themselves."""
        for row in keys:
            self._compare(reader, row)
        return self._result.findings

    def _compare_base(self, store: Store) -> None:
        with store.read() as reader:
            base = reader.audit_base()
            total, after = 0, (-1, "")
            while rows := reader.base_rows(after, ROW_BATCH):
                total += sum(map(self._digests.base_row, rows))
                after = (rows[-1].kind, rows[-1].id)
                for row in rows:
                    noun = _NOUNS_OF_KINDS.get(row.kind)
                    subject = Subject(AuditTargetType(row.kind), row.id)
                    if (
                        noun is not None
                        and reader.covered_row(subject) is None
                        and pruning_of(reader, row.id) is None
                    ):
                        self._result.findings.append(
                            f"{noun} {row.id} is gone; event {row.seq}"
                            ", which was pruned, is about it"
                        )
            stored = 0 if base is None else int.from_bytes(base.rows)
        if total % 2**256 != stored:
            self._result.findings.append(
                "what pruned audit events said of rows was altered: there is no telling which rows"
            )

    def _compare_installation(self, reader: Reader) -> None:
        operator_account = reader.installation().operator_account_id
        subject = Subject(AuditTargetType.INSTALLATION, operator_account)
        row, event = reader.covered_row(subject), reader.last_event(subject)
        if row is None or event is None:
            self._result.findings.append("there is no event about the installation")
        else:
            self._judge("the installation", reader, row, event, 0)

    def _compare(self, reader: Reader, row: CoveredRow) -> None:
        row_id = str(row.columns["id"])
        name = f"{_NOUNS[row.table]} {row_id}"
        if row.table == "users" and row.columns["delete_time"] is not None:
            self._note_cascade(reader, row_id)
        if row.table == "api_keys" and row.columns["revocation_reason"] in CASCADES:
            self._add_to_cascade(name, row)
            return
        if row.table == "api_keys" and row.columns["revoke_time"] is not None:
            self._look_for_pruning(name, reader, row_id)
        if row.table == "accounts":
            self._look_for_first_rows(reader, row_id)
        event = reader.last_event(Subject(_KINDS[row.table], row_id))
        if event is not None:
            self._judge(name, reader, row, event, 0)
            return
        pruned = reader.base_row(int(_KINDS[row.table]), row_id)
        if pruned is not None:
            self._judge_digest(name, reader, row, pruned.seq, pruned.digest)
            return
        account_id = str(row.columns.get("account_id", row_id))
        if row.table == "peppers":
            account_id = reader.installation().operator_account_id
        event = reader.creation_event(account_id)
        place = None if event is None else _place(event, row)
        if event is None or place is None:
            self._result.findings.append(f"{name} was not made by keybearer: no event is about it")
        else:
            self._judge(name, reader, row, event, place)

    def _judge(
        self, name: str, reader: Reader, row: CoveredRow, event: AuditRecord, place: int
    ) -> None:
        expected = split_digests(event.target_digest)[place : place + 1]
        if event.is_of_first_version:
            self._judge_digest(name, reader, row, event.seq, b"")
        else:
            self._judge_digest(name, reader, row, event.seq, expected[0] if expected else b"none")

    def _judge_digest(
        self, name: str, reader: Reader, row: CoveredRow, seq: int, expected: bytes
    ) -> None:
        if not expected:  # the event is of the first version
            self._result.not_compared += 1
            return
        self._result.compared[row.table] += 1
        found = row_digest(self._digests, row, reader.personal_digest)
        if not hmac.compare_digest(found, expected):
            self._result.findings.append(f"{name} is not as event {seq} left it")

    def _look_for_first_rows(self, reader: Reader, account_id: str) -> None:
        event = reader.creation_event(account_id)
        if event is None:
            return
        named = _named_in(event)
        kinds = {"admin_user_id": AuditTargetType.USER, "api_key_id": AuditTargetType.API_KEY}
        for change, kind in kinds.items():
            row_id = named.get(change)
            if (
                row_id
                and reader.covered_row(Subject(kind, row_id)) is None
                and pruning_of(reader, row_id) is None
            ):
                noun = "user" if kind is AuditTargetType.USER else "key"
                self._result.findings.append(f"{noun} {row_id} is gone, and events are about it")

    def _look_for_pruning(self, name: str, reader: Reader, key_id: str) -> None:
        if pruning_of(reader, key_id) is not None:
            self._result.findings.append(f"{name} was pruned, and is there again")

    def _note_cascade(self, reader: Reader, user_id: str) -> None:
        subject = Subject(AuditTargetType.USER, user_id)
        event = reader.last_event(subject, AuditAction.USER_DELETED)
        pruned = reader.base_row(REVOKED_WITH_USER, user_id)
        if event is None and pruned is not None:
            digest = pruned.digest
            self._cascades[user_id] = _Cascade(pruned.seq, digest) if digest else None
        elif event is None:
            self._result.findings.append(f"user {user_id} is deleted, and no event says so")
        elif event.seq > self._until_seq or event.is_of_first_version:
            self._cascades[user_id] = None
        else:
            digests = split_digests(event.target_digest)
            self._cascades[user_id] = _Cascade(event.seq, b"".join(digests[1:2]))

    def _add_to_cascade(self, name: str, row: CoveredRow) -> None:
        user_id = str(row.columns[CASCADES[int(str(row.columns["revocation_reason"]))]])
        if user_id not in self._cascades:
            self._result.findings.append(f"{name} says that user {user_id} was deleted")
            return
        cascade = self._cascades[user_id]
        if cascade is None:
            self._result.not_compared += 1
            return
        self._result.compared["api_keys"] += 1
        cascade.digests.append(self._digests.row(row))
        cascade.ids.add(str(row.columns["id"]))

    def _compare_cascade(self, reader: Reader, user_id: str, cascade: _Cascade) -> None:
        found = self._digests.cascade(cascade.digests)
        if hmac.compare_digest(found, cascade.digest):
            return
        pruned = reader.base_row(REVOKED_WITH_USER, user_id)
        if pruned is not None and pruned.digest != cascade.digest:
            return  # `keys prune` has deleted some of them since the user was read
        events = reader.audit_chain(cascade.seq - 1, 1)
        listed = {
            key_id
            for event in events
            if event.seq == cascade.seq  # it may be pruned
            for one in _ids_in(event)
            for key_id in one
        }
        odd = sorted(listed ^ cascade.ids) if listed else []
        which = f" ({', '.join(odd[:10])})" if odd else ""
        self._result.findings.append(
            f"the keys that were revoked with user {user_id} are not as event {cascade.seq} left "
            f"them{which}"
        )


def pruning_of(reader: Reader, key_id: str) -> AuditRecord | None:
    """Return the event that lists a key as pruned, None for none."""
    event = reader.pruning_event(key_id)
    # The event is in the chain; the table that finds it is not.
    return event if event is not None and key_id in pruned_key_ids(event) else None


def _ids_in(event: AuditRecord) -> list[list[str]]:
    changes = json.loads(event.changes)
    return [after.split(",") for field_name, _, after in changes if field_name == "revoked_key_ids"]


def _named_in(event: AuditRecord) -> dict[str, str]:
    return {name: after for name, _, after in json.loads(event.changes) if after is not None}


def _place(event: AuditRecord, row: CoveredRow) -> int | None:
    """Return which digest of an event that created an account is that of a row, None for none."""
    names = _CREATED_WITH_ACCOUNT[AuditAction(event.action)]
    named = _named_in(event)
    if row.table == "accounts":
        return names.index("") if event.action == AuditAction.ACCOUNT_CREATED else 1
    row_id = row.columns["id"]
    return next((n for n, name in enumerate(names) if name and named.get(name) == row_id), None)
