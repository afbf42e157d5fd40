"""When keys were last used and how often: counted in memory, written every few seconds.

Counting is no part of a verdict: it neither fails nor delays one, and it changes nothing of a key
but its usage columns. A crash loses a few seconds of counts. The one exception is the first use of
a young secret, which the store has to know of before it is answered: a secret that was used must
never be issued again.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog

from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import SecretId, Use
from keybearer_service.domain.verdict import Match
from keybearer_service.storage import (
    CLAIMED_FOR,
    Store,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)
from keybearer_service.telemetry.log_quotas import OutageLog

log = structlog.get_logger(__name__)

FLUSH_INTERVAL_S = 5.0
CLAIM_RETRY_S = 0.5
"""How soon a first use is written again that the store was too full for."""
MAX_PENDING = 200_000
"""Secrets with unwritten uses; beyond, counts are dropped, so that memory stays bounded."""
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
        self._owes_claims = False
        self._outage = OutageLog("usage_not_written")
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

    def add(self, match: Match, now: Micros) -> bool:
        """Count one use, before it is answered.

        The first use of a young secret waits for the store: see `needs_claim`.

        Returns:
            Whether it counts. False when the secret was issued again meanwhile: judge again, from a
            fresh read.

        Raises:
            StoreError: The store is busy, maybe with issuing this very secret again.
        """
        is_first = needs_claim(match, now)
        if is_first and not self._claim([match], now):
            return False
        self._notes.append((match.record.key_id, match.secret_version, now))
        if is_first:
            self._wake.set()
        return True

    def add_all(self, matches: Sequence[Match], now: Micros) -> bool:
        """Count uses that are answered together; see `add`. It counts all of them or none."""
        young = [match for match in matches if needs_claim(match, now)]
        if young and not self._claim(young, now):
            return False
        self._notes.extend((match.record.key_id, match.secret_version, now) for match in matches)
        if young:
            self._wake.set()
        return True

    def _claim(self, matches: Sequence[Match], now: Micros) -> bool:
        secrets = list({SecretId(one.record.key_id, one.secret_version) for one in matches})
        try:
            return self._store.claim_uses(secrets, now)
        except (StoreFullError, StoreReadOnlyError):
            # Nothing can be issued in such a store either. The use is written with the counts, as
            # soon as there is room.
            self._owes_claims = True
            return True

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
            self._outage.failed(error)
        else:
            self._outage.recovered()

    def write(self) -> None:
        """Write what was counted so far.

        Raises:
            StoreError: The store refuses it; it is kept for the next time.
        """
        with self._flush_lock:
            owed, self._owes_claims = self._owes_claims, False
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
                    self._owes_claims |= owed
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
            self._wake.wait(CLAIM_RETRY_S if self._owes_claims else self._flush_interval_s)
            self._wake.clear()
            self._survive(self.flush)

    @staticmethod
    def _survive(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # the writer goes on after an unforeseen error; it is logged
            log.exception("usage_writer_failed")


def needs_claim(match: Match, now: Micros) -> bool:
    """Return whether a use is the first one that is known of a secret that may be issued again.

    Counting it waits for the store, so it is done neither on the hub's thread nor on a loop.
    """
    record = match.record
    return (
        match.is_current
        and not record.secret_used
        and now - record.secret_create_time < CLAIMED_FOR
    )
