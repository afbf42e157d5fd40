"""Measurements of a run: printed, and appended to the file that KEYBEARER_MEASUREMENTS names."""

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def spread(seconds: Sequence[float]) -> str:
    """Describe durations: p50, p99 and maximum in milliseconds, and their number."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, "
        f"max {ordered[-1] * 1000:.1f} ms, N {len(ordered)}"
    )


def note(line: str) -> None:
    """Report a measurement."""
    sys.stdout.write(line + "\n")
    path = os.environ.get("KEYBEARER_MEASUREMENTS")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
