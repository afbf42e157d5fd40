"""Bounds on how often a peer may do something, or be told of."""

import threading
from dataclasses import dataclass

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import Overloaded

PER_PEER = 20.0
IN_ALL = 100.0
"""Well-formed tokens a second that open nothing at RevokeToken, of one peer and of all: section 3
of the wire contract."""
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

    def __init__(
        self,
        clock: Clock,
        per_peer: float = PER_PEER,
        in_all: float = IN_ALL,
        *,
        max_peers: int = MAX_PEERS,
    ) -> None:
        """Create the limiter.

        Args:
            clock: Measures the calls.
            per_peer: Calls a second of one peer.
            in_all: Calls a second of all peers.
            max_peers: How many peers are remembered.
        """
        self._clock = clock
        self._per_peer = per_peer
        self._in_all = in_all
        self._max_peers = max_peers
        self._all = _Bucket(in_all, clock.monotonic())
        self._peers: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    @property
    def peers(self) -> int:
        """How many peers are remembered."""
        return len(self._peers)

    def admit(self, peer: str) -> None:
        """Count one call.

        Raises:
            Overloaded: This peer, or everybody together, has called too often.
        """
        now = self._clock.monotonic()
        with self._lock:
            if len(self._peers) >= self._max_peers:
                self._peers = {
                    name: bucket
                    for name, bucket in self._peers.items()
                    if now - bucket.filled_at < 1
                }
            bucket = self._peers.setdefault(peer, _Bucket(self._per_peer, now))
            if not bucket.take(now, self._per_peer) or not self._all.take(now, self._in_all):
                raise Overloaded


class ConcurrencyLimit:
    """How many of something there may be at a time: in all, and of any one."""

    def __init__(self, *, in_all: int, of_one: int) -> None:
        self._in_all = in_all
        self._of_one = of_one
        self._held: dict[str, int] = {}
        self._total = 0
        self._lock = threading.Lock()

    def acquire(self, name: str) -> None:
        """Count one more of `name`.

        Raises:
            Overloaded: There are too many.
        """
        with self._lock:
            held = self._held.get(name, 0)
            if held >= self._of_one or self._total >= self._in_all:
                raise Overloaded("too many open streams; try again later")
            self._held[name] = held + 1
            self._total += 1

    def release(self, name: str) -> None:
        """Count one less."""
        with self._lock:
            held = self._held.pop(name) - 1
            if held:
                self._held[name] = held
            self._total -= 1
