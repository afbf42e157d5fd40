"""What watchers answered from their caches, counted as uses of the keys.

A report is only as good as the watcher that sends it, so nothing here is taken at its word.
"""

import queue
import threading
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.verdict import Caller, TokenRecord
from keybearer_service.storage import Store, StoreError
from keybearer_service.usecases.access import question_reach_of
from keybearer_service.validation.usage import UsageRecorder

log = structlog.get_logger(__name__)

MAX_USES = 1_000_000
_BACKLOG = 64
_NO_SECRET = 0
"""Stands for a secret that is not told apart; versions begin with 1."""


class UsageItem(NamedTuple):
    """Uses of one secret that a watcher reports."""

    key_id: str
    secret_version: int
    last_used_time: int
    uses: int


class UsageReport(NamedTuple):
    """One message of them."""

    size: int
    items: Iterable[UsageItem]
    """To be gone through once, by the thread that counts them."""


class UsageIngest:
    """Counts the uses that watchers report, on a thread of its own: a decision never waits for it.

    No decision reads them either: a secret that was never seen to work by the server itself stays
    unused, so that a report can not keep a lost answer from being issued again.
    """

    def __init__(self, store: Store, usage: UsageRecorder, clock: Clock) -> None:
        self._store = store
        self._usage = usage
        self._clock = clock
        self._inbox: queue.Queue[tuple[Caller, UsageReport] | None] = queue.Queue(_BACKLOG)
        self._thread = threading.Thread(target=self._run, name="watch-usage", daemon=True)

    def start(self) -> None:
        """Begin to count."""
        self._thread.start()

    def put(self, caller: Caller, report: UsageReport) -> None:
        """Take a report, or drop it and log that, when too many wait."""
        try:
            self._inbox.put_nowait((caller, report))
        except queue.Full:
            log.warning("usage_report_dropped", key_id=caller.key_id, items=report.size)

    def stop(self) -> None:
        """Count what waits, and end."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            try:
                self._count(*item)
            except StoreError as error:
                log.warning("usage_report_lost", cause=type(error).__name__)
            except Exception:  # the thread outlives what it cannot foresee; it is logged
                log.exception("usage_report_failed")

    def _count(self, caller: Caller, report: UsageReport) -> None:
        items = list(report.items)
        records, _ = self._store.lookup_many(list({item.key_id for item in items}))
        scope = question_reach_of(caller)
        now = self._clock.now()
        for item in items:
            record = records.get(item.key_id)
            if record is None or record.revoke_time is not None:
                continue
            if not scope.covers(record.account_id):
                continue
            self._usage.add_many(
                item.key_id,
                _secret_of(record, item.secret_version),
                # The store keeps it from being before the key's create_time.
                min(item.last_used_time, now),
                min(max(item.uses, 1), MAX_USES),
            )


def _secret_of(record: TokenRecord, version: int) -> int:
    if version == record.secret_version and record.secret_used:
        return version
    return version if version == record.old_secret_version else _NO_SECRET
