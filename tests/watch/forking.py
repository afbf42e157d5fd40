"""A program that forks while its verifier follows the stream; `test_caching` uses it over pipes.

It runs in a process of its own, because grpc does not support a fork beside a server, and the
process of the tests runs one.
"""

import json
import os
import sys
import time

from keybearer import CachingVerifier, KeybearerClient, Presented

TIMEOUT_S = 30.0


def main(address: str) -> None:
    """Read the caller's token and the one to check; print what child and parent saw, in JSON."""
    caller, token = sys.stdin.readline().strip(), sys.stdin.readline().strip()
    with CachingVerifier(KeybearerClient(address, token=caller, tls=False)) as verifier:
        ready = verifier.wait_for_lease(TIMEOUT_S) and verifier.verify(Presented(token)).valid
        pid = os.fork()
        if pid == 0:
            _say(
                [
                    ready,
                    verifier.stats().entries,
                    verifier.wait_for_lease(TIMEOUT_S),
                    verifier.verify(Presented(token)).valid,
                    verifier.verify(Presented(token)).valid,
                ]
            )
            _say([_hears(verifier, token)])
            os._exit(0)
        os.waitpid(pid, 0)
        _say([_hears(verifier, token)])


def _hears(verifier: CachingVerifier, token: str) -> bool:
    until = time.monotonic() + TIMEOUT_S
    while verifier.verify(Presented(token)).valid and time.monotonic() < until:
        time.sleep(0.001)
    return verifier.stats().invalidations > 0 and verifier.stats().lease_held


def _say(facts: list[object]) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
