"""An echo service whose guard can be changed while it serves.

`python -m watch.echo ADDRESS` reads its own token from stdin and prints its port. Then it prints
one line of JSON for every line `BLOCKS SECONDS GUARD...`: the processor microseconds for each call
in each block, by guard.
"""

import hashlib
import itertools
import json
import random
import sys
import time
from concurrent import futures
from typing import Any

import grpc
from grpc import _interceptor

from keybearer import (
    AccessRule,
    AuthInterceptor,
    CachingVerifier,
    Identity,
    KeybearerClient,
    Presented,
    Role,
    Verdict,
)
from keybearer._cache.caching import now_ns
from keybearer._guard.identity import enter_identity

PATH = "/test.Echo/Echo"
RULE = AccessRule(role=Role.DEVELOPER, scopes=("clusters.read",))
SETTLING = 0.15
"""The share of a turn that is not counted: calls that began before it still end."""
WASTE = 0.0005
"""Seconds that the planted guard wastes on a call: more than an unguarded call costs."""


class Echo:
    """The service, and what it did.

    There is one server for all guards, because two servers differ by more than a guard costs.

    Args:
        guards: Interceptors by name.
        seed: For the order of the turns.
    """

    def __init__(self, guards: dict[str, list[Any]], seed: int) -> None:
        self._calls = itertools.count()
        self._random = random.Random(seed)
        handler: Any = grpc.unary_unary_rpc_method_handler(self._echo)
        self._server: Any = grpc.server(
            futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)]
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),)
        )
        # What `grpc.server` makes of its interceptors. There is no public way to change them.
        self._pipelines: dict[str, Any] = {
            name: _interceptor.service_pipeline(interceptors)
            for name, interceptors in guards.items()
        }
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def measure(self, blocks: int, seconds: float, guards: list[str]) -> dict[str, list[float]]:
        """Return the processor time of a call, in microseconds, of each guard in each block.

        A client calls meanwhile. Processor time is measured, of all threads of the process, because
        a rate wavers with whatever else runs on the machine.
        In a block, each guard has one turn of `seconds`, in random order, so that a drift of the
        machine favours none. The first block is not counted: the client's calls begin in it.
        """
        costs: dict[str, list[float]] = {name: [] for name in guards}
        for _ in range(1 + blocks):
            for name in self._random.sample(guards, len(guards)):
                state = self._server._state  # noqa: SLF001 - swaps the guard of a running server
                state.interceptor_pipeline = self._pipelines[name]
                time.sleep(seconds * SETTLING)
                before, began = next(self._calls), time.process_time()
                time.sleep(seconds * (1 - SETTLING))
                calls = next(self._calls) - before - 1
                costs[name].append((time.process_time() - began) / max(1, calls) * 1e6)
        return {name: measured[1:] for name, measured in costs.items()}

    def close(self) -> None:
        """Stop the server, so that none of its threads exists when the interpreter ends."""
        self._server.stop(None).wait()

    def _echo(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        next(self._calls)
        return request


class Least(grpc.ServerInterceptor):
    """The least possible guard: it does what every guard must do, and judges nothing.

    It finds the header, reads the clock, takes a MAC and sets the identity.
    """

    def __init__(self) -> None:
        self._handler: Any = None

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = continuation(handler_call_details)
        if self._handler is None:
            self._handler = grpc.unary_unary_rpc_method_handler(_least(handler.unary_unary))
        return self._handler


def _least(behaviour: Any) -> Any:
    keyed = hashlib.blake2b(key=b"k", digest_size=16)
    identity = Identity(
        key_id="", account_id="", owner_id="", effective_role=Role.ADMIN, granted_role=Role.ADMIN
    )

    def guarded(request: bytes, context: grpc.ServicerContext) -> Any:
        token: Any = ""
        for name, value in context.invocation_metadata():
            if name == "authorization":
                token = value
        now_ns()
        mac = keyed.copy()
        mac.update(token.encode())
        mac.digest()
        enter_identity(identity)
        return behaviour(request, context)

    return guarded


class Wasteful:
    """A verifier with a planted bug: it wastes time.

    Args:
        verifier: Returns the verdicts.
    """

    def __init__(self, verifier: CachingVerifier) -> None:
        self._verifier = verifier

    def verify(self, presented: Presented) -> Verdict:
        until = time.perf_counter() + WASTE
        while time.perf_counter() < until:
            pass
        return self._verifier.verify(presented)


def main() -> None:
    """Follow the protocol of the module's docstring."""
    client = KeybearerClient(sys.argv[1], token=sys.stdin.readline(), tls=False)
    with CachingVerifier(client) as verifier:
        assert verifier.wait_for_lease(20)
        guards: dict[str, list[Any]] = {
            "unguarded": [],
            "twin": [],
            "least": [Least()],
            "guarded": [AuthInterceptor(verifier, rules={PATH: RULE})],
            "planted": [AuthInterceptor(Wasteful(verifier), rules={PATH: RULE})],
        }
        echo = Echo(guards, seed=1)
        answer: Any = echo.port
        while True:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
            line = sys.stdin.readline()
            if not line:
                echo.close()
                return
            blocks, seconds, *names = line.split()
            answer = echo.measure(int(blocks), float(seconds), names)


if __name__ == "__main__":
    main()
