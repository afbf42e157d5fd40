"""How much is logged or audited one by one; the rest is counted."""

import threading
from dataclasses import dataclass

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.rate_limits import MAX_PEERS

log = structlog.get_logger(__name__)

MINUTE_S = 60.0


class OutageLog:
    """Logs when something begins to fail and when it works again, not every time that it fails."""

    def __init__(self, event: str) -> None:
        """Create the log of what `event` names."""
        self._event = event
        self._cause = ""

    def failed(self, error: Exception) -> None:
        """Log a failure, unless the last one had the same cause."""
        cause = type(error).__name__
        if cause != self._cause:
            self._cause = cause
            log.warning(self._event, cause=cause)

    def recovered(self) -> None:
        """Log that it works again, if it did not."""
        if self._cause:
            self._cause = ""
            log.info(self._event, is_over=True)


@dataclass(slots=True)
class _Window:
    start: float
    told: int = 0
    untold: int = 0


class MinuteQuota:
    """Admits so many a minute for each key, and counts the rest."""

    def __init__(self, clock: Clock, quota: int) -> None:
        self._clock = clock
        self._quota = quota
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def admit(self, key: str) -> bool:
        """Return whether one more may be logged now; count it when not."""
        now = self._clock.monotonic()
        with self._lock:
            window = self._windows.get(key)
            if window is None or (now - window.start >= MINUTE_S and not window.untold):
                if len(self._windows) >= MAX_PEERS:
                    return False
                window = self._windows[key] = _Window(now)
            if window.told < self._quota:
                window.told += 1
                return True
            window.untold += 1
            return False

    def collect(self, *, everything: bool = False) -> dict[str, int]:
        """Return, and forget, what was only counted in the minutes that are over, by key.

        Args:
            everything: Of the running minutes too; for shutting down.
        """
        now = self._clock.monotonic()
        with self._lock:
            over = {
                key: window
                for key, window in self._windows.items()
                if everything or now - window.start >= MINUTE_S
            }
            for key in over:
                del self._windows[key]
        return {key: window.untold for key, window in over.items() if window.untold}
