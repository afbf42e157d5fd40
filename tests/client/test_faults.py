"""Every line of every guard fails once, and nobody is let in by it."""

import asyncio
import contextvars
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import grpc.aio
import pytest

import keybearer
from client.support import (
    Message,
    Reached,
    async_handlers,
    calling,
    demo,
    handlers,
    serving_async,
    until,
)
from keybearer import (
    AsyncAuthInterceptor,
    AuthInterceptor,
    Identity,
    Outcome,
    Presented,
    Role,
    Verdict,
    current_identity,
)
from keybearer import aio as aio_module
from keybearer._guard import check
from keybearer._guard import interceptor as interceptor_module
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

PACKAGE = Path(keybearer.__file__).parent
GUARDS = {
    str(path)
    for pattern in ("_guard/*.py", "_wire/*.py", "aio.py", "web.py")
    for path in PACKAGE.glob(pattern)
}
CODEC: Any = (Message.SerializeToString, Message.FromString)
METHOD = "/test.guarded.Demo/"
IDENTITY = Identity(
    key_id="key",
    account_id="account",
    owner_id="owner",
    effective_role=Role.DEVELOPER,
    granted_role=Role.DEVELOPER,
)
BESIDE_THE_CALL = {"_forget", "_watch_ended", "_until_denied", "_end_call", "<lambda>"}
"""Functions that run beside a call or after it; what it answered cannot be taken back."""
METHODS = {"unary_unary": "Any", "unary_stream": "Lines", "stream_stream": "Chat"}


class Fault(Exception):
    """The error of the chosen line."""


class Fixed:
    """A verifier that knows one token."""

    def verify(self, presented: Presented) -> Verdict:
        return _verdict(presented.token)


class AsyncFixed:
    """The same for asyncio."""

    async def verify(self, presented: Presented) -> Verdict:
        return _verdict(presented.token)


def _verdict(token: str) -> Verdict:
    if token == "good":
        return Verdict(outcome=Outcome.VALID, identity=IDENTITY)
    return Verdict(outcome=Outcome.NOT_FOUND)


