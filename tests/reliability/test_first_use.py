"""A secret that was used is never issued again, whichever processes the two calls meet in.

A lost answer is repeated with a greater attempt, and the service issues a fresh secret for the key,
unless the one before was used. Here that one is used at the very moment, at every entry point that
counts uses.
"""

import json
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import pytest

from harness import Stubs, message, refusal_of
from keybearer.access import Role
from keybearer.v1 import api_key_service_pb2, token_service_pb2
from keybearer_service.ext_authz.v3 import ext_authz_pb2
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import IssuedKey
from reliability.processes import RUN_WITH_BUGS, ServerProcess, init
from reliability.races import Arena

PER_COMMIT = 100
OVER_GRPC = 60
LONG_RUN = 10_000
LANES = 6
LONGEST_DELAY_S = 0.006
CHECK = "/envoy.service.auth.v3.Authorization/Check"


# --- use cases on threads -------------------------------------------------------------------------


def use_against_reissue(arena: Arena, trials: int) -> None:
    """Validate a token while the request that made it is repeated."""
    with arena.setting_up() as change:
        owner = arena.new_user(change, Role.DEVELOPER)
    for number in range(trials):
        new = arena.key_of(owner, Role.DEVELOPER)
        request_id = arena.container.issuer.new_id()

        def send(attempt: int, new: Any = new, request_id: str = request_id) -> Any:
            request = IdempotencyKey(request_id, attempt, b"body")
            return arena.container.keys.create(arena.call(arena.admin), arena.scope, new, request)

        token = send(0).token
        actions = [partial(arena.outcome, token), partial(send, 1)]
        order = 1 if number % 2 else -1
        outcome, issued = arena.race(*actions[::order])[::order]
        end = "issued" if isinstance(issued, IssuedKey) else issued.reason
        arena.seen[f"{outcome}, {end}"] += 1
        if outcome == "VALID" and isinstance(issued, IssuedKey):
            arena.findings.append(f"{issued.key.id} was used and issued again")
        if arena.findings:
            return


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_used_secret_is_not_issued_again(tmp_path: Path, seed: int, *, shared: bool) -> None:
    """Either the use is answered or the secret is issued again; both ends are seen."""
    arena = raced(tmp_path / "data", seed, PER_COMMIT, shared=shared)
    assert arena.findings == []
    assert {"VALID, REPLAY_IMPOSSIBLE", "NOT_FOUND, issued"} <= arena.seen.keys()


@pytest.mark.parametrize(
    ("bug", "shared", "plant"),
    [
        ("claims-by-reading", False, []),
        ("claims-by-reading", True, []),
        ("reissues-by-reading", False, []),
        ("reissues-by-reading", True, ["api_key"]),
    ],
)
def test_planted_reads_are_caught(
    tmp_path: Path, seed: int, bug: str, plant: list[str], *, shared: bool
) -> None:
    """A use or a reissue that only reads what the other one has done is found out."""
    arena = raced(tmp_path / "data", seed, 2000, shared=shared, bugs=[bug], plant=plant)
    assert arena.findings


def test_a_reissue_does_not_rest_on_an_earlier_read(tmp_path: Path, seed: int) -> None:
    """Even with the key read before the transaction, the condition of the write holds."""
    arena = raced(tmp_path / "data", seed, PER_COMMIT, shared=True, plant=["api_key"])
    assert arena.findings == []
    assert arena.seen["VALID, REPLAY_IMPOSSIBLE"]


def raced(path: Path, seed: int, trials: int, **how: Any) -> Arena:
    """Run races, print what was seen, and return the arena."""
    arena = Arena(path, seed, **how)
    try:
        use_against_reissue(arena, trials)
    finally:
        arena.close()
    sys.stdout.write(
        f"KEYBEARER_TEST_SEED={seed} {dict(arena.seen)}, {len(arena.findings)} findings\n"
    )
    return arena


# --- two processes --------------------------------------------------------------------------------


