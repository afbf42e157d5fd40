"""Guards for web applications: pure ASGI and WSGI middleware, without any framework.

    app = AuthMiddleware(app, AsyncCachingVerifier(client))  # ASGI: Starlette, Django
    app = WSGIAuthMiddleware(app, CachingVerifier(client))   # WSGI: Flask, Django

The application finds the caller with `current_identity()`, and in `scope` or `environ` under
IDENTITY_KEY. A denial is 401, 403, 503 or 500, in JSON, with the challenge of RFC 6750.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

from keybearer._guard.check import check, check_async, denial_of
from keybearer._guard.identity import enter_identity, leave_identity
from keybearer._guard.rules import assert_judgeable
from keybearer._guard.verifier import AsyncVerifier, Verifier, assert_verifier
from keybearer._wire.arguments import kind_of
from keybearer._wire.bearer import parse_credentials, token_of
from keybearer._wire.denial import Denial
from keybearer._wire.http import JSON, error_body, error_headers, http_status_of
from keybearer.access import AccessRule
from keybearer.models import Identity, Presented

__all__ = [
    "ANY_KEY",
    "IDENTITY_KEY",
    "ASGIApp",
    "AuthMiddleware",
    "Receive",
    "RuleSource",
    "Scope",
    "Send",
    "WSGIApp",
    "WSGIAuthMiddleware",
]

IDENTITY_KEY: Final = "keybearer.identity"
"""The key of the caller's identity in an ASGI scope and a WSGI environ."""

RuleSource = AccessRule | Callable[[str, str], AccessRule | None]
"""One rule for every request, or a function that returns the rule for an HTTP method and a path.
None denies."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

ANY_KEY: Final = AccessRule()
"""Requires a valid key and nothing more."""

_POLICY_VIOLATION: Final = 1008
"""The close code of a rejected web socket, RFC 6455 section 7.4.1."""


class AuthMiddleware:
    """Guards an ASGI application: a request passes when its key meets the rule.

    Args:
        app: The application. Web sockets are guarded too; the lifespan protocol passes.
        verifier: Finds the identity behind a credential.
        rule: The rule for every request, or a function that returns the rule for an HTTP method
            (`WEBSOCKET` for web sockets) and a path. The default requires any valid key.

    Raises:
        TypeError: The verifier is not one for asyncio, or the rule is no rule and no function.
    """

    def __init__(
        self, app: ASGIApp, verifier: AsyncVerifier, *, rule: RuleSource = ANY_KEY
    ) -> None:
        assert_verifier(self, verifier, is_async=True)
        _assert_rule_source(rule)
        self._app = app
        self._verifier = verifier
        self._rule = rule

    def __repr__(self) -> str:
        return f"AuthMiddleware({self._app!r}, {self._verifier!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        judgement = await self._judge(scope)
        if isinstance(judgement, Denial):
            await _deny(scope, send, judgement)
            return
        before = enter_identity(judgement)
        try:
            await self._app({**scope, IDENTITY_KEY: judgement}, receive, send)
        finally:
            leave_identity(before)

    async def _judge(self, scope: Scope) -> Identity | Denial | None:
        """Return the caller or a denial; None for a public path."""
        try:
            method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
            rule = _rule_for(self._rule, method, scope["path"])
        except Exception as error:  # noqa: BLE001 - whatever happened, the request is denied
            return denial_of(error)
        if rule is not None and rule.public:
            return None
        return await check_async(self._verifier, rule, _presented_in_scope, scope)


class WSGIAuthMiddleware:
    """Guards a WSGI application: a request passes when its key meets the rule.

    Args:
        app: The application.
        verifier: Finds the identity behind a credential.
        rule: As for AuthMiddleware.

    Raises:
        TypeError: The verifier is one for asyncio, or the rule is no rule and no function.
    """

    def __init__(self, app: WSGIApp, verifier: Verifier, *, rule: RuleSource = ANY_KEY) -> None:
        assert_verifier(self, verifier, is_async=False)
        _assert_rule_source(rule)
        self._app = app
        self._verifier = verifier
        self._rule = rule

    def __repr__(self) -> str:
        return f"WSGIAuthMiddleware({self._app!r}, {self._verifier!r})"

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Handle one request."""
        judgement = self._judge(environ)
        if isinstance(judgement, Denial):
            status = http_status_of(judgement.code)
            headers = [*_headers_of(judgement).items()]
            start_response(f"{status.value} {status.phrase}", headers)
            return [_body_of(judgement)]
        environ[IDENTITY_KEY] = judgement
        before = enter_identity(judgement)
        try:
            return _Body(self._app(environ, start_response), judgement)
        finally:
            leave_identity(before)

    def _judge(self, environ: dict[str, Any]) -> Identity | Denial | None:
        """Return the caller or a denial; None for a public path."""
        try:
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            rule = _rule_for(self._rule, environ["REQUEST_METHOD"], path)
        except Exception as error:  # noqa: BLE001 - whatever happened, the request is denied
            return denial_of(error)
        if rule is not None and rule.public:
            return None
        return check(self._verifier, rule, _presented_in_environ, environ)


class _Body:
    """The body of a response. The identity is set while the application produces it."""

    def __init__(self, parts: Iterable[bytes], identity: Identity | None) -> None:
        self._parts = parts
        self._iterator = iter(parts)
        self._identity = identity

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        before = enter_identity(self._identity)
        try:
            return next(self._iterator)
        finally:
            leave_identity(before)

    def close(self) -> None:
        """Close what the application returned, as PEP 3333 requires."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()


def _presented_in_scope(scope: Scope) -> Presented | None:
    token = token_of(value for name, value in scope["headers"] if name.lower() == b"authorization")
    client = scope.get("client")
    return None if token is None else Presented(token, client[0] if client else "")


def _presented_in_environ(environ: dict[str, Any]) -> Presented | None:
    # A server joins repeated headers with a comma, and then this is no well-formed credential.
    header = environ.get("HTTP_AUTHORIZATION")
    token = None if header is None else parse_credentials(header)
    return None if token is None else Presented(token, environ.get("REMOTE_ADDR", ""))


def _assert_rule_source(rule: object) -> None:
    if not isinstance(rule, AccessRule) and not callable(rule):
        raise TypeError(
            "rule must be an AccessRule or a function of a method and a path that returns one, "
            f"not {kind_of(rule)}"
        )


def _rule_for(source: RuleSource, method: str, path: str) -> AccessRule | None:
    rule = source if isinstance(source, AccessRule) else source(method, path)
    if rule is not None:
        assert_judgeable(f"{method} {path}", rule)
    return rule


def _headers_of(denial: Denial) -> dict[str, str]:
    headers = error_headers(challenge=denial.challenge, retry_after=denial.retry_after)
    return {**headers, "content-type": JSON}


def _body_of(denial: Denial) -> bytes:
    return error_body(denial.reason, denial.message).encode()


async def _deny(scope: Scope, send: Send, denial: Denial) -> None:
    start = {
        "status": http_status_of(denial.code).value,
        "headers": [(name.encode(), value.encode()) for name, value in _headers_of(denial).items()],
    }
    if scope["type"] == "http":
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": _body_of(denial)})
    elif "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": _body_of(denial)})
    else:
        # The web socket is not accepted yet, so the server answers 403.
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
