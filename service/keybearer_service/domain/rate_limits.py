"""Bounds on how often a peer may do something, or be told of."""

import threading
from dataclasses import dataclass

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import Overloaded

MINUTE_S = 60.0

PER_PEER = 20.0
IN_ALL = 100.0
"""RevokeToken calls a second, of one peer and of all: section 3 of the wire contract."""
MAX_PEERS = 10_000
"""Peers remembered; beyond, those that have been quiet are forgotten."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float

    def take(self, now: float, rate: float) -> bool:
        self.tokens = min(rate, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class PeerLimiter:
    """A token bucket for each peer and one for all; bursts of one second's worth are fine."""

    def __init__(self, clock: Clock, per_peer: float = PER_PEER, in_all: float = IN_ALL) -> None:
        """Take the rates, in calls a second."""
        self._clock = clock
        self._per_peer = per_peer
        self._in_all = in_all
        self._all = _Bucket(in_all, clock.monotonic())
        self._peers: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def admit(self, peer: str) -> None:
        """Count one call.

        Raises:
            Overloaded: This peer, or everybody together, has called too often.
        """
        now = self._clock.monotonic()
        with self._lock:
            if len(self._peers) >= MAX_PEERS:
                self._peers = {
                    name: bucket
                    for name, bucket in self._peers.items()
                    if now - bucket.filled_at < 1
                }
            bucket = self._peers.setdefault(peer, _Bucket(self._per_peer, now))
            if not bucket.take(now, self._per_peer) or not self._all.take(now, self._in_all):
                raise Overloaded


@dataclass(slots=True)
class _Window:
    start: float
    told: int = 0
    untold: int = 0


class MinuteQuota:
    """So many a minute for each key; the rest is counted, and the count is handed out later."""

    def __init__(self, clock: Clock, quota: int) -> None:
        """Take how many a minute are admitted for each key."""
        self._clock = clock
        self._quota = quota
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def admit(self, key: str) -> bool:
        """Tell whether one more may be told of now; counts it when not."""
        now = self._clock.monotonic()
        with self._lock:
            window = self._windows.get(key)
            if window is None or (now - window.start >= MINUTE_S and not window.untold):
                if len(self._windows) >= MAX_PEERS:
                    return False
                window = self._windows[key] = _Window(now)
            if window.told < self._quota:
                window.told += 1
                return True
            window.untold += 1
            return False

    def collect(self, *, everything: bool = False) -> dict[str, int]:
        """Answer, and forget, what was counted and not told in minutes that are over, by key.

        Args:
            everything: Of the running minutes too; for shutting down.
        """
        now = self._clock.monotonic()
        with self._lock:
            over = {
                key: window
                for key, window in self._windows.items()
                if everything or now - window.start >= MINUTE_S
            }
            for key in over:
                del self._windows[key]
        return {key: window.untold for key, window in over.items() if window.untold}
