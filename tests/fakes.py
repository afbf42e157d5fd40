"""Small real classes that stand in for the machine's clock and randomness."""

import random
import threading

from keybearer._wire.token_format import BASE62
from keybearer_service.domain.clock import SECOND, Micros

START = Micros(1_700_000_000 * SECOND)
"""2023-11-14T22:13:20Z: an instant with nothing special about it."""


def at(span: int) -> Micros:
    """Return the moment that many microseconds after START."""
    return Micros(START + span)


class FakeClock:
    """A clock that moves when told to."""

    def __init__(self, now: Micros = START) -> None:
        self._now = now
        self._monotonic = 0.0
        self._lock = threading.Lock()

    def now(self) -> Micros:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def advance(self, micros: int) -> None:
        """Let time pass on both clocks."""
        with self._lock:
            self._now = Micros(self._now + micros)
            self._monotonic += micros / SECOND


class SeededEntropy:
    """Randomness that comes out the same for the same seed. Never for anything real."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def base62(self, length: int) -> str:
        with self._lock:
            return "".join(self._random.choices(BASE62, k=length))

    def key_bytes(self, length: int) -> bytes:
        with self._lock:
            return self._random.randbytes(length)
