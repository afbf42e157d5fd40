"""Bugs to plant, each a small wrong variant of the store. A harness that misses one proves nothing.

Subclasses of the real store, put in its place by `run_with_bugs` in its own process, or by a test
in its own process. Nothing of the product knows them.
"""

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, RLock
from typing import Any, cast

from keybearer._wire.enums import AuditAction
from keybearer_service.domain.audit_event import AuditRecord
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import ApiKey, SecretId, StoredSecret
from keybearer_service.storage import Foreseen, Reader, Writer, dbapi
from keybearer_service.storage.sqlite import SqliteStore


class AnswersBeforeCommit(SqliteStore):
    """Leaves the transaction open when it answers; the next one commits it."""

    @contextmanager
    def _transaction(self) -> Generator[None, None, None]:
        with self._write_lock:
            if self._writer.in_transaction:
                self._writer.execute("COMMIT")
        with super()._transaction():
            yield

    def _commit(self, connection: dbapi.Connection | None = None) -> None:
        """Later."""


class AuditsApart(SqliteStore):
    """Writes the audit events in a transaction after that of the change."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._both = RLock()
        super().__init__(*arguments, **keywords)

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        held_back: list[tuple[Any, ...]] = []
        with self._both:
            with super().write(foreseen) as tx:
                proxy = Replaced(tx, append_audit=lambda *event: held_back.append(event))
                yield cast("Writer", proxy)
            time.sleep(0.002)  # what a second transaction may take on a slower disk
            with super().write() as tx:
                for event in held_back:
                    tx.append_audit(*event)


class _Stopping(SqliteStore):
    """No bug: stands still for ever at a change of some kinds, so that it is killed there."""

    stops_at: frozenset[AuditAction] = frozenset()
    is_after = True
    """Whether it stands still after the commit, which nobody hears of, or right before it."""

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        written: set[int] = set()
        with super().write(foreseen) as tx:

            def note(record: AuditRecord, found_by: Sequence[str] = ()) -> None:
                written.add(record.action)
                tx.append_audit(record, found_by)

            yield cast("Writer", Replaced(tx, append_audit=note))
            if not self.is_after:
                self._stop_at(written)
        self._stop_at(written)

    def _stop_at(self, written: set[int]) -> None:
        if written & self.stops_at:
            sys.stderr.write(f"{json.dumps({'event': STANDS_STILL})}\n")
            sys.stderr.flush()
            Event().wait()


class SynchronousNormal(SqliteStore):
    """Does not wait for the disk at COMMIT."""

    def _connect(self, *, read_only: bool = False) -> dbapi.Connection:
        connection = super()._connect(read_only=read_only)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection


class SmallWal(SqliteStore):
    """No bug: folds the log into the database often, so that a short run sees it happen."""

    def _connect(self, *, read_only: bool = False) -> dbapi.Connection:
        connection = super()._connect(read_only=read_only)
        if not read_only:
            connection.execute("PRAGMA wal_autocheckpoint = 40")
        return connection


class KeepsFreedPages(SqliteStore):
    """Leaves what was deleted in the free space of its pages."""

    def _connect(self, *, read_only: bool = False) -> dbapi.Connection:
        connection = super()._connect(read_only=read_only)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection


class ClaimsByReading(SqliteStore):
    """Looks whether a secret can be issued again, and leaves the writing to `add_uses`."""

    def claim_uses(self, secrets: Sequence[SecretId], now: Micros) -> bool:
        records, _ = self.lookup_many([secret.key_id for secret in secrets])
        return all(records[one.key_id].secret_version == one.version for one in secrets)


class ReissuesByReading(SqliteStore):
    """Issues a secret again because it was read to be unused."""

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        with super().write(foreseen) as tx:

            def replace(key: ApiKey, current: StoredSecret, old: StoredSecret | None) -> bool:
                tx.replace_secret(key, current, old)
                return True

            yield cast("Writer", Replaced(tx, replace_unused_secret=replace))


class Replaced:
    """Something with some of its methods replaced."""

    def __init__(self, original: object, **methods: Callable[..., Any]) -> None:
        self._original = original
        self._methods = methods

    def __getattr__(self, name: str) -> Any:
        return self._methods.get(name) or getattr(self._original, name)


class StaleReads:
    """A store whose writers get some answers from before their transaction began."""

    def __init__(self, store: SqliteStore, *names: str) -> None:
        self._store = store
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self, foreseen: Foreseen = ()) -> Iterator[Writer]:
        with self._store.read() as before:
            before.installation()  # a snapshot begins with its first read
            with self._store.write(foreseen) as tx:
                stale = {name: self._once_stale(before, tx, name) for name in self._names}
                yield cast("Writer", Replaced(tx, **stale))

    @staticmethod
    def _once_stale(before: Reader, tx: Writer, name: str) -> Callable[..., Any]:
        asked: set[tuple[Any, ...]] = set()

        def read(*arguments: Any) -> Any:
            known = None if arguments in asked else getattr(before, name)(*arguments)
            asked.add(arguments)
            return getattr(tx, name)(*arguments) if known is None else known

        return read


def _stopping(action: AuditAction, *, is_after: bool) -> type[SqliteStore]:
    return type("Stopping", (_Stopping,), {"stops_at": {action}, "is_after": is_after})


STANDS_STILL = "stands_still"
"""The event that a store logs where it stops."""


def stop(when: str, action: AuditAction) -> str:
    """Return the name of the store that stands still `before` or `after` a change is committed."""
    return f"stop-{when}-{action.name}"


STORES: dict[str, tuple[type[SqliteStore], ...]] = {
    "answer-before-commit": (AnswersBeforeCommit,),
    "audit-apart": (AuditsApart,),
    "synchronous-normal": (SynchronousNormal,),
    "small-wal": (SmallWal,),
    "keep-freed-pages": (KeepsFreedPages,),
    "claims-by-reading": (ClaimsByReading,),
    "reissues-by-reading": (ReissuesByReading,),
    **{
        stop(when, action): (_stopping(action, is_after=when == "after"),)
        for action in AuditAction
        for when in ("before", "after")
    },
}
"""The store variants by name; several of them are put on top of each other."""


def store_with(names: list[str]) -> type[SqliteStore]:
    """Return a store class with these variants."""
    bases = [base for name in names for base in STORES.get(name, ())]
    return type("DoctoredStore", tuple(bases), {}) if bases else SqliteStore
