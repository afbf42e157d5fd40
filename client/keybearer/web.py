"""Guards web applications: pure ASGI and WSGI middleware, without any framework.

    app = AuthMiddleware(app, AsyncCachingVerifier(client))  # ASGI: Starlette, Django
    app = WSGIAuthMiddleware(app, CachingVerifier(client))       # WSGI: Flask, Django

The application finds the caller with `current_identity()`, and in `scope` or `environ` under
IDENTITY_KEY. A denial is 401, 403, 503 or 500, in JSON, with the challenge of RFC 6750.
"""

import http
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any, Final

import grpc

from keybearer._client.verifier import AsyncVerifier, Verifier
from keybearer._guard.guard import (
    Denial,
    check,
    check_async,
    denial_of,
    enter_identity,
    leave_identity,
)
from keybearer.access import AccessRule
from keybearer.models import Identity

IDENTITY_KEY: Final = "keybearer.identity"
"""Where the caller stands in an ASGI scope and a WSGI environ."""

RuleSource = AccessRule | Callable[[str, str], AccessRule | None]
"""One rule for everything, or what answers the rule for an HTTP method and a path; None denies."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
WSGIApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

ANY_KEY: Final = AccessRule()
"""Asks for a valid key and nothing more."""

_STATUS = {
    grpc.StatusCode.UNAUTHENTICATED: http.HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: http.HTTPStatus.FORBIDDEN,
    grpc.StatusCode.UNAVAILABLE: http.HTTPStatus.SERVICE_UNAVAILABLE,
}
_POLICY_VIOLATION = 1008
"""The close code of a web socket that is refused, RFC 6455 section 7.4.1."""


class AuthMiddleware:
    """Lets a request pass when its key meets the rule, and denies every other one. For ASGI.

    Args:
        app: What is guarded. Web sockets are guarded too, the lifespan protocol passes.
        verifier: Answers whose token it is.
        rule: The rule for every request, or a function that answers it for an HTTP method
            (`WEBSOCKET` for web sockets) and a path. The default asks for any valid key.

    Raises:
        TypeError: The verifier is not one for asyncio.
    """

    def __init__(
        self, app: ASGIApp, verifier: AsyncVerifier, *, rule: RuleSource = ANY_KEY
    ) -> None:
        if not inspect.iscoroutinefunction(verifier.verify):
            raise TypeError("AuthMiddleware needs a verifier for asyncio")
        self._app = app
        self._verifier = verifier
        self._rule = rule

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
        """Answer the caller; None for a public path."""
        try:
            method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
            rule = _rule_for(self._rule, method, scope["path"])
        except Exception as error:  # noqa: BLE001 - whatever happened, the answer is no
            return denial_of(error)
        if rule is not None and rule.public:
            return None

        def headers() -> list[tuple[str, bytes]]:
            return [
                ("authorization", value)
                for name, value in scope["headers"]
                if name.lower() == b"authorization"
            ]

        return await check_async(self._verifier, headers, rule)


class WSGIAuthMiddleware:
    """Lets a request pass when its key meets the rule, and denies every other one. For WSGI.

    Args:
        app: What is guarded.
        verifier: Answers whose token it is.
        rule: As for AuthMiddleware.

    Raises:
        TypeError: The verifier is one for asyncio.
    """

    def __init__(self, app: WSGIApp, verifier: Verifier, *, rule: RuleSource = ANY_KEY) -> None:
        if inspect.iscoroutinefunction(verifier.verify):
            raise TypeError("WSGIAuthMiddleware needs a verifier for threads")
        self._app = app
        self._verifier = verifier
        self._rule = rule

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Handle one request."""
        judgement = self._judge(environ)
        if isinstance(judgement, Denial):
            status = status_of(judgement)
            headers = [*headers_of(judgement).items(), ("content-type", "application/json")]
            start_response(f"{status.value} {status.phrase}", headers)
            return [body_of(judgement)]
        environ[IDENTITY_KEY] = judgement
        before = enter_identity(judgement)
        try:
            return _Body(self._app(environ, start_response), judgement)
        finally:
            leave_identity(before)

    def _judge(self, environ: dict[str, Any]) -> Identity | Denial | None:
        """Answer the caller; None for a public path."""
        try:
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            rule = _rule_for(self._rule, environ["REQUEST_METHOD"], path)
        except Exception as error:  # noqa: BLE001 - whatever happened, the answer is no
            return denial_of(error)
        if rule is not None and rule.public:
            return None

        def headers() -> list[tuple[str, str]]:
            header = environ.get("HTTP_AUTHORIZATION")
            return [] if header is None else [("authorization", header)]

        return check(self._verifier, headers, rule)


class _Body:
    """The body of a response, with the identity set while it is made."""

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
        """Close what the application answered, as PEP 3333 asks."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            close()


def status_of(denial: Denial) -> http.HTTPStatus:
    """Answer the HTTP status of a denial."""
    return _STATUS.get(denial.code, http.HTTPStatus.INTERNAL_SERVER_ERROR)


def headers_of(denial: Denial) -> dict[str, str]:
    """Answer the headers of a denial: the challenge, and when to try again."""
    headers = {"cache-control": "no-store"}
    if denial.challenge:
        headers["www-authenticate"] = denial.challenge
    if denial.retry_after is not None:
        headers["retry-after"] = str(max(1, round(denial.retry_after)))
    return headers


def body_of(denial: Denial) -> bytes:
    """Answer the body of a denial: the reason for programs, the message for people."""
    return json.dumps({"error": denial.reason, "message": denial.message}).encode()


def _rule_for(source: RuleSource, method: str, path: str) -> AccessRule | None:
    rule = source if isinstance(source, AccessRule) else source(method, path)
    if rule is not None and rule.operator_only:
        raise ValueError("operator_only is for keybearer's own methods")
    return rule


async def _deny(scope: Scope, send: Send, denial: Denial) -> None:
    headers = {**headers_of(denial), "content-type": "application/json"}
    start = {
        "status": status_of(denial).value,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    if scope["type"] == "http":
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": body_of(denial)})
    elif "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": body_of(denial)})
    else:
        # Before it is accepted: the server answers 403.
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
