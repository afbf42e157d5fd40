"""Figures of a run: printed, and written where KEYBEARER_FIGURES says."""

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path


def spread(seconds: Sequence[float]) -> str:
    """Say p50, p99, max and N in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, "
        f"max {ordered[-1] * 1000:.1f} ms, N {len(ordered)}"
    )


def note(line: str) -> None:
    """Tell a figure."""
    sys.stdout.write(line + "\n")
    path = os.environ.get("KEYBEARER_FIGURES")
    if path:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
