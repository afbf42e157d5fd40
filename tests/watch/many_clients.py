"""Many clients in one process: `python -m watch.many_clients ADDRESS CLIENTS PAUSE_SECONDS`.

The program reads its own token and then, on one line, the tokens to check. Each client has a
CachingVerifier of its own and checks every token in turn; a few threads serve all clients. The
program prints `warm`, then answers each line with one line of JSON: the questions to the server,
the checks, the checks without a verdict, the clients that hold a lease, and when a check was last
allowed.
"""

import json
import sys
import threading
import time
from concurrent import futures

from keybearer import CachingVerifier, KeybearerClient, Presented
from keybearer.errors import VerifierUnavailableError

CHECKERS = 4


class ManyClients:
    """The clients and their counts."""

    def __init__(
        self, address: str, own: str, tokens: list[str], clients: int, pause: float
    ) -> None:
        self._tokens = tokens
        self._pause = pause
        self.verifiers = [
            CachingVerifier(KeybearerClient(address, token=own, tls=False), timeout=1)
            for _ in range(clients)
        ]
        self.checks = self.allowed = self.unavailable = 0
        self.last_allowed = 0.0
        self._stop = threading.Event()

    def warm(self) -> None:
        with futures.ThreadPoolExecutor(16) as pool:
            assert all(pool.map(lambda one: one.wait_for_lease(60), self.verifiers))
            list(pool.map(self._check_all, self.verifiers))

    def run(self) -> None:
        for part in range(CHECKERS):
            threading.Thread(target=self._run, args=(part,), daemon=True).start()

    def questions(self) -> int:
        return sum(verifier.stats().misses for verifier in self.verifiers)

    def leases(self) -> int:
        return sum(verifier.stats().lease_held for verifier in self.verifiers)

    def close(self) -> None:
        self._stop.set()
        with futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(CachingVerifier.close, self.verifiers))

    def _run(self, part: int) -> None:
        mine = self.verifiers[part::CHECKERS]
        number = 0
        while not self._stop.wait(self._pause / max(1, len(mine))):
            self._check(
                mine[number % len(mine)], self._tokens[number // len(mine) % len(self._tokens)]
            )
            number += 1

    def _check_all(self, verifier: CachingVerifier) -> None:
        for token in self._tokens:
            self._check(verifier, token)

    def _check(self, verifier: CachingVerifier, token: str) -> None:
        began = time.monotonic()
        try:
            allowed = verifier.verify(Presented(token)).valid
        except VerifierUnavailableError:
            self.unavailable += 1
            return
        self.checks += 1
        if allowed:
            self.allowed += 1
            self.last_allowed = max(self.last_allowed, began)


def main() -> None:
    """Follow the protocol of the module's docstring."""
    own, tokens = sys.stdin.readline(), sys.stdin.readline().split()
    clients = ManyClients(sys.argv[1], own, tokens, int(sys.argv[2]), float(sys.argv[3]))
    clients.warm()
    clients.run()
    sys.stdout.write("warm\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        report = {
            "questions": clients.questions(),
            "checks": clients.checks,
            "unavailable": clients.unavailable,
            "leases": clients.leases(),
            "last_allowed": clients.last_allowed,
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()
    clients.close()


if __name__ == "__main__":
    main()
