"""One table of situations: every surface gives the response that the table names."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from client.support import (
    Reached,
)
from client.surfaces import ASYNC, SYNC, Answer, Headers
from keybearer import (
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    CachingVerifier,
    KeybearerClient,
    Outcome,
    Presented,
    RemoteVerifier,
    Role,
    Verdict,
)
from keybearer.testing import FakeKeybearer

CHECK_TIMEOUT = 0.3
"""Seconds that a check may take where it fails; a stalled keybearer must not stall the tests."""
PATIENCE = 10.0
"""Seconds that a check may take elsewhere."""


@dataclass(frozen=True)
class Expected:
    """The expected response of a surface."""

    code: str
    http: int
    reason: str = ""
    challenge: str | None = None
    """The parameters of the challenge behind the realm; None: there is none."""


OK = Expected("OK", 200)
MISSING = Expected("UNAUTHENTICATED", 401, "CREDENTIALS_MISSING", "")
INVALID = Expected(
    "UNAUTHENTICATED",
    401,
    "CREDENTIALS_INVALID",
    ', error="invalid_token", error_description="the credential is not accepted"',
)
EXPIRED = Expected(
    "UNAUTHENTICATED",
    401,
    "CREDENTIALS_EXPIRED",
    ', error="invalid_token", error_description="the key has expired"',
)


def _insufficient(reason: str, description: str, extra: str = "") -> Expected:
    challenge = f', error="insufficient_scope", error_description="{description}"{extra}'
    return Expected("PERMISSION_DENIED", 403, reason, challenge)


NEEDS_ADMIN = _insufficient(
    "ROLE_INSUFFICIENT", "this needs the role ADMIN; the key's effective role is DEVELOPER"
)
NEEDS_VALIDATOR = _insufficient(
    "ROLE_INSUFFICIENT", "this needs the role VALIDATOR; the key's effective role is ADMIN"
)
NEEDS_READ = _insufficient(
    "SCOPE_INSUFFICIENT", "this needs the scopes clusters.read", ', scope="clusters.read"'
)
NO_RULE = _insufficient("ROLE_INSUFFICIENT", "this has no access rule, so nobody may call it")
UNAVAILABLE = Expected("UNAVAILABLE", 503, "VERIFIER_UNAVAILABLE")
INTERNAL = Expected("INTERNAL", 500, "INTERNAL")


def _bearer(token: str) -> Headers:
    return [("authorization", f"Bearer {token}")]


@dataclass(frozen=True)
class Case:
    """One situation: what the caller presents, and the expected response."""

    method: str
    expected: Expected
    present: Callable[[FakeKeybearer], Headers]
    trouble: Callable[[FakeKeybearer], contextlib.AbstractContextManager[None]] = lambda _: (
        contextlib.nullcontext()
    )
    validator: Callable[[FakeKeybearer], str | Callable[[], str]] = lambda keybearer: (
        keybearer.validator_token
    )
    """The guard's own credential."""


def _issued(*args: Any, **kwargs: Any) -> Callable[[FakeKeybearer], Headers]:
    return lambda keybearer: _bearer(keybearer.issue(*args, **kwargs))


def _changed(change: str) -> Callable[[FakeKeybearer], Headers]:
    def present(keybearer: FakeKeybearer) -> Headers:
        token = keybearer.issue(Role.ADMIN)
        getattr(keybearer, change)(token)
        return _bearer(token)

    return present


def _forced(outcome: int) -> Callable[[FakeKeybearer], Headers]:
    def present(keybearer: FakeKeybearer) -> Headers:
        token = keybearer.issue(Role.ADMIN)
        keybearer.force(token, outcome)
        return _bearer(token)

    return present


def _expired(keybearer: FakeKeybearer) -> Headers:
    token = keybearer.issue(Role.ADMIN, expires_in=timedelta(hours=1))
    keybearer.advance(timedelta(hours=1))
    return _bearer(token)


def _failing(code: grpc.StatusCode, reason: str) -> Callable[[FakeKeybearer], Any]:
    return lambda keybearer: keybearer.outage(code, reason)


@contextlib.contextmanager
def _stopped(keybearer: FakeKeybearer) -> Iterator[None]:
    keybearer.stop()
    yield


