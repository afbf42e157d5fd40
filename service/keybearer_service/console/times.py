"""Moments as the pages show them: relative in lists, whole in details, in words."""

from datetime import UTC, datetime
from typing import Final

from keybearer_service.domain.clock import DAY, HOUR, MINUTE, SECOND, Micros

_UNITS: Final = (
    (365 * DAY, "year"),
    (30 * DAY, "month"),
    (DAY, "day"),
    (HOUR, "hour"),
    (MINUTE, "minute"),
)
_MONTHS_FROM: Final = 60 * DAY
"""Up to here days are counted: in 30 days says more than in 1 month."""


def span(micros: int) -> str:
    """Return how long a span is, in its largest unit: 3 hours."""
    for length, unit in _UNITS:
        if micros >= length and not (unit == "month" and micros < _MONTHS_FROM):
            count = micros // length
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return "less than a minute"


def relative(moment: Micros, now: Micros) -> str:
    """Return when something was or will be, seen from now: 3 hours ago, in 12 days."""
    if moment > now:
        return f"in {span(moment - now)}"
    past = now - moment
    return "just now" if past < MINUTE else f"{span(past)} ago"


def full(moment: Micros) -> str:
    """Return a moment as people write it, in UTC: May 10, 2026, 11:56 UTC."""
    utc = _datetime(moment)
    return f"{utc:%b} {utc.day}, {utc.year}, {utc:%H:%M} UTC"


def machine(moment: Micros) -> str:
    """Return a moment for the `datetime` of a `<time>`."""
    return f"{_datetime(moment):%Y-%m-%dT%H:%M:%SZ}"


def clock_time(moment: Micros) -> str:
    """Return the time of a day, in UTC: 10:03 UTC."""
    return f"{_datetime(moment):%H:%M} UTC"


def end_of_day(text: str) -> Micros | None:
    """Return the end, in UTC, of a day that is written as 2026-05-10; None for no such day."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return Micros(int(day.timestamp()) * SECOND + DAY)


def day_of(now: Micros) -> str:
    """Return the day of a moment, in UTC, as 2026-05-10."""
    return f"{_datetime(now):%Y-%m-%d}"


def _datetime(moment: Micros) -> datetime:
    return datetime.fromtimestamp(moment // SECOND, UTC)
