"""Checks in a loop, and when the last one that was allowed began.

As a program it is a client to be stopped and continued: `python -m watch.load ADDRESS` reads its
own token, then a token a line; for each it says `cached` and checks until a line `stop` comes, and
then says how many nanoseconds ago, on the clock of the lease, the last allowed check began.
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
    """Checks one token with a verifier until told to stop, on several threads."""

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
    """Make a verifier remember a token; tell whether it does."""
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
    """Follow the protocol above."""
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
