"""A load of checks that remembers when the last allowed one began.

`python -m watch.load ADDRESS` is a client that a test can stop and continue. It reads its own
token, then one token a line. For each token it prints `cached`, checks it until a line `stop`
comes, and prints when the last allowed check began, in nanoseconds of the clock of the lease.
"""

import sys
import threading
import time
from dataclasses import dataclass, field

from keybearer import CachingVerifier, KeybearerClient, Presented
from keybearer._cache.caching import now_ns
from keybearer.errors import VerifierUnavailableError

PAUSE_S = 0.002


@dataclass
class Load:
    """Checks one token with a verifier, on several threads, until `stop`."""

    verifier: CachingVerifier
    token: str
    threads: int = 2
    last_allowed: int = 0
    """When the last allowed check began."""
    checks: int = 0
    unavailable: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for _ in range(self.threads):
            thread = threading.Thread(target=self._run, daemon=True)
            self._running.append(thread)
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = now_ns()
            try:
                allowed = self.verifier.verify(Presented(self.token)).valid
            except VerifierUnavailableError:
                self.unavailable += 1
                allowed = False
            self.checks += 1
            if allowed:
                self.last_allowed = max(self.last_allowed, began)
            time.sleep(PAUSE_S)


def warm(verifier: CachingVerifier, token: str) -> bool:
    """Make a verifier keep the verdict about a token, and return whether it does."""
    if not verifier.wait_for_lease(20):
        return False
    for _ in range(100):
        before = verifier.stats().hits
        verifier.verify(Presented(token))
        verifier.verify(Presented(token))
        if verifier.stats().hits > before:
            return True
        time.sleep(0.05)
    return False


def main() -> None:
    """Follow the protocol of the module's docstring."""
    client = KeybearerClient(sys.argv[1], token=sys.stdin.readline(), tls=False)
    with CachingVerifier(client) as verifier:
        while token := sys.stdin.readline().strip():
            assert warm(verifier, token)
            load = Load(verifier, token)
            load.start()
            sys.stdout.write("cached\n")
            sys.stdout.flush()
            sys.stdin.readline()
            load.stop()
            sys.stdout.write(f"{load.last_allowed}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
