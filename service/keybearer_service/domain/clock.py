"""Time and randomness: the only module that asks the machine for either."""

import time
from datetime import UTC, datetime
from typing import Protocol

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


class SystemClock:
    """The clocks of the machine."""

    def now(self) -> int:
        """Answer microseconds since the epoch."""
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        """Answer seconds on the monotonic clock."""
        return time.monotonic()
