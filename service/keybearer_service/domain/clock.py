"""Time and randomness: the only module that asks the machine for either."""

import os
import secrets
import time
from datetime import UTC, datetime
from typing import Protocol

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The alphabet of ids, secrets and checksums, in the order of its digit values."""

SECOND = 1_000_000
"""One second in microseconds. Every time and duration inside the service is in microseconds."""
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def rfc3339(micros: int) -> str:
    """Write a moment for people and audit events: `2023-11-14T22:13:20Z`, fractions as needed."""
    moment = datetime.fromtimestamp(micros // SECOND, UTC).replace(microsecond=micros % SECOND)
    return moment.isoformat().replace("+00:00", "Z")


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> int:
        """Answer microseconds since 1970-01-01T00:00:00Z."""
        ...

    def monotonic(self) -> float:
        """Answer seconds on a clock that never steps, for measuring."""
        ...


class Entropy(Protocol):
    """Draws what nobody must guess."""

    def base62(self, length: int) -> str:
        """Draw `length` characters of BASE62, one by one, uniformly."""
        ...

    def key_bytes(self, length: int) -> bytes:
        """Draw `length` bytes."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def now(self) -> int:
        """Answer microseconds since the epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Answer seconds on the monotonic clock."""
        return time.monotonic()


class SystemEntropy:
    """The generator of the operating system."""

    def base62(self, length: int) -> str:
        """Draw `length` characters of BASE62."""
        return "".join(secrets.choice(BASE62) for _ in range(length))

    def key_bytes(self, length: int) -> bytes:
        """Draw `length` bytes."""
        return os.urandom(length)
