"""Every method of every service, opened and taken back at every stage: promise P8."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.rpc.executors import MAX_SLOW
from reliability.cancelling import Stage, cancel_calls
from reliability.hostile import HostileConnection
from reliability.processes import ServerProcess, init, serving
from reliability.served import Method, every_method
from reliability.vital_signs import vital_signs, wait_for_rest

CONNECTIONS = 8
WITHIN_S = 10.0
"""For what the server must send at all."""
IN_TIME_S = 1.0
END_WITHIN_S = 15.0
MORE_MEMORY_KB = 48 * 1024
"""It rises by up to 37 MiB in the first 50,000 calls, and then no more."""
FILES_OF_STAND_INS = 2 * MAX_SLOW + 80
"""A thread that stood in for others leaves a descriptor to SQLite, which uses it again; and every
thread of the service opens two when it first reads."""
WATCH = "/grpc.health.v1.Health/Watch"
SERVICES = {
    *(f"keybearer.v1.{name}Service" for name in ("Account", "User", "ApiKey", "Token", "Audit")),
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "envoy.service.auth.v3.Authorization",
}


class Target:
    """A server, its administrator, a validator, and a key that calls are about."""

    def __init__(self, server: ServerProcess, admin_token: str) -> None:
        self.server = server
        self.admin = server.stubs(admin_token)
        self.cancelling_token = self.admin.create_key(role="ROLE_ADMIN").token
        victim = self.admin.create_key()
        self.methods = every_method(victim.token, victim.api_key.id)
        self._valid = self.admin.create_key(role="ROLE_VALIDATOR").token
        self._validator = server.stubs(self._valid)
        self._channel = server.channel()

    def cancel(self, methods: list[Method], stages: list[Stage], count: int) -> int:
        """Cancel so many calls of each method at each stage, with and without a credential."""
        work = [
            (method, stage, token)
            for method in methods
            for stage in stages
            for token in ("", self.cancelling_token)
        ]

        def on_a_connection(number: int) -> int:
            mine = len(range(number, count, CONNECTIONS))
            todo, taken_back = list(work), 0
            while todo:
                # The server ends a connection whose client does not answer its ping within two
                # seconds, as a busy machine may cause: another one goes on.
                connection = HostileConnection(self.server.address, within_s=WITHIN_S)
                with connection, suppress(ConnectionError):
                    while todo:
                        taken_back += cancel_calls(connection, *todo[-1], mine)
                        todo.pop()
            return taken_back

        with ThreadPoolExecutor(CONNECTIONS) as clients:
            return sum(clients.map(on_a_connection, range(CONNECTIONS)))

    def cancel_until_it_fails(self, methods: list[Method]) -> None:
        """Cancel thousands of streams, and look in between whether everybody is answered."""
        for _ in range(10):
            self.cancel(methods, [Stage.MIDDLE, Stage.END], 1_000)
            self.assert_answers()

    def assert_answers(self) -> None:
        """Assert that everybody is answered as before: unary calls, streams, health."""
        request = pb.ValidateTokenRequest(token=self._valid)
        for _ in range(50):
            began = time.monotonic()
            assert self._validator.tokens.ValidateToken(request, timeout=IN_TIME_S).valid
            assert time.monotonic() - began < IN_TIME_S
        self.call_all()
        assert self.health("Check").status == health_pb2.HealthCheckResponse.SERVING
        assert next(self.health("Watch")).status == health_pb2.HealthCheckResponse.SERVING
        [hello] = self.first_messages()
        assert hello.HasField("hello")

    def first_messages(self) -> list[Any]:
        """Return the first message of a watch stream of ours."""
        asked = iter(
            [pb.WatchInvalidationsRequest(subscribe=pb.WatchInvalidationsRequest.Subscribe())]
        )
        stream = self._validator.tokens.WatchInvalidations(asked, timeout=10)
        first = next(stream)
        stream.cancel()
        return [first]

    def health(self, name: str) -> Any:
        """Call a method of Health."""
        kind = self._channel.unary_stream if name == "Watch" else self._channel.unary_unary
        call: Any = kind(
            f"/grpc.health.v1.Health/{name}",
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return call(b"", timeout=10)

    def call_all(self) -> None:
        """Make a call on every executor: threads that stood in for others leave after one."""
        assert self._validator.validate(self._valid).valid
        self.admin.list_keys()
        self.admin.revoke_token("garbage")
        self.health("Check")
        self.first_messages()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A running server."""
    ids = init(tmp_path / "data")
    with serving(tmp_path / "data") as server:
        yield Target(server, ids["token"])


def test_the_methods_are_those_of_every_service(target: Target) -> None:
    """A service that is served and not called here would make these tests vain."""
    assert {method.path.split("/")[1] for method in target.methods} == SERVICES


@pytest.mark.parametrize("count", [16, pytest.param(1_000, marks=pytest.mark.slow)])
def test_calls_cancelled_at_every_stage_leave_the_server_as_it_was(
    target: Target, count: int
) -> None:
    """It answers in time, holds no more than before, and SIGTERM ends it in time."""
    methods, stages = list(target.methods), list(Stage)
    # What the first calls of each kind take once and for all is no growth.
    target.cancel(methods, stages, CONNECTIONS)
    target.assert_answers()
    before = vital_signs(target.server.pid)
    began = time.monotonic()
    taken_back = target.cancel(methods, stages, count)
    sys.stdout.write(
        f"{len(methods)} methods x {len(stages)} stages x 2 x {count}: {taken_back} of "
        f"{2 * len(methods) * len(stages) * count} taken back before their end, "
        f"in {time.monotonic() - began:.0f} s\n"
    )
    target.assert_answers()
    after = wait_for_rest(target.server.pid, before, target.call_all)
    sys.stdout.write(f"before: {before}\nafter: {after}\n")
    assert after.sockets <= before.sockets
    assert after.files <= before.files + FILES_OF_STAND_INS
    assert after.threads <= before.threads
    assert after.memory_kb <= before.memory_kb + MORE_MEMORY_KB
    assert not any(event["event"] == "unresponsive" for event in target.server.events)
    began = time.monotonic()
    assert target.server.stop() == 0
    assert time.monotonic() - began < END_WITHIN_S


@pytest.mark.slow
def test_a_health_service_that_sends_while_it_holds_its_lock_is_found_out(tmp_path: Path) -> None:
    """With the library's own servicer, streams that are cancelled stop every call for good."""
    ids = init(tmp_path / "data")
    with serving(tmp_path / "data", bugs=["library-health"]) as server:
        target = Target(server, ids["token"])
        watch = [method for method in target.methods if method.path == WATCH]
        # A server that answers nobody ends itself after a while, and then refuses connections.
        with pytest.raises((TimeoutError, ConnectionError, AssertionError, grpc.RpcError)):
            target.cancel_until_it_fails(watch)
