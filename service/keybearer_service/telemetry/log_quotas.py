"""How much is logged or audited one by one; the rest is counted."""

import threading
from dataclasses import dataclass

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.rate_limits import MAX_PEERS

MINUTE_S = 60.0


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
