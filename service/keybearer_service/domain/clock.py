"""Time and randomness: the only module that asks the machine for either."""

import time
from datetime import UTC, datetime
from typing import NewType, Protocol

Micros = NewType("Micros", int)
"""A moment: microseconds since 1970-01-01T00:00:00Z. Spans of time are plain microseconds."""

SECOND = 1_000_000
"""One second in microseconds."""
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def after(moment: Micros, span: int) -> Micros:
    """Return the moment that many microseconds after another one; before it for a negative span."""
    return Micros(moment + span)


def rfc3339(moment: Micros) -> str:
    """Return a moment as people and audit events show it: `2023-11-14T22:13:20Z`."""
    seconds, micros = divmod(moment, SECOND)
    utc = datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
    return utc.isoformat().replace("+00:00", "Z")


def pause(seconds: float) -> None:
    """Wait for that long, while the other threads of this process run."""
    time.sleep(seconds)


_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """The time, and a clock for measuring."""

    def now(self) -> Micros:
        """Return this moment."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never steps, and goes on while the machine sleeps."""
        ...


class SystemClock:
    """The clocks of the machine."""

    def now(self) -> Micros:
        """Return this moment."""
        return Micros(time.time_ns() // 1000)

    def monotonic(self) -> float:
        """Return seconds on the clock of the time since the machine was started."""
        return time.clock_gettime(_SINCE_BOOT)
