"""When keys were last used and how often: counted in memory, written every few seconds.

Counting is never part of a verdict: it cannot fail or delay one, and it changes nothing of a key
but its usage columns. A crash loses a few seconds of counts.
"""

import threading
from collections import deque
from collections.abc import Callable

import structlog

from keybearer_service.domain.clock import MINUTE, Micros
from keybearer_service.domain.model import Use
from keybearer_service.domain.verdict import Match
from keybearer_service.storage import Store, StoreError

log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S = 5.0
MAX_PENDING = 200_000
"""Secrets with unwritten uses; beyond, counts are dropped, so that memory stays bounded."""
YOUNG = 10 * MINUTE
"""A secret younger than this may be issued again, unless the store knows of a use of it."""
MAX_NOTES = 500_000
"""Uses noted and not yet counted; beyond, the oldest are dropped. A process that judges nothing but
batches notes some 70,000 a second."""
BATCH = 2_000
"""Uses in one write, so that no change waits long behind it."""


class UsageRecorder:
    """Counts uses, and writes them on a thread of its own."""

    def __init__(
        self,
        store: Store,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        *,
        max_pending: int = MAX_PENDING,
        max_notes: int = MAX_NOTES,
        batch: int = BATCH,
    ) -> None:
        """Create a recorder; `start` begins to write to the store."""
        self._store = store
        self._flush_interval_s = flush_interval_s
        self._max_pending = max_pending
        self._batch = batch
        # Every validation adds two uses, so `add` only notes them, in one step of the interpreter.
        # They are counted when they are written, or when somebody reads how many there are.
        self._notes: deque[tuple[str, int, Micros]] = deque(maxlen=max_notes)
        self._pending: dict[tuple[str, int], tuple[Micros, int]] = {}
        self._lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)

    def start(self) -> None:
        """Start to write every few seconds."""
        self._thread.start()

    @property
    def pending(self) -> int:
        """How many secrets have uses that are not written yet."""
        with self._lock:
            self._count_notes()
            return len(self._pending)

    def add(self, match: Match, now: Micros) -> None:
        """Count one use; the first success of a young secret is written at once."""
        record = match.record
        self._notes.append((record.key_id, match.secret_version, now))
        if match.is_current and not record.secret_used and now - record.secret_create_time < YOUNG:
            self._wake.set()

    def add_many(
        self, key_id: str, secret_version: int, last_used_time: Micros, count: int
    ) -> None:
        """Count several uses of one secret."""
        with self._lock:
            self._count(key_id, secret_version, last_used_time, count)

    def flush(self) -> None:
        """Write what was counted so far; what the store refuses is kept for the next time."""
        try:
            self.write()
        except StoreError as error:
            log.warning("usage_not_written", cause=type(error).__name__)

    def write(self) -> None:
        """Write what was counted so far.

        Raises:
            StoreError: The store refuses it; it is kept for the next time.
        """
        with self._flush_lock:
            with self._lock:
                self._count_notes()
                pending, self._pending = self._pending, {}
            uses = [Use(*key, *counted) for key, counted in pending.items()]
            for start in range(0, len(uses), self._batch):
                try:
                    self._store.add_uses(uses[start : start + self._batch])
                except StoreError:
                    for use in uses[start:]:
                        self.add_many(*use)
                    raise

    def stop(self) -> None:
        """Write what is left, and end the thread."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self.flush()

    def _count_notes(self) -> None:
        for _ in range(len(self._notes)):
            self._count(*self._notes.popleft(), 1)

    def _count(self, key_id: str, secret_version: int, last_used_time: Micros, count: int) -> None:
        key = (key_id, secret_version)
        last, total = self._pending.get(key, (Micros(0), 0))
        if total or len(self._pending) < self._max_pending:
            self._pending[key] = (max(last, last_used_time), total + count)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._flush_interval_s)
            self._wake.clear()
            self._survive(self.flush)

    @staticmethod
    def _survive(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # the writer goes on after an unforeseen error; it is logged
            log.exception("usage_writer_failed")
