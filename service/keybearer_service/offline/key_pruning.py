"""Deletes keys that were revoked long ago, so that `check` goes on comparing all others.

Each batch is one transaction, with an event for each account in it. A run that was broken off can
be repeated.
"""

import hmac
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_digests import (
    REVOKED_WITH_USER,
    AuditDigests,
    BaseRow,
    CoveredRow,
)
from keybearer_service.domain.audit_event import PRUNED_KEY_IDS, FieldChange
from keybearer_service.domain.clock import Micros, rfc3339
from keybearer_service.offline.comparison import CASCADES, ROW_BATCH, RowComparer
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.verification import BASE_ALTERED, base_in, no_progress
from keybearer_service.storage import OnStep, Store, Writer
from keybearer_service.storage.files import sync
from keybearer_service.usecases.audit import ids_change
from keybearer_service.usecases.mutations import Mutation, Mutations

KEY_BATCH: Final = 1000
"""Keys that are deleted in one transaction, so that no change waits long behind it; not more than
an event lists."""
_SECRET: Final = frozenset({"digest", "old_digest"})
"""Columns that no file gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedKeys:
    """The result of pruning keys."""

    keys: int
    left: int
    """Old enough, but revoked with a user whose deletion is still in the audit log."""


def prune_keys(
    store: Store,
    mutations: Mutations,
    audit_key: bytes,
    before: Micros,
    export: Path | None = None,
    *,
    progress: OnStep = no_progress,
    on_batch: Callable[[int], None] = lambda _keys: None,
) -> PrunedKeys:
    """Delete the keys that were revoked before a moment, each once its row is compared.

    The event about the deletion of a user vouches for all keys that were revoked with that user:
    these stay until `audit prune` has deleted the event.

    Args:
        store: The store.
        mutations: Opens changes of the same store.
        audit_key: The key of the audit log.
        before: The moment.
        export: A new file, which gets each key as a line of JSON, without the digests of its
            secrets, before it is deleted; None for no file. Without such keys none is made.
        progress: Is told how many keys were looked at.
        on_batch: Is told after each batch how many keys are deleted.

    Raises:
        LocalError: A row is not as its events left it, or the file cannot be written. What was
            deleted before stays deleted.
    """
    pruner = _KeyPruner(store, mutations, audit_key, before, export, on_batch)
    left = pruner.prune(progress)
    return PrunedKeys(keys=pruner.deleted, left=left)


def left_behind(left: int) -> str:
    """Return why some keys were left."""
    return (
        f"{left} were revoked with users whose deletion is still in the audit log, and stay until "
        "`keybearer-server audit prune` has deleted that"
    )


class _Key(NamedTuple):
    """A key that is about to be deleted."""

    id: str
    digest: bytes
    """Of its row."""


class _KeyPruner:
    """Goes through all keys once, and deletes those whose time has come."""

    def __init__(
        self,
        store: Store,
        mutations: Mutations,
        audit_key: bytes,
        before: Micros,
        export: Path | None,
        on_batch: Callable[[int], None],
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._digests = AuditDigests(audit_key)
        self._comparer = RowComparer(audit_key, 0)
        self._before = before
        self._export = export
        self._is_file_new = True
        self._on_batch = on_batch
        self.deleted = 0

    def prune(self, progress: OnStep) -> int:
        """Delete the keys; return how many were left because of the event about their user."""
        with_users: dict[str, list[_Key]] = {}
        due: list[_Key] = []
        after, seen, left = "", 0, 0
        with self._store.read() as reader:
            total = reader.key_count()
        while True:
            with self._store.read() as reader:
                rows = reader.covered_rows("api_keys", after, ROW_BATCH)
                old = [row for row in rows if self._is_old(row)]
                alone = [row for row in old if _user_of(row) is None]
                findings = self._comparer.compare_keys(reader, alone)
                if findings:
                    raise _refusal(findings[0])
                for row in old:
                    user_id = _user_of(row)
                    if user_id is None:
                        due.append(self._key(row))
                    elif user_id in with_users or reader.base_row(REVOKED_WITH_USER, user_id):
                        with_users.setdefault(user_id, []).append(self._key(row))
                    else:
                        left += 1
            while len(due) >= KEY_BATCH or (due and not rows):
                self._delete(due[:KEY_BATCH])
                due = due[KEY_BATCH:]
            if not rows:
                break
            after, seen = str(rows[-1].columns["id"]), seen + len(rows)
            progress("keys", min(seen, total), total)
        for user_id, keys in with_users.items():
            self._prune_cascade(user_id, keys)
        return left

    def _is_old(self, row: CoveredRow) -> bool:
        revoked = row.columns["revoke_time"]
        return isinstance(revoked, int) and revoked < self._before

    def _key(self, row: CoveredRow) -> _Key:
        return _Key(str(row.columns["id"]), self._digests.row(row))

    def _prune_cascade(self, user_id: str, keys: Sequence[_Key]) -> None:
        """Delete the keys that were revoked with a user whose deletion was pruned.

        What the pruned event said of all of them becomes, with each batch, what it would have said
        of the rest. That is done only after it was compared with all of them.
        """
        with self._store.read() as reader:
            base = reader.base_row(REVOKED_WITH_USER, user_id)
        if base is None:
            raise _refusal(f"what pruned events said of user {user_id} is missing")
        digests = [key.digest for key in keys]
        # An event of the first version says nothing of them.
        if base.digest and not hmac.compare_digest(self._digests.cascade(digests), base.digest):
            raise _refusal(
                f"the keys that were revoked with user {user_id} are not as event {base.seq} left "
                "them"
            )
        for start in range(0, len(keys), KEY_BATCH):
            rest = self._digests.cascade(digests[start + KEY_BATCH :])
            new = base._replace(digest=rest if base.digest else b"")
            self._delete(keys[start : start + KEY_BATCH], (base, new))
            base = new

    def _delete(
        self, keys: Sequence[_Key], base_rows: tuple[BaseRow, BaseRow] | None = None
    ) -> None:
        """Delete some keys, and replace a base row by another, in one transaction."""
        with self._mutations.begin_local() as mutation:
            rows = mutation.tx.delete_revoked_keys([key.id for key in keys])
            if [self._key(row) for row in rows] != list(keys):
                raise LocalError(
                    "a revoked key was altered or deleted meanwhile: nothing more is pruned"
                )
            if base_rows is not None:
                self._replace(mutation.tx, *base_rows)
            if self._export is not None:
                self._write(self._export, rows)
            self._record(mutation, rows)
        self.deleted += len(keys)
        self._on_batch(self.deleted)

    def _replace(self, tx: Writer, old: BaseRow, new: BaseRow) -> None:
        base = base_in(tx, self._digests)
        if base is None:
            raise _refusal(BASE_ALTERED)
        if tx.base_row(old.kind, old.id) != old:
            raise LocalError("somebody else prunes keys at the same time")
        total = int.from_bytes(base.rows)
        total += self._digests.base_row(new) - self._digests.base_row(old)
        tx.put_base_row(new)
        tx.put_audit_base(self._digests.base(base.seq, base.hash, total))

    def _record(self, mutation: Mutation, keys: Sequence[CoveredRow]) -> None:
        of_accounts: dict[str, list[CoveredRow]] = {}
        for row in keys:
            of_accounts.setdefault(str(row.columns["account_id"]), []).append(row)
        for account_id, rows in of_accounts.items():
            ids = [str(row.columns["id"]) for row in rows]
            mutation.record(
                AuditAction.API_KEYS_PRUNED,
                account_id=account_id,
                target_type=AuditTargetType.ACCOUNT,
                target_id=account_id,
                changes=(
                    *ids_change(PRUNED_KEY_IDS, ids),
                    FieldChange("revoked_before", "", rfc3339(self._before)),
                ),
                revoked=rows,
                found_by=ids,
            )

    def _write(self, file: Path, keys: Sequence[CoveredRow]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if self._is_file_new else 0)
        try:
            with os.fdopen(os.open(file, flags, 0o600), "ab") as target:
                for row in keys:
                    columns = {
                        name: value for name, value in row.columns.items() if name not in _SECRET
                    }
                    target.write(json.dumps(columns).encode() + b"\n")
                target.flush()
                os.fsync(target.fileno())
            if self._is_file_new:  # its name must be on the disk too before the keys are gone
                sync(file.parent)
        except OSError as error:
            raise LocalError(f"{file}: {error.strerror}") from None
        self._is_file_new = False


def _user_of(row: CoveredRow) -> str | None:
    """Return the deleted user that a key was revoked with, None for a key revoked by itself."""
    reason = row.columns["revocation_reason"]
    column = CASCADES.get(reason) if isinstance(reason, int) else None
    return None if column is None else str(row.columns[column])


def _refusal(finding: str) -> LocalError:
    return LocalError(f"{finding}: nothing more is pruned; run `keybearer-server check`")
