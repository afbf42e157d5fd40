"""Create and rotate with lost or late responses, against the real service.

Whatever byte a connection breaks at, there is exactly one key, and the caller's token works.
"""

import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from client.cutting_proxy import CuttingProxy, Damage, Direction, Plan, proxying
from harness import Service
from keybearer import NEVER_EXPIRES, IssuedKey, KeybearerClient, KeybearerError, Role
from keybearer._client.requests import Kind
from keybearer._client.retries import Attempts

TRY_TIMEOUT = 0.15
HOLD = 0.25
"""Longer than a try, so that a held answer comes after it was given up."""
# A channel of its own for every trial: grpc shares connections between channels that look alike.
OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


@dataclass
class Bench:
    """A service, and a client that uses no proxy."""

    service: Service
    direct: KeybearerClient

    def through(self, proxy: CuttingProxy, token: str = "") -> KeybearerClient:
        """Return a client that uses a proxy."""
        return KeybearerClient(
            proxy.address,
            token=token or self.service.admin_token,
            tls=False,
            timeout=8.0,
            try_timeout=TRY_TIMEOUT if proxy.holds else 3.0,
            options=OPTIONS,
        )


@pytest.fixture
def bench(service: Service) -> Iterator[Bench]:
    """A running service."""
    with KeybearerClient(service.address, token=service.admin_token, tls=False) as direct:
        yield Bench(service, direct)


def _create(bench: Bench, proxy: CuttingProxy) -> None:
    name = f"trial {uuid.uuid4()}"
    with bench.through(proxy) as client:
        issued = client.create_api_key(name, role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
    (listed,) = bench.direct.list_api_keys(name_contains=name)
    assert listed.id == issued.api_key.id
    _assert_works(bench, issued)


def _rotate(bench: Bench, proxy: CuttingProxy) -> None:
    before = bench.direct.create_api_key("trial", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
    with bench.through(proxy) as client:
        issued = client.rotate_api_key(before.api_key.id)
    assert issued.api_key.id == before.api_key.id
    assert not bench.direct.validate_token(before.token).valid
    _assert_works(bench, issued)


def _rotate_self(bench: Bench, proxy: CuttingProxy) -> None:
    before = bench.direct.create_api_key("trial", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
    with bench.through(proxy, before.token) as client:
        issued = client.rotate_self()
    assert issued.api_key.id == before.api_key.id
    _assert_works(bench, issued)


def _assert_works(bench: Bench, issued: IssuedKey) -> None:
    verdict = bench.direct.validate_token(issued.token)
    assert verdict.identity is not None
    assert verdict.valid
    assert verdict.identity.key_id == issued.api_key.id


Operation = Callable[[Bench, CuttingProxy], None]
OPERATIONS: dict[str, Operation] = {
    "create": _create,
    "rotate": _rotate,
    "rotate self": _rotate_self,
}


def _points(
    bench: Bench, operation: Operation, direction: Direction, points: int | None
) -> list[int]:
    """Return the offsets to damage: all, or a sample with the last bytes."""
    with proxying(bench.service.address, None) as proxy:
        operation(bench, proxy)
    length = proxy.passed[direction]
    step = 1 if points is None else max(1, length // points)
    return [*range(0, length, step), length - 1]


def _strike_everywhere(
    bench: Bench, operation: Operation, damage: Damage, connections: int, points: int | None
) -> int:
    """Run an operation once for every offset, and return how often it was damaged."""
    struck = 0
    for direction in Direction:
        for offset in _points(bench, operation, direction, points):
            plan = Plan(damage, direction, offset, connections, hold=HOLD)
            with proxying(bench.service.address, plan) as proxy:
                operation(bench, proxy)
            struck += proxy.struck
    return struck


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(
    ("damage", "connections", "points"),
    [(Damage.CUT, 1, 6), (Damage.CUT, 2, 2), (Damage.HOLD, 1, 2)],
    ids=["cut", "cut twice", "held"],
)
def test_a_lost_or_late_answer_makes_one_key_and_a_token_that_works(
    operation: Operation, damage: Damage, connections: int, points: int, bench: Bench
) -> None:
    """Broken at a sample of bytes in either direction, create and rotate give one working token."""
    assert _strike_everywhere(bench, operation, damage, connections, points) >= 2 * points


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(
    ("damage", "connections", "points"),
    [(Damage.CUT, 1, None), (Damage.CUT, 2, 100), (Damage.HOLD, 1, 100)],
    ids=["cut", "cut twice", "held"],
)
def test_a_connection_broken_at_any_byte_makes_one_key_and_a_token_that_works(
    operation: Operation, damage: Damage, connections: int, points: int | None, bench: Bench
) -> None:
    """Broken at every byte in either direction, create and rotate give one working token."""
    struck = _strike_everywhere(bench, operation, damage, connections, points)
    sys.stdout.write(f"{struck} trials\n")
    assert struck >= 200


def test_the_proxy_catches_a_client_that_draws_a_new_request_id(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: a new request_id for every attempt creates a second key."""

    def begin(attempts: Any, now: float) -> float:
        if attempts._request.kind is Kind.ISSUE:
            attempts._request.message.request_id = str(uuid.uuid4())
        return honest(attempts, now)

    honest = Attempts.begin
    monkeypatch.setattr(Attempts, "begin", begin)
    with pytest.raises(ValueError, match="too many values to unpack"):
        _strike_everywhere(bench, _create, Damage.CUT, 1, 12)


def test_the_proxy_catches_a_client_that_does_not_count_its_attempts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: without a greater attempt, the repeated request fails."""

    def begin(attempts: Any, now: float) -> float:
        seconds = honest(attempts, now)
        if attempts._request.kind is Kind.ISSUE:
            attempts._request.message.attempt = 1
        return seconds

    honest = Attempts.begin
    monkeypatch.setattr(Attempts, "begin", begin)
    with pytest.raises(KeybearerError, match="REPLAY_IMPOSSIBLE"):
        _strike_everywhere(bench, _create, Damage.CUT, 1, 12)


def test_a_request_given_up_can_be_gone_on_with(bench: Bench) -> None:
    """The error of a create that ran out of time has what is needed to continue it."""
    plan = Plan(Damage.CUT, Direction.ANSWER, 100, connections=100)
    with (
        proxying(bench.service.address, plan) as proxy,
        bench.through(proxy) as client,
        pytest.raises(KeybearerError) as raised,
    ):
        client.create_api_key("given up", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
    issued = bench.direct.create_api_key(
        "given up",
        role=Role.DEVELOPER,
        expiration=NEVER_EXPIRES,
        request_id=raised.value.request_id,
        attempt=raised.value.attempt + 1,
    )
    (listed,) = bench.direct.list_api_keys(name_contains="given up")
    assert listed.id == issued.api_key.id
    _assert_works(bench, issued)
