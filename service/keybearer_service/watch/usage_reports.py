"""The uses that watchers report: what they answered from their caches.

A report is only as good as the watcher that sends it, so every item is checked and clamped.
"""

import queue
import threading
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.verdict import Caller, TokenRecord
from keybearer_service.storage import MAX_USES, Store, StoreError
from keybearer_service.telemetry.log_quotas import OutageLog
from keybearer_service.usecases.access import question_reach_of
from keybearer_service.validation.usage import UsageRecorder

log = structlog.get_logger(__name__)

_BACKLOG = 64
_NO_SECRET = 0
"""Stands for a secret that is not counted apart; versions begin with 1."""


class UsageItem(NamedTuple):
    """Uses of one secret that a watcher reports."""

    key_id: str
    secret_version: int
    last_used_time: Micros
    uses: int


class UsageReport(NamedTuple):
    """One message of them."""

    size: int
    items: Iterable[UsageItem]
    """Iterated once, by the thread that counts them."""


class UsageIngest:
    """Counts the uses that watchers report, on a thread of its own: no decision waits for it.

    No decision reads them either: a secret that the server itself never saw in use stays unused, so
    that a report cannot keep a lost answer from being issued again.
    """

    def __init__(self, store: Store, usage: UsageRecorder, clock: Clock) -> None:
        self._store = store
        self._usage = usage
        self._clock = clock
        self._inbox: queue.Queue[tuple[Caller, UsageReport] | None] = queue.Queue(_BACKLOG)
        self._outage = OutageLog("usage_report_lost")
        self._thread = threading.Thread(target=self._run, name="watch-usage", daemon=True)

    def start(self) -> None:
        """Start the thread that counts."""
        self._thread.start()

    def put(self, caller: Caller, report: UsageReport) -> None:
        """Add a report to those that wait; drop and log it when too many do."""
        try:
            self._inbox.put_nowait((caller, report))
        except queue.Full:
            log.warning("usage_report_dropped", key_id=caller.key_id, items=report.size)

    def stop(self) -> None:
        """Count the reports that wait, and end the thread."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            try:
                self._count(*item)
                self._outage.recovered()
            except StoreError as error:
                self._outage.failed(error)
            except Exception:  # the thread goes on after an unforeseen error; it is logged
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
            # The store keeps the time from being before the key's create_time.
            used_at = min(item.last_used_time, now)
            self._usage.add_many(
                item.key_id,
                _reported_secret(record, item.secret_version, used_at),
                used_at,
                min(max(item.uses, 1), MAX_USES),
            )


def _reported_secret(record: TokenRecord, version: int, used_at: Micros) -> int:
    secret = record.secret_of(version, used_at)
    if secret is None or (secret.is_current and not record.secret_used):
        return _NO_SECRET
    return version