class Worker:
    """One of the processes that serve a file, and connections to it of one client."""

    def __init__(self, server: ServerProcess, admin: str) -> None:
        self.admin = server.stubs(admin)
        self._channel = server.channel()
        self._admin = admin
        port = next(one["port"] for one in server.events if one["event"] == "serving_http")
        self._http = HTTPConnection("127.0.0.1", port, timeout=30)

    def create(self, name: str, request_id: str, attempt: int) -> Any:
        """Send the request, and return its answer as a future."""
        request = message(
            api_key_service_pb2.CreateApiKeyRequest,
            name=name,
            role="ROLE_VALIDATOR",
            never_expires=True,
            request_id=request_id,
            attempt=attempt,
        )
        return self.admin.keys.CreateApiKey.future(request)

    # Each use returns whether the token was good for it; an outage is raised.

    def validate(self, token: str) -> bool:
        return self.admin.validate(token).valid

    def validate_in_batch(self, token: str) -> bool:
        questions = [{"token": self._admin}, {"token": token}]
        request = message(token_service_pb2.BatchValidateTokensRequest, requests=questions)
        return self.admin.tokens.BatchValidateTokens(request).responses[1].valid

    def call(self, token: str) -> bool:
        return accepted(Stubs(self._channel, token).who_am_i)

    def watch(self, token: str) -> bool:
        first = token_service_pb2.WatchInvalidationsRequest.Subscribe()
        subscribe = token_service_pb2.WatchInvalidationsRequest(subscribe=first)
        stream = Stubs(self._channel, token).tokens.WatchInvalidations(
            iter([subscribe]), timeout=10
        )
        try:
            return accepted(lambda: next(stream))
        finally:
            stream.cancel()

    def ext_authz(self, token: str) -> bool:
        header = ext_authz_pb2.HeaderValue(key="authorization", value=f"Bearer {token}")
        request = ext_authz_pb2.CheckRequest()
        request.attributes.request.http.header_map.headers.append(header)
        check: Any = self._channel.unary_unary(
            CHECK,
            request_serializer=ext_authz_pb2.CheckRequest.SerializeToString,
            response_deserializer=ext_authz_pb2.CheckResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {self._admin}")]
        return bool(check(request, metadata=metadata, timeout=10).status.code == 0)

    def forward_auth(self, token: str) -> bool:
        return self._asks("GET", "/v1/auth", b"", authorization=f"Bearer {token}")[0] == 200

    def introspect(self, token: str) -> bool:
        form = {"content-type": "application/x-www-form-urlencoded"}
        body = urlencode({"token": token}).encode()
        status, answer = self._asks("POST", "/oauth2/introspect", body, **form)
        return status == 200 and bool(json.loads(answer)["active"])

    def _asks(self, method: str, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        credential = {"x-keybearer-caller": f"Bearer {self._admin}"}
        self._http.request(method, path, body, {**credential, **headers})
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status == 503:
            raise UnavailableError
        return answer.status, text

    def close(self) -> None:
        self._http.close()


USES: list[Callable[[Worker, str], bool]] = [
    Worker.validate,
    Worker.validate_in_batch,
    Worker.call,
    Worker.watch,
    Worker.ext_authz,
    Worker.forward_auth,
    Worker.introspect,
]
"""Every way in which a use is counted."""


class UnavailableError(Exception):
    """The service could not tell."""


def accepted(call: Callable[[], object]) -> bool:
    """Return whether a caller is let in."""
    try:
        call()
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return False
        raise
    return True


class Race:
    """Uses at one process, and repeated requests at the other, of keys of its own."""

    def __init__(self, name: str, servers: Sequence[ServerProcess], admin: str, seed: int) -> None:
        self._name = name
        self._workers = [Worker(server, admin) for server in servers]
        self._random = random.Random(seed)
        self._thread = ThreadPoolExecutor(1)
        self.seen: Counter[str] = Counter()
        self.findings: list[str] = []

    def run(self, trials: int) -> None:
        for number in range(trials):
            self._trial(number)

    def close(self) -> None:
        self._thread.shutdown()
        for worker in self._workers:
            worker.close()

    def _trial(self, number: int) -> None:
        here, there = self._workers[:: 1 if number % 2 else -1]
        use = USES[number // 2 % len(USES)]
        request_id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        name = f"{self._name}-{number}"
        token = self._first_token(there, name, request_id)
        late = self._random.uniform(-LONGEST_DELAY_S, LONGEST_DELAY_S)
        used = self._thread.submit(self._use, use, here, token, max(0.0, late))
        time.sleep(max(0.0, -late))
        try:
            token = there.create(name, request_id, 1).result().token
            issued = "issued"
        except grpc.RpcError as error:
            issued = refusal_of(error).reason
        outcome = used.result(60)
        self.seen[f"{outcome}, {issued}"] += 1
        if (outcome, issued) == ("accepted", "issued"):
            self.findings.append(f"{name}: {use.__name__} was answered, and it was issued again")
        if issued == "issued" and self._use(Worker.validate, there, token, 0) == "refused":
            self.findings.append(f"{name}: the secret that was issued again is dead")

    def _first_token(self, worker: Worker, name: str, request_id: str) -> str:
        while True:
            try:
                return str(worker.create(name, request_id, 0).result().token)
            except grpc.RpcError as error:  # a busy machine; clients try again too
                if refusal_of(error).reason != "STORE_UNAVAILABLE":
                    raise
                self.seen["waited too long for a create"] += 1

    @staticmethod
    def _use(use: Callable[[Worker, str], bool], worker: Worker, token: str, late: float) -> str:
        time.sleep(late)
        try:
            return "accepted" if use(worker, token) else "refused"
        except UnavailableError:
            return "unavailable"
        except grpc.RpcError as error:
            return refusal_of(error).reason


def race_over_processes(
    data: Path, seed: int, trials: int, bugs: Sequence[str] = ()
) -> tuple[Counter[str], list[str]]:
    """Race over two processes, in lanes; return how often each end was seen, and what was found."""
    ids = init(data)
    entry = (*RUN_WITH_BUGS, ",".join(("as-a-worker", *bugs)))
    with ExitStack() as stack:
        servers = []
        for _ in range(2):
            server = ServerProcess(data, entry=entry, flags=("--http-listen", "127.0.0.1:0"))
            stack.callback(server.close)
            servers.append(server)
        for server in servers:
            server.wait_until_serving()
        races = [Race(f"lane {n}", servers, ids["token"], seed + n) for n in range(LANES)]
        for race in races:
            stack.callback(race.close)
        lanes = stack.enter_context(ThreadPoolExecutor(LANES))
        for done in [lanes.submit(race.run, trials // LANES) for race in races]:
            done.result()
        assert [server.stop() for server in servers] == [0, 0]
    seen = sum((race.seen for race in races), Counter())
    findings = [finding for race in races for finding in race.findings]
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed} {dict(seen)}, {len(findings)} findings\n")
    return seen, findings


def test_a_few_uses_against_reissues_over_two_processes(tmp_path: Path, seed: int) -> None:
    """At every entry point, with the repeated request at the other process."""
    seen, findings = race_over_processes(tmp_path / "data", seed, OVER_GRPC)
    assert findings == []
    assert {"accepted, REPLAY_IMPOSSIBLE", "refused, issued"} <= seen.keys()


@pytest.mark.slow
def test_ten_thousand_uses_against_reissues_over_two_processes(tmp_path: Path, seed: int) -> None:
    """At every entry point, with the repeated request at the other process."""
    seen, findings = race_over_processes(tmp_path / "data", seed, LONG_RUN)
    assert findings == []
    assert {"accepted, REPLAY_IMPOSSIBLE", "refused, issued"} <= seen.keys()


def test_planted_reads_are_caught_over_two_processes(tmp_path: Path, seed: int) -> None:
    """A use that only reads, and writes later, is answered for a secret that is issued again."""
    _, findings = race_over_processes(tmp_path / "data", seed, 600, ["claims-by-reading"])
    assert any("was answered, and it was issued again" in finding for finding in findings)
