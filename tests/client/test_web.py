"""The web guards: what the table of surfaces does not cover."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from keybearer import AccessRule, NoIdentityError, Role, current_identity
from keybearer.fastapi import KeyAuth
from keybearer.testing import FakeKeybearer
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

Sent = list[dict[str, Any]]


def _connect(
    keybearer: FakeKeybearer, scope: dict[str, Any], token: str = "", **arguments: Any
) -> tuple[Sent, list[str]]:
    """Open an ASGI connection; return what was sent and which scopes the application saw."""
    sent: Sent = []
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read before the guard has decided")

    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    guarded = AuthMiddleware(app, keybearer.async_verifier(), **arguments)
    asyncio.run(guarded({"path": "/", "headers": headers, **scope}, receive, send))
    return sent, seen


def test_a_web_socket_is_refused_before_it_is_accepted(fake_keybearer: FakeKeybearer) -> None:
    """A web socket is rejected before it is accepted, with 401 where the server allows it."""
    sent, seen = _connect(fake_keybearer, {"type": "websocket"})
    assert sent == [{"type": "websocket.close", "code": 1008}]
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    sent, _ = _connect(fake_keybearer, {"type": "websocket", "extensions": extensions})
    assert sent[0]["type"] == "websocket.http.response.start"
    assert sent[0]["status"] == 401
    assert seen == []


def test_a_web_socket_with_a_key_is_let_in(fake_keybearer: FakeKeybearer) -> None:
    """A web socket with a key is accepted; its method for the rule is WEBSOCKET."""
    token = fake_keybearer.issue()

    def rule(method: str, path: str) -> AccessRule | None:
        return AccessRule() if (method, path) == ("WEBSOCKET", "/") else None

    _, seen = _connect(fake_keybearer, {"type": "websocket"}, token, rule=rule)
    assert seen == ["websocket"]


@pytest.mark.parametrize("presented", ["a b", "a,b", "a\x01b", "a\xe9b", "a\tb"])
def test_what_is_no_token_is_refused_without_asking(
    presented: str, fake_keybearer: FakeKeybearer
) -> None:
    """A malformed header is CREDENTIALS_MISSING, also during an outage."""
    fake_keybearer.stop()
    sent, seen = _connect(fake_keybearer, {"type": "http", "method": "GET"}, presented)
    assert sent[0]["status"] == 401
    assert json.loads(sent[1]["body"])["error"] == "CREDENTIALS_MISSING"
    assert seen == []


def test_the_lifespan_passes(fake_keybearer: FakeKeybearer) -> None:
    """The lifespan protocol passes without a credential."""
    _, seen = _connect(fake_keybearer, {"type": "lifespan"})
    assert seen == ["lifespan"]


@pytest.mark.parametrize(
    "rule",
    [lambda method, path: 1 / 0, lambda method, path: AccessRule(operator_only=True)],
    ids=["raises", "for operators"],
)
def test_a_rule_that_cannot_be_judged_denies(
    rule: Callable[[str, str], AccessRule | None], fake_keybearer: FakeKeybearer
) -> None:
    """A rule that cannot be judged is 500, and the application is not reached."""
    token = fake_keybearer.issue(Role.ADMIN)
    sent, seen = _connect(fake_keybearer, {"type": "http", "method": "GET"}, token, rule=rule)
    assert sent[0]["status"] == 500
    assert seen == []

    statuses: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "HTTP_AUTHORIZATION": f"Bearer {token}"}
    guarded = WSGIAuthMiddleware(_never, fake_keybearer.verifier(), rule=rule)
    list(guarded(environ, lambda status, _: statuses.append(status)))
    assert statuses == ["500 Internal Server Error"]


def _never(*_: Any) -> Any:
    raise AssertionError("the application is not to be reached")


def test_a_connection_of_an_unknown_type_is_denied(fake_keybearer: FakeKeybearer) -> None:
    """A connection of an unknown type is denied, with or without a key."""
    _, seen = _connect(fake_keybearer, {"type": "smoke-signals"}, fake_keybearer.issue())
    assert seen == []


def test_the_body_of_a_wsgi_application_is_closed(fake_keybearer: FakeKeybearer) -> None:
    """The body of a WSGI application is closed, and no identity remains."""
    closed: list[bool] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield current_identity().key_name.encode()

        def close(self) -> None:
            closed.append(True)

    token = fake_keybearer.issue(name="mine")
    environ = {"REQUEST_METHOD": "GET", "HTTP_AUTHORIZATION": f"Bearer {token}"}
    guarded = WSGIAuthMiddleware(lambda *_: Body(), fake_keybearer.verifier())
    body: Any = guarded(environ, _never)
    assert next(body) == b"mine"
    with pytest.raises(NoIdentityError):
        current_identity()
    body.close()
    assert closed == [True]


def test_a_verifier_of_the_wrong_flavour_is_refused(fake_keybearer: FakeKeybearer) -> None:
    """A verifier for the other kind of application is rejected."""
    blocking: Any = fake_keybearer.verifier()
    asynchronous: Any = fake_keybearer.async_verifier()
    with pytest.raises(TypeError, match="for asyncio"):
        AuthMiddleware(_never, blocking)
    with pytest.raises(TypeError, match="for asyncio"):
        KeyAuth(blocking)
    with pytest.raises(TypeError, match="for threads"):
        WSGIAuthMiddleware(_never, asynchronous)


def test_scopes_are_a_list(fake_keybearer: FakeKeybearer) -> None:
    """A string instead of a list of scopes is rejected."""
    with pytest.raises(TypeError, match="scopes"):
        KeyAuth(fake_keybearer.async_verifier())(scopes="clusters.read")
