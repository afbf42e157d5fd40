"""What one process knows of young secrets: which are in use, and which it is issuing again.

Of a use and a reissue of one secret the later one must fail. Each notes its own under one lock and
looks for the other: whoever comes second sees the first.
"""

import threading
from collections.abc import Iterable

from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import SecretId
from keybearer_service.storage import CLAIMED_FOR


class FirstUses:
    """The young secrets of a store. Safe for use by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[SecretId, Micros] = {}
        self._replaced: set[SecretId] = set()

    def note(self, secrets: Iterable[SecretId], now: Micros) -> bool:
        """Note uses; return False, and note none, when the write that runs replaces a secret."""
        with self._lock:
            if self._replaced and not self._replaced.isdisjoint(secrets):
                return False
            for secret in secrets:
                self._used[secret] = now
            return True

    def replace(self, secret: SecretId) -> bool:
        """Note that the write that runs replaces a secret; return False when it is in use."""
        with self._lock:
            if secret in self._used:
                return False
            self._replaced.add(secret)
            return True

    def end_write(self) -> None:
        """Forget what the write has replaced: it has ended, and a read shows what it did."""
        if self._replaced:
            with self._lock:
                self._replaced.clear()

    def stored(self, secrets: Iterable[SecretId]) -> None:
        """Forget uses that were written to the store."""
        if self._used:
            with self._lock:
                for secret in secrets:
                    self._used.pop(secret, None)

    def prune(self, now: Micros) -> None:
        """Forget uses of secrets that are no longer young."""
        with self._lock:
            old = [secret for secret, since in self._used.items() if now - since > CLAIMED_FOR]
            for secret in old:
                del self._used[secret]
