"""The bearer header at every surface: the same table decides everywhere."""

import asyncio
from typing import Any

import pytest

from bearer_cases import BEARER_CASES
from client.support import Reached
from client.surfaces import ASYNC, SYNC, Answer, Headers
from keybearer import Identity, Outcome, Presented, Role, Verdict
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

OVER_HTTP = [name for name, case in BEARER_CASES.items() if case.survives_http]


class Recorder:
    """A verifier that accepts every token and records what was presented."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.peers: list[str] = []

    def verify(self, presented: Presented) -> Verdict:
        assert presented.token not in repr(presented)
        self.tokens.append(presented.token)
        self.peers.append(presented.peer)
        identity = Identity(
            key_id="key",
            account_id="account",
            owner_id="owner",
            effective_role=Role.ADMIN,
            granted_role=Role.ADMIN,
        )
        return Verdict(outcome=Outcome.VALID, identity=identity)


class AsyncRecorder(Recorder):
    """The same for asyncio."""

    async def verify(self, presented: Presented) -> Verdict:  # type: ignore[override]
        return super().verify(presented)


def _call(surface: str, headers: Headers) -> tuple[Answer, Recorder]:
    if surface in SYNC:
        recorder = Recorder()
        return SYNC[surface](recorder, "Any", headers, Reached()), recorder
    async_recorder = AsyncRecorder()
    answer = asyncio.run(ASYNC[surface](async_recorder, "Any", headers, Reached()))
    return answer, async_recorder


@pytest.mark.parametrize("surface", [*SYNC, *ASYNC])
@pytest.mark.parametrize("name", OVER_HTTP)
def test_a_header_is_read_alike_at_every_surface(name: str, surface: str) -> None:
    """The verifier gets the token of the table, or the call is CREDENTIALS_MISSING."""
    case = BEARER_CASES[name]
    headers = [("authorization", value) for value in case.values]
    answer, recorder = _call(surface, headers)
    assert recorder.tokens == ([] if case.token is None else [case.token])
    assert answer.reason == ("CREDENTIALS_MISSING" if case.token is None else "")
    assert answer.status in (("UNAUTHENTICATED", 401) if case.token is None else ("OK", 200))


@pytest.mark.parametrize("name", BEARER_CASES)
def test_a_raw_header_is_read_alike_in_asgi_and_wsgi(name: str) -> None:
    """The table also holds for headers that a server in front would change or reject."""
    case = BEARER_CASES[name]
    tokens = [] if case.token is None else [case.token]
    recorder, async_recorder = Recorder(), AsyncRecorder()

    async def app(*_: Any) -> None:
        """Do nothing."""

    async def exchange(*_: Any) -> Any:
        return {}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"Authorization", value.encode("latin-1")) for value in case.values],
    }
    asyncio.run(AuthMiddleware(app, async_recorder)(scope, exchange, exchange))
    assert async_recorder.tokens == tokens

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    if case.values:
        # A WSGI server joins repeated headers.
        environ["HTTP_AUTHORIZATION"] = ",".join(case.values)
    WSGIAuthMiddleware(lambda *_: [b""], recorder)(environ, lambda *_: None)
    assert recorder.tokens == tokens


@pytest.mark.parametrize("surface", [*SYNC, *ASYNC])
def test_the_peer_is_presented_with_the_token(surface: str) -> None:
    """The verifier gets the address of the caller, without a port."""
    _, recorder = _call(surface, [("authorization", "Bearer abc")])
    assert recorder.peers == ["127.0.0.1"]
