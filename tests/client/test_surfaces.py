"""Every outcome and every trouble, at every door: one table says what each must answer."""

import asyncio
import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import fastapi
import grpc
import grpc.aio
import httpx
import pytest

from client.support import (
    RULES,
    Message,
    Reached,
    async_handlers,
    demo,
    details_of,
    handlers,
    serving,
    serving_async,
)
from keybearer import (
    AccessRule,
    AsyncAuthInterceptor,
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    AsyncVerifier,
    AuthInterceptor,
    CachingVerifier,
    Identity,
    KeybearerClient,
    Outcome,
    Presented,
    RemoteVerifier,
    Role,
    Verdict,
    Verifier,
    current_identity,
)
from keybearer.fastapi import KeyAuth
from keybearer.testing import FakeKeybearer
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

CHECK_TIMEOUT = 0.3
"""Seconds a check may take here; a stalled keybearer must not stall the tests."""

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Expected:
    """What a door must answer."""

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
    """One situation: what the caller presents, and what must come of it."""

    method: str
    expected: Expected
    present: Callable[[FakeKeybearer], Headers]
    trouble: Callable[[FakeKeybearer], contextlib.AbstractContextManager[None]] = lambda _: (
        contextlib.nullcontext()
    )
    validator: Callable[[FakeKeybearer], str] = lambda keybearer: keybearer.validator_token
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
    "own credential empty": Case("Any", UNAVAILABLE, ADMIN, validator=lambda _: ""),
    "own credential without the right": Case(
        "Any", UNAVAILABLE, ADMIN, validator=lambda kb: kb.issue(Role.DEVELOPER)
    ),
}


@dataclass(frozen=True)
class Answer:
    """What a door answered."""

    status: str | int
    reason: str
    challenge: str | None
    body: str


def _grpc_answer(error: grpc.RpcError) -> Answer:
    details = details_of(error)
    assert details.domain == "keybearer.v1"
    assert details.has_retry == (error.code() is grpc.StatusCode.UNAVAILABLE)
    return Answer(error.code().name, details.reason, details.challenge or None, "")