ADMIN = _issued(Role.ADMIN)
CASES = {
    "valid": Case("Any", OK, _issued(Role.VALIDATOR)),
    "scheme in another case": Case(
        "Any", OK, lambda kb: [("authorization", f"bEARER {kb.issue()}")]
    ),
    "role met": Case("Developer", OK, _issued(Role.DEVELOPER)),
    "role exceeded": Case("Developer", OK, ADMIN),
    "role too low": Case("Admin", NEEDS_ADMIN, _issued(Role.DEVELOPER, granted_role=Role.ADMIN)),
    "only another role": Case("Validators", NEEDS_VALIDATOR, ADMIN),
    "scope held": Case("Read", OK, _issued(scopes=["clusters.read"])),
    "scope by wildcard": Case("Read", OK, _issued(scopes=["clusters.*"])),
    "scope by rank": Case("Read", OK, ADMIN),
    "scope lacking": Case("Read", NEEDS_READ, _issued(scopes=["clusters.write", "x.*"])),
    "no header": Case("Any", MISSING, lambda _: []),
    "two headers": Case("Any", MISSING, lambda kb: _bearer(kb.issue()) + _bearer(kb.issue())),
    "the same header twice": Case("Any", MISSING, lambda kb: _bearer(kb.issue()) * 2),
    "another scheme": Case("Any", MISSING, lambda kb: [("authorization", f"Basic {kb.issue()}")]),
    "no scheme": Case("Any", MISSING, lambda kb: [("authorization", kb.issue())]),
    "scheme alone": Case("Any", MISSING, lambda _: [("authorization", "Bearer")]),
    "two tokens": Case("Any", MISSING, lambda kb: _bearer(f"{kb.issue()} {kb.issue()}")),
    "joined tokens": Case("Any", MISSING, lambda kb: _bearer(f"{kb.issue()},{kb.issue()}")),
    "unknown": Case("Any", INVALID, lambda _: _bearer("kbear1_0000000000000000_nothing")),
    "token in another case": Case("Any", INVALID, lambda kb: _bearer(kb.issue().upper())),
    "token with an end": Case("Any", INVALID, lambda kb: _bearer(kb.issue() + "0")),
    "token without its end": Case("Any", INVALID, lambda kb: _bearer(kb.issue()[:-1])),
    "very long": Case("Any", INVALID, lambda _: _bearer("k" * 4000)),
    "revoked": Case("Any", INVALID, _changed("revoke")),
    "disabled": Case("Any", INVALID, _changed("disable")),
    "expired": Case("Any", EXPIRED, _expired),
    "of another account": Case("Any", INVALID, _issued(Role.ADMIN, account_id="OtherAccount0001")),
    "outcome unspecified": Case("Any", INVALID, _forced(0)),
    "outcome of the future": Case("Any", INVALID, _forced(99)),
    "outcome role insufficient": Case(
        "Any",
        _insufficient(
            "ROLE_INSUFFICIENT",
            "this needs the role VALIDATOR, DEVELOPER, ADMIN; the key's effective role is ADMIN",
        ),
        _forced(Outcome.ROLE_INSUFFICIENT),
    ),
    "outcome scope insufficient": Case("Read", NEEDS_READ, _forced(Outcome.SCOPE_INSUFFICIENT)),
    "no rule": Case("Unruled", NO_RULE, ADMIN),
    "no rule and no header": Case("Unruled", NO_RULE, lambda _: []),
    "rule for operators": Case("Operators", NO_RULE, ADMIN),
    "public": Case("Public", OK, lambda _: []),
    "public with a bad token": Case("Public", OK, lambda _: _bearer("bad")),
    "store down": Case(
        "Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    ),
    "overload": Case(
        "Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    ),
    "internal error": Case("Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.INTERNAL, "")),
    "unknown error": Case("Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.UNKNOWN, "")),
    "unimplemented": Case("Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.UNIMPLEMENTED, "")),
    "not found": Case(
        "Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    ),
    "invalid argument": Case(
        "Any", UNAVAILABLE, ADMIN, _failing(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    ),
    "no answer": Case("Any", UNAVAILABLE, ADMIN, lambda kb: kb.stall()),
    "connection refused": Case("Any", UNAVAILABLE, ADMIN, _stopped),
    "own credential unknown": Case("Any", UNAVAILABLE, ADMIN, validator=lambda _: "bad"),
    "own credential empty": Case("Any", UNAVAILABLE, ADMIN, validator=lambda _: lambda: ""),
    "own credential without the right": Case(
        "Any", UNAVAILABLE, ADMIN, validator=lambda kb: kb.issue(Role.DEVELOPER)
    ),
}


def call(
    surface: str,
    keybearer: FakeKeybearer,
    case: Case,
    headers: Headers,
    reached: Reached,
    *,
    caching: bool,
) -> Answer:
    """Make the call of a case at a surface."""
    validator = case.validator(keybearer)
    timeout = CHECK_TIMEOUT if case.expected is UNAVAILABLE else PATIENCE
    if surface in SYNC:
        with (
            case.trouble(keybearer),
            KeybearerClient(keybearer.address, token=validator, tls=False) as client,
        ):
            if caching:
                with CachingVerifier(client, timeout=timeout) as caching_verifier:
                    return SYNC[surface](caching_verifier, case.method, headers, reached)
            verifier = RemoteVerifier(client, timeout=timeout)
            return SYNC[surface](verifier, case.method, headers, reached)

    async def run() -> Answer:
        async with AsyncKeybearerClient(keybearer.address, token=validator, tls=False) as client:
            with case.trouble(keybearer):
                if caching:
                    async with AsyncCachingVerifier(client, timeout=timeout) as caching_one:
                        return await ASYNC[surface](caching_one, case.method, headers, reached)
                verifier = AsyncRemoteVerifier(client, timeout=timeout)
                return await ASYNC[surface](verifier, case.method, headers, reached)

    return asyncio.run(run())


# The verifiers that keep answers are tried at one surface of each flavour; all take either.
@pytest.mark.parametrize("surface", [*SYNC, *ASYNC, "grpc with a cache", "grpc.aio with a cache"])
@pytest.mark.parametrize("name", CASES)
def test_every_situation_has_its_answer_at_every_surface(
    name: str, surface: str, fake_keybearer: FakeKeybearer
) -> None:
    """Status, reason and challenge are those of the table, and no denied call reaches a handler."""
    case = CASES[name]
    if surface == "fastapi" and case.method in ("Unruled", "Operators"):
        pytest.skip("a route is guarded by a dependency or not: it has no rule to lack")
    headers, reached = case.present(fake_keybearer), Reached()
    caching = surface.endswith(" with a cache")
    surface = surface.removesuffix(" with a cache")
    answer = call(surface, fake_keybearer, case, headers, reached, caching=caching)

    expected = case.expected
    assert answer.status == (expected.code if surface.startswith("grpc") else expected.http)
    assert answer.reason == expected.reason
    challenge = expected.challenge
    assert answer.challenge == (
        None if challenge is None else f'Bearer realm="keybearer"{challenge}'
    )
    assert reached.calls == ([case.method] if expected is OK else [])
    if expected is OK:
        token = headers[0][1].split()[1] if headers and case.method != "Public" else ""
        who = fake_keybearer.identity_of(token).key_id if token else "nobody"
        assert answer.body == f"{who} hello"


class Broken:
    """A verifier with a bug."""

    def verify(self, presented: Presented) -> Verdict:
        raise ZeroDivisionError(presented.token)


class AsyncBroken:
    """The same for asyncio."""

    async def verify(self, presented: Presented) -> Verdict:
        raise ZeroDivisionError(presented.token)


@pytest.mark.parametrize("surface", [*SYNC, *ASYNC])
def test_a_bug_in_a_verifier_is_a_denial_that_tells_nothing(surface: str) -> None:
    """An unforeseen exception is INTERNAL or 500, without its text."""
    reached = Reached()
    if surface in SYNC:
        answer = SYNC[surface](Broken(), "Any", _bearer("secret"), reached)
    else:
        answer = asyncio.run(ASYNC[surface](AsyncBroken(), "Any", _bearer("secret"), reached))
    assert answer.status in ("INTERNAL", 500)
    assert answer.reason == "INTERNAL"
    assert "secret" not in answer.body
    assert reached.calls == []
