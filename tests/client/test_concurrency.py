"""Many threads and rules: every decision belongs to its own call."""

import random
import sys
import threading
from collections import Counter
from typing import Any

import grpc
import pytest

from client.support import Message, Reached, demo, handlers, serving
from keybearer import (
    AccessRule,
    AuthInterceptor,
    Identity,
    Outcome,
    Presented,
    Role,
    Verdict,
    access,
)
from keybearer._guard import check
from keybearer.access import Decision
from keybearer.testing import FakeKeybearer

METHOD = "/test.guarded.Demo/"
CODEC: Any = (Message.SerializeToString, Message.FromString)
THREADS = 64
CHANNELS = 8

TOKENS = {
    "reader": (Role.DEVELOPER, ("clusters.read",)),
    "writer": (Role.DEVELOPER, ("clusters.write",)),
    "validator": (Role.VALIDATOR, ("clusters.*",)),
    "admin": (Role.ADMIN, ()),
}
ALLOWED = {
    "Any": {"reader", "writer", "validator", "admin"},
    "Developer": {"reader", "writer", "admin"},
    "Admin": {"admin"},
    "Read": {"reader", "validator", "admin"},
    "Validators": {"validator"},
    "Unruled": set(),
}
"""Which token may call which method."""


class Known:
    """A verifier that knows the tokens above."""

    def verify(self, presented: Presented) -> Verdict:
        token = presented.token
        if token not in TOKENS:
            return Verdict(outcome=Outcome.NOT_FOUND)
        role, scopes = TOKENS[token]
        identity = Identity(
            key_id=token,
            account_id="account",
            owner_id="owner",
            effective_role=role,
            granted_role=role,
            scopes=scopes,
        )
        return Verdict(outcome=Outcome.VALID, identity=identity)


def _check_concurrently(
    verifier: Any, tokens: dict[str, str], calls: int, seed: int
) -> Counter[str]:
    """Make so many calls from 64 threads and count the right and the wrong decisions.

    Args:
        verifier: Of the guard.
        tokens: The token to present, by its name above.
        calls: In all.
        seed: Of the order of methods and tokens.
    """
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    with serving([AuthInterceptor(verifier)], demo(handlers(Reached()))) as address:
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [grpc.insecure_channel(address, options) for _ in range(CHANNELS)]

        def work(number: int) -> None:
            order = random.Random(seed * 1000 + number)
            channel = channels[number % CHANNELS]
            methods: dict[str, Any] = {
                name: channel.unary_unary(f"{METHOD}{name}", *CODEC) for name in ALLOWED
            }
            mine: Counter[str] = Counter()
            for count in range(calls // THREADS):
                method, name = order.choice([*ALLOWED]), order.choice([*tokens])
                sent = f"{number}/{count}"
                metadata = (("authorization", f"Bearer {tokens[name]}"),)
                try:
                    answer = methods[method](Message(value=sent), metadata=metadata).value
                    right = name in ALLOWED[method] and answer.endswith(f" {sent}")
                    right = right and answer.split()[0] == key_ids[name]
                except grpc.RpcError as error:
                    denied = error.code() is grpc.StatusCode.PERMISSION_DENIED
                    right = name not in ALLOWED[method] and denied
                mine["right" if right else "wrong"] += 1
            with lock:
                counts.update(mine)

        key_ids = {name: _key_id(verifier, token) for name, token in tokens.items()}
        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for channel in channels:
            channel.close()
    sys.stdout.write(f"{dict(counts)}\n")
    return counts


def _key_id(verifier: Any, token: str) -> str:
    identity = verifier.verify(Presented(token)).identity
    assert identity is not None
    return str(identity.key_id)


def test_one_token_alternates_between_rules(fake_keybearer: FakeKeybearer, seed: int) -> None:
    """One token is judged correctly at methods of every rule, over the wire."""
    tokens = {"reader": fake_keybearer.issue(scopes=["clusters.read"])}
    assert _check_concurrently(fake_keybearer.verifier(), tokens, 64 * 30, seed)["wrong"] == 0


def test_tokens_alternate_between_rules(seed: int) -> None:
    """20,000 decisions about four tokens are right."""
    counts = _check_concurrently(Known(), {name: name for name in TOKENS}, 20_032, seed)
    assert counts == {"right": 20_032}


@pytest.mark.slow
def test_tokens_alternate_between_rules_a_million_times(seed: int) -> None:
    """1,000,000 decisions about four tokens are right."""
    counts = _check_concurrently(Known(), {name: name for name in TOKENS}, 1_000_000, seed)
    assert counts == {"right": 1_000_000}


def test_the_load_catches_a_decision_that_is_remembered(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Planted: a cache of decisions that ignores the rule is found."""
    remembered: dict[tuple[Role, tuple[str, ...]], Decision] = {}
    honest = access.decide

    def decide(rule: AccessRule, role: Role, scopes: Any, context: Any) -> Decision:
        return remembered.setdefault((role, tuple(scopes)), honest(rule, role, scopes, context))

    monkeypatch.setattr(check, "decide", decide)
    assert _check_concurrently(Known(), {name: name for name in TOKENS}, 640, seed)["wrong"] > 0


def test_the_load_catches_an_identity_that_is_shared(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Planted: an identity that belongs to the process is found."""
    current: list[Identity | None] = [None]

    def enter(identity: Identity | None) -> None:
        current[0] = identity

    monkeypatch.setattr("keybearer._guard.interceptor.enter_identity", enter)
    monkeypatch.setattr("client.support.current_identity", lambda: current[0])
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert (
            _check_concurrently(Known(), {name: name for name in TOKENS}, 6_400, seed)["wrong"] > 0
        )
    finally:
        sys.setswitchinterval(switch)
