"""What a running service does once a minute, without a call."""

import threading
from collections.abc import Sequence
from typing import Protocol

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.storage import Store, StoreError
from keybearer_service.telemetry.log_quotas import OutageLog

log = structlog.get_logger(__name__)

INTERVAL_S = 60.0
PRUNE_BATCH = 1000
"""Rows of a table that are deleted in one write, so that no change waits long behind it."""


class Flushable(Protocol):
    """Counts what it does not log or audit one by one."""

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log or audit the counts of the minutes that are over; `everything` at the end."""
        ...


class Housekeeper:
    """Flushes counts, prunes the store and logs the audit head, on a thread of its own."""

    def __init__(self, store: Store, flushables: Sequence[Flushable], clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._flushables = flushables
        self._stopping = threading.Event()
        self._outage = OutageLog("housekeeping_stands")
        self._logged_seq = 0
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the turn that runs, then flush everything for the last time."""
        self.abandon()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self.flush(everything=True)
        except StoreError as error:
            # What was not flushed is in the store or lost; the end is in order all the same.
            log.warning("last_flush_failed", cause=type(error).__name__)

    def abandon(self) -> None:
        """Begin no further turn, and flush nothing more."""
        self._stopping.set()

    def flush(self, *, everything: bool = False) -> None:
        """Do one turn.

        Args:
            everything: Flush the counts of the running minute too.

        Raises:
            StoreError: The head of the chain cannot be read, or the store cannot be pruned.
        """
        for flushable in self._flushables:
            flushable.flush_suppressed(everything=everything)
        with self._store.read() as reader:
            seq, head = reader.audit_head()
        if seq != self._logged_seq:
            # Kept outside the database, a head proves that the end of the log was not cut off.
            self._logged_seq = seq
            log.info("audit_head", seq=seq, hash=head.hex())
        while not self._stopping.is_set() and self._store.prune(self._clock.now(), PRUNE_BATCH):
            pass

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL_S):
            try:
                self.flush()
                self._outage.recovered()
            except StoreError as error:
                self._outage.failed(error)
            except Exception:  # the thread goes on after an error that nobody foresaw
                log.exception("housekeeping_failed")