class Injector:
    """Raises a Fault at the nth line of the guards, except in the threads that judge streams."""

    def __init__(self, line: int) -> None:
        self._left = line
        self._lock = threading.Lock()
        self.place = ""
        """Where it was raised."""

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Trace the frames of the guards."""
        if frame.f_code.co_filename not in GUARDS or frame.f_code.co_name in BESIDE_THE_CALL:
            return None
        if threading.current_thread().name.startswith("keybearer-stream"):
            return None
        if event == "line":
            with self._lock:
                self._left -= 1
                if self._left == 0:
                    name = Path(frame.f_code.co_filename).name
                    self.place = f"{name}:{frame.f_lineno}"
                    raise Fault(self.place)
        return self.trace


@contextmanager
def injecting(line: int) -> Iterator[Injector]:
    """Inject a fault at the nth line, in this thread and in those that it starts."""
    injector = Injector(line)
    before = sys.gettrace()
    threading.settrace(injector.trace)
    sys.settrace(injector.trace)
    try:
        yield injector
    finally:
        sys.settrace(before)
        threading.settrace(before)


Surface = Callable[[str, Reached, int], tuple[bool, str]]
"""Makes one call with a token while a line fails; answers whether it succeeded, and which line."""


def _grpc(arity: str) -> Surface:
    def call(token: str, reached: Reached, line: int) -> tuple[bool, str]:
        guarded = AuthInterceptor(Fixed())
        with (
            injecting(line) as injector,
            calling([guarded], demo(handlers(reached)), workers=1) as channel,
        ):
            multicallable: Any = getattr(channel, arity)(f"{METHOD}{METHODS[arity]}", *CODEC)
            succeeded = _succeeds(lambda: multicallable(_request(arity), **_arguments(token)))
        return succeeded, injector.place

    return call


def _succeeds(call: Callable[[], Any]) -> bool:
    try:
        response = call()
        if hasattr(response, "__next__"):
            list(response)
    except grpc.RpcError:
        return False
    return True


def _request(arity: str) -> Any:
    message = Message(value="a b")
    return iter([message]) if arity.startswith("stream") else message


def _arguments(token: str) -> dict[str, Any]:
    return {"metadata": (("authorization", f"Bearer {token}"),), "timeout": 10}


def _grpc_aio(arity: str) -> Surface:
    async def call(token: str, reached: Reached, line: int) -> tuple[bool, str]:
        guarded = AsyncAuthInterceptor(AsyncFixed())
        with injecting(line) as injector:
            async with (
                serving_async([guarded], demo(async_handlers(reached))) as address,
                grpc.aio.insecure_channel(address) as channel,
            ):
                multicallable: Any = getattr(channel, arity)(f"{METHOD}{METHODS[arity]}", *CODEC)
                response = multicallable(_request(arity), **_arguments(token))
                try:
                    if arity.endswith("stream"):
                        async for _ in response:
                            pass
                    else:
                        await response
                except grpc.RpcError:
                    return False, injector.place
        return True, injector.place

    return lambda token, reached, line: asyncio.run(call(token, reached, line))


def _asgi(token: str, reached: Reached, line: int) -> tuple[bool, str]:
    statuses = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.calls.append(current_identity().key_id)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
    }
    guarded: Any = AuthMiddleware(app, AsyncFixed())
    with injecting(line) as injector:
        try:
            asyncio.run(guarded(scope, send, send))
        except Fault:
            # The server in front answers 500.
            return False, injector.place
    return statuses == [200], injector.place


def _wsgi(token: str, reached: Reached, line: int) -> tuple[bool, str]:
    statuses = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        reached.calls.append(current_identity().key_id)
        start_response("200 OK", [])
        yield b"hello"

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "HTTP_AUTHORIZATION": f"Bearer {token}",
    }
    guarded = WSGIAuthMiddleware(app, Fixed())
    with injecting(line) as injector:
        try:
            list(guarded(environ, lambda status, _: statuses.append(status)))
        except Fault:
            return False, injector.place
    return statuses == ["200 OK"], injector.place


SURFACES: dict[str, Surface] = {
    **{f"grpc {arity}": _grpc(arity) for arity in METHODS},
    **{f"grpc.aio {arity}": _grpc_aio(arity) for arity in METHODS},
    "asgi": _asgi,
    "wsgi": _wsgi,
}


def _fail_every_line(surface: Surface, token: str) -> tuple[set[str], set[str], set[str]]:
    """Call once for every line; return the lines that failed, let in, and reached a handler."""
    failed: set[str] = set()
    let_in: set[str] = set()
    handled: set[str] = set()
    for line in range(1, 1000):
        reached = Reached()
        # A guard that fails where it leaves an identity leaves it to nobody but this call.
        context = contextvars.copy_context()
        succeeded, place = context.run(surface, token, reached, line)
        if not place:
            break
        failed.add(place)
        if succeeded:
            let_in.add(place)
        if reached.calls:
            handled.add(place)
    return failed, let_in, handled


@pytest.mark.parametrize("name", SURFACES)
def test_a_line_that_fails_never_lets_a_stranger_in(name: str) -> None:
    """With a bad token the handler is never reached, whichever line fails."""
    failed, let_in, handled = _fail_every_line(SURFACES[name], "bad")
    assert len(failed) > 20
    assert let_in == set()
    assert handled == set()


@pytest.mark.parametrize("name", SURFACES)
def test_a_line_that_fails_denies_even_a_good_token(name: str) -> None:
    """With a good token, a guard that fails lets nobody in."""
    failed, let_in, _ = _fail_every_line(SURFACES[name], "good")
    assert len(failed) > 20
    assert let_in == set()


def test_the_injection_catches_a_guard_that_fails_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a check that returns an identity when something fails is found."""

    def fail_open(error: Exception) -> Any:
        return IDENTITY

    monkeypatch.setattr(check, "denial_of", fail_open)
    _, let_in, handled = _fail_every_line(SURFACES["grpc unary_unary"], "bad")
    assert let_in
    assert handled


def test_streams_end_when_what_watches_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that can no longer be judged again is cancelled."""

    def fail(self: Any, now: float) -> bool:
        if threading.current_thread().name == "keybearer-streams":
            raise Fault
        return False

    monkeypatch.setattr(interceptor_module._Stream, "is_due", fail)
    hold = threading.Event()
    reached = Reached()

    def requests() -> Iterator[Message]:
        yield Message()
        hold.wait(10)

    with calling([AuthInterceptor(Fixed(), rejudge_after=0.1)], demo(handlers(reached))) as channel:
        call: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
        stream = call(requests(), **_arguments("good"))
        next(stream)
        until(lambda: not stream.is_active())
        assert stream.code() is grpc.StatusCode.CANCELLED
        hold.set()


def test_an_asynchronous_stream_ends_when_what_watches_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream that can no longer be judged again is denied."""

    async def run() -> grpc.StatusCode:
        guarded = AsyncAuthInterceptor(AsyncFixed(), rejudge_after=0.05)
        async with (
            serving_async([guarded], demo(async_handlers(Reached()))) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            call: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
            stream = call(**_arguments("good"))
            await stream.write(Message())
            await stream.read()
            monkeypatch.setattr(aio_module, "check_async", None)
            code: grpc.StatusCode = await stream.code()
            return code

    assert asyncio.run(run()) is grpc.StatusCode.INTERNAL