def call_sync(verifier: Verifier, method: str, headers: Headers, reached: Reached) -> Answer:
    """A grpc.server."""
    with (
        serving([AuthInterceptor(verifier)], demo(handlers(reached))) as address,
        grpc.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(f"/test.guarded.Demo/{method}", Message.SerializeToString)
        try:
            response = call(Message(value="hello"), metadata=tuple(headers), timeout=10)
        except grpc.RpcError as error:
            return _grpc_answer(error)
    return Answer("OK", "", None, Message.FromString(response).value)


async def call_aio(
    verifier: AsyncVerifier, method: str, headers: Headers, reached: Reached
) -> Answer:
    """A grpc.aio.server."""
    async with (
        serving_async([AsyncAuthInterceptor(verifier)], demo(async_handlers(reached))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(f"/test.guarded.Demo/{method}", Message.SerializeToString)
        try:
            response = await call(
                Message(value="hello"), metadata=grpc.aio.Metadata(*headers), timeout=10
            )
        except grpc.RpcError as error:
            return _grpc_answer(error)
    return Answer("OK", "", None, Message.FromString(response).value)


def rule_for(method: str, path: str) -> AccessRule | None:
    """The rule of a web request: that of the method its path names."""
    assert method == "GET"
    rule = RULES[path.removeprefix("/")]
    return None if rule is None or rule.operator_only else rule


def _caller() -> str:
    try:
        return current_identity().key_id
    except LookupError:
        return "nobody"


async def call_asgi(
    verifier: AsyncVerifier, method: str, headers: Headers, reached: Reached
) -> Answer:
    """A pure ASGI application."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.calls.append(method)
        identity = scope["keybearer.identity"]
        assert _caller() == ("nobody" if identity is None else identity.key_id)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"{_caller()} hello".encode()})

    return await _get(AuthMiddleware(app, verifier, rule=rule_for), method, headers)


async def call_fastapi(
    verifier: AsyncVerifier, method: str, headers: Headers, reached: Reached
) -> Answer:
    """A FastAPI application."""
    app = fastapi.FastAPI()
    require = KeyAuth(verifier)
    for name, rule in RULES.items():
        if rule is None or rule.operator_only:
            continue
        if rule.public:

            @app.get(f"/{name}")
            async def public() -> fastapi.Response:
                reached.calls.append(method)
                return fastapi.Response("nobody hello")

            continue
        guard = require(role=rule.role, scopes=rule.scopes, only_roles=rule.only_roles)

        @app.get(f"/{name}")
        async def guarded(
            caller: Annotated[Identity, fastapi.Depends(guard)],
        ) -> fastapi.Response:
            reached.calls.append(method)
            return fastapi.Response(f"{caller.key_id} hello")

    return await _get(app, method, headers)


async def _get(app: Any, method: str, headers: Headers) -> Answer:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://example.com") as client:
        response = await client.get(f"/{method}", headers=headers)
    return _http_answer(response.status_code, dict(response.headers), response.content)


def call_wsgi(verifier: Verifier, method: str, headers: Headers, reached: Reached) -> Answer:
    """A WSGI application, behind a real server."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        reached.calls.append(method)
        identity = environ["keybearer.identity"]
        assert _caller() == ("nobody" if identity is None else identity.key_id)
        start_response("200 OK", [("content-type", "text/plain")])
        # A generator: its body runs when the server iterates.
        yield f"{_caller()} hello".encode()

    class Silent(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    guarded = WSGIAuthMiddleware(app, verifier, rule=rule_for)
    with make_server("127.0.0.1", 0, guarded, handler_class=Silent) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.putrequest("GET", f"/{method}")
        for name, value in headers:
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        answered = {name.lower(): value for name, value in response.getheaders()}
        answer = _http_answer(response.status, answered, response.read())
        connection.close()
        thread.join()
    return answer


def _http_answer(status: int, headers: dict[str, str], body: bytes) -> Answer:
    reason = ""
    if status != 200:
        document = httpx.Response(status, content=body).json()
        reason = (document.get("detail") or document)["error"]
        assert headers["cache-control"] == "no-store"
        assert ("retry-after" in headers) == (status == 503)
    return Answer(status, reason, headers.get("www-authenticate"), body.decode())


SYNC = {"grpc": call_sync, "wsgi": call_wsgi}
ASYNC = {"grpc.aio": call_aio, "asgi": call_asgi, "fastapi": call_fastapi}


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
    if surface in SYNC:
        with (
            case.trouble(keybearer),
            KeybearerClient(keybearer.address, token=validator, tls=False) as client,
        ):
            if caching:
                with CachingVerifier(client, timeout=CHECK_TIMEOUT) as caching_verifier:
                    return SYNC[surface](caching_verifier, case.method, headers, reached)
            verifier = RemoteVerifier(client, timeout=CHECK_TIMEOUT)
            return SYNC[surface](verifier, case.method, headers, reached)

    async def run() -> Answer:
        async with AsyncKeybearerClient(keybearer.address, token=validator, tls=False) as client:
            with case.trouble(keybearer):
                if caching:
                    async with AsyncCachingVerifier(client, timeout=CHECK_TIMEOUT) as caching_one:
                        return await ASYNC[surface](caching_one, case.method, headers, reached)
                verifier = AsyncRemoteVerifier(client, timeout=CHECK_TIMEOUT)
                return await ASYNC[surface](verifier, case.method, headers, reached)

    return asyncio.run(run())


# The verifiers that keep answers are tried at one surface of each flavour; all take either.
@pytest.mark.parametrize("surface", [*SYNC, *ASYNC, "grpc with a cache", "grpc.aio with a cache"])
@pytest.mark.parametrize("name", CASES)
def test_every_situation_has_its_answer_at_every_surface(
    name: str, surface: str, fake_keybearer: FakeKeybearer
) -> None:
    """Status, reason and challenge are those of the contract; no denied call arrives."""
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
