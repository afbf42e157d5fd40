"""What the metrics show of the state of a running service."""

from collections.abc import Callable, Mapping

from keybearer_service.container import Container
from keybearer_service.domain.clock import DAY, Micros, after
from keybearer_service.storage import FileStore, ServerStore, Store
from keybearer_service.telemetry import logs

DAYS_TO_EXPIRY = (1, 7, 30, 90, 365)
"""Live keys are counted in the spans between these, and beyond, and without an expiry."""


def service_gauges(container: Container, queued_calls: Callable[[], int]) -> dict[str, float]:
    """Return the gauges that are read every second.

    Args:
        container: The running service.
        queued_calls: Returns how many validations wait for a thread.
    """
    store = container.store
    told = container.watches.told_revision
    revision = container.validator.revision()
    return {
        "queued_calls": queued_calls(),
        "queued_uses": container.usage.pending,
        "log_lines_dropped": logs.dropped_lines(),
        "store_bytes": store.size_bytes if isinstance(store, FileStore) else 0,
        "store_revision": revision,
        "clock_offset_seconds": store.clock_offset_s if isinstance(store, ServerStore) else 0,
        "watch_streams": container.watches.watchers,
        "watch_lag_revisions": revision - told if told else 0,
    }


def live_keys_by_expiry(store: Store, now: Micros) -> Mapping[str, int]:
    """Return how many keys are neither revoked nor expired, by days until they expire."""
    with store.read() as reader:
        *up_to, expiring, everything = reader.live_keys(
            now, [after(now, days * DAY) for days in DAYS_TO_EXPIRY]
        )
    counts = {}
    before, least = 0, 0
    for days, count in zip(DAYS_TO_EXPIRY, up_to, strict=True):
        counts[f"{least}-{days}"] = count - before
        before, least = count, days
    return {**counts, f"{least}+": expiring - before, "never": everything - expiring}
