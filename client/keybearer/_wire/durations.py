"""Durations as people write them on a command line: `90s`, `15m`, `1h`, `30d`, `1h30m`."""

import re
from datetime import timedelta

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_WHOLE = re.compile(r"(\d{1,9}[smhdw])+", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Return a duration.

    Raises:
        ValueError: The text is no duration; the message says what is right.
    """
    compact = text.strip().lower()
    if _WHOLE.fullmatch(compact) is None:
        raise ValueError(f"{text!r} is not a duration; write 90s, 15m, 1h, 30d or 1h30m")
    try:
        return timedelta(
            seconds=sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
        )
    except OverflowError:
        raise ValueError(f"{text!r} is too long") from None
