"""One call through every surface of the client that guards something."""

import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import fastapi
import grpc
import grpc.aio
import httpx

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
    AsyncVerifier,
    AuthInterceptor,
    Identity,
    Verifier,
    current_identity,
)
from keybearer.fastapi import KeyAuth
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """The response of a surface."""

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
    """Call a grpc.server."""
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
    """Call a grpc.aio.server."""
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
    """Return the rule of the method that the path of a web request names."""
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
    """Call a pure ASGI application."""

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
    """Call a FastAPI application."""
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
    """Call a WSGI application behind a real server."""

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
