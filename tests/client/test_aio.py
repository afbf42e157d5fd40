"""AsyncAuthInterceptor in front of a real grpc.aio.server."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from client.support import (
    Message,
    Reached,
    async_handlers,
    demo,
    details_of,
    handlers,
    serving_async,
    until_async,
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
from keybearer._guard import identity
from keybearer.testing import FakeKeybearer

pytestmark = pytest.mark.asyncio

METHOD = "/test.guarded.Demo/"
CODEC: Any = (Message.SerializeToString, Message.FromString)
SOON = 5.0
"""Seconds within which something must have happened."""


def _metadata(token: str) -> grpc.aio.Metadata:
    return grpc.aio.Metadata(("authorization", f"Bearer {token}"))


async def _failure_of(call: Any) -> grpc.RpcError:
    """Run a call that must fail, and return its error."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


async def test_streams_know_their_caller_at_every_message(fake_keybearer: FakeKeybearer) -> None:
    """The identity is set in every step of a generator, for every arity."""
    token = fake_keybearer.issue()
    key_id = fake_keybearer.identity_of(token).key_id
    messages = [Message(value=part) for part in ("a", "b", "c")]
    echoed = [f"{key_id} {part}" for part in ("a", "b", "c")]
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    async with (
        serving_async([interceptor], demo(async_handlers(Reached()))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        lines: Any = channel.unary_stream(f"{METHOD}Lines", *CODEC)
        collect: Any = channel.stream_unary(f"{METHOD}Collect", *CODEC)
        chat: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
        metadata = _metadata(token)
        answers = lines(Message(value="a b c"), metadata=metadata)
        assert [one.value async for one in answers] == echoed
        assert (await collect(iter(messages), metadata=metadata)).value == f"{key_id} a b c"
        assert [one.value async for one in chat(iter(messages), metadata=metadata)] == echoed


@pytest.mark.parametrize("arity", ["unary_stream", "stream_unary", "stream_stream"])
async def test_a_denied_stream_ends_before_anything_is_sent(
    arity: str, fake_keybearer: FakeKeybearer
) -> None:
    """A client that sends nothing yet gets the denial at once."""
    name = {"unary_stream": "Lines", "stream_unary": "Collect", "stream_stream": "Chat"}[arity]

    async def patient() -> AsyncIterator[Message]:
        await asyncio.sleep(SOON)
        yield Message()

    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    async with (
        serving_async([interceptor], demo(async_handlers(Reached()))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = getattr(channel, arity)(f"{METHOD}{name}", *CODEC)
        request = Message(value="a") if arity == "unary_stream" else patient()
        started = time.monotonic()
        error = await _failure_of(call(request, timeout=SOON))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details_of(error).reason == "CREDENTIALS_MISSING"
    assert time.monotonic() - started < SOON / 2


async def test_handlers_that_read_and_write_are_guarded(fake_keybearer: FakeKeybearer) -> None:
    """Coroutines that use `context.read` and `context.write` are guarded too."""

    async def chat(_: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(Message(value=f"{current_identity().key_id} {request.value}"))

    async def lines(request: Message, context: Any) -> None:
        for part in request.value.split():
            await context.write(Message(value=f"{current_identity().key_id} {part}"))

    methods = {
        "Chat": grpc.stream_stream_rpc_method_handler(chat, CODEC[1], CODEC[0]),
        "Lines": grpc.unary_stream_rpc_method_handler(lines, CODEC[1], CODEC[0]),
    }
    token = fake_keybearer.issue()
    key_id = fake_keybearer.identity_of(token).key_id
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    async with (
        serving_async([interceptor], demo(methods)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stream: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
        listing: Any = channel.unary_stream(f"{METHOD}Lines", *CODEC)
        raw: Any = channel.stream_stream(f"{METHOD}Chat")
        answers = stream(iter([Message(value="a")]), metadata=_metadata(token))
        assert [one.value async for one in answers] == [f"{key_id} a"]
        answers = listing(Message(value="a b"), metadata=_metadata(token))
        assert [one.value async for one in answers] == [f"{key_id} a", f"{key_id} b"]
        denied = await _failure_of(stream(iter(())))
        malformed = await _failure_of(raw(iter([b"\xff\xff"]), metadata=_metadata(token)))
    assert denied.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details_of(malformed).field_names == ("(message)",)


async def test_an_unknown_method_stays_unknown_to_strangers(fake_keybearer: FakeKeybearer) -> None:
    """An unknown method is UNIMPLEMENTED without a credential: tools probe for methods."""
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    async with (
        serving_async([interceptor], demo(async_handlers(Reached()))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(f"{METHOD}Nothing", *CODEC)
        error = await _failure_of(call(Message()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("arity", "name"),
    [("unary_unary", "Any"), ("stream_unary", "Collect"), ("stream_stream", "Chat")],
)
async def test_bytes_that_do_not_parse_are_judged_after_the_caller(
    arity: str, name: str, fake_keybearer: FakeKeybearer
) -> None:
    """Malformed bytes are UNAUTHENTICATED for strangers, INVALID_ARGUMENT for callers."""
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    reached = Reached()
    async with (
        serving_async([interceptor], demo(async_handlers(reached))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = getattr(channel, arity)(f"{METHOD}{name}")

        wrong: Any = b"\xff\xff"
        # A stream is denied before its first message; grpc.aio fails differently when it sends one
        # to a call that has ended.
        stranger = await _failure_of(call(wrong if arity == "unary_unary" else iter(())))
        assert reached.calls == []
        metadata = _metadata(fake_keybearer.issue())
        request = wrong if arity == "unary_unary" else iter([wrong])
        caller = await _failure_of(call(request, metadata=metadata))
    assert stranger.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caller.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(caller)
    assert (details.reason, details.field_names) == ("FIELD_INVALID", ("(message)",))


@pytest.mark.parametrize("arity", ["unary_unary", "unary_stream"])
async def test_a_handler_that_is_not_asynchronous_is_denied(
    arity: str, fake_keybearer: FakeKeybearer, caplog: pytest.LogCaptureFixture
) -> None:
    """A synchronous handler is denied, because it could not know its caller."""
    reached = Reached()
    name = "Any" if arity == "unary_unary" else "Lines"
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    with futures.ThreadPoolExecutor(1) as pool:
        async with (
            serving_async([interceptor], demo(handlers(reached)), pool=pool) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            call: Any = getattr(channel, arity)(f"{METHOD}{name}", *CODEC)
            metadata = _metadata(fake_keybearer.issue())
            error = await _failure_of(call(Message(value="a"), metadata=metadata))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "not asynchronous" in (error.details() or "")
    assert "handler is not asynchronous" in caplog.text
    assert reached.calls == []


async def test_a_public_handler_need_not_be_asynchronous(fake_keybearer: FakeKeybearer) -> None:
    """A synchronous public handler works, like the health servicer of grpcio-health-checking."""
    with futures.ThreadPoolExecutor(1) as pool:
        server = grpc.aio.server(
            migration_thread_pool=pool,
            interceptors=[AsyncAuthInterceptor(fake_keybearer.async_verifier())],
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1
        await server.stop(None)


async def test_a_public_handler_does_not_inherit_an_identity(
    fake_keybearer: FakeKeybearer,
) -> None:
    """A public handler has no identity, even if the server was started with one."""
    token = fake_keybearer.issue()
    before = identity.enter_identity(fake_keybearer.identity_of(token))
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    async with (
        serving_async([interceptor], demo(async_handlers(Reached()))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_unary(f"{METHOD}Public", *CODEC)
        assert (await call(Message())).value == "nobody "
    identity.leave_identity(before)


async def test_the_interceptor_for_threads_is_refused_by_grpc_aio(
    fake_keybearer: FakeKeybearer,
) -> None:
    """grpc.aio.server rejects the interceptor for threads."""
    interceptor: Any = AuthInterceptor(fake_keybearer.verifier())
    with pytest.raises(ValueError, match="ServerInterceptor"):
        grpc.aio.server(interceptors=[interceptor])


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("revoke", grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        ("lower", grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT"),
        ("outage", grpc.StatusCode.UNAVAILABLE, "VERIFIER_UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("arity", ["stream_stream", "stream_unary"])
async def test_an_open_stream_ends_with_the_reason(
    arity: str, end: str, code: grpc.StatusCode, reason: str, fake_keybearer: FakeKeybearer
) -> None:
    """A stream is judged again after the interval, with or without traffic."""
    token = fake_keybearer.issue()
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier(), rejudge_after=0.05)
    reached = Reached()

    async def requests() -> AsyncIterator[Message]:
        yield Message(value="first")
        await asyncio.sleep(SOON)

    async with (
        serving_async([interceptor], demo(async_handlers(reached))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        name = "Chat" if arity == "stream_stream" else "Collect"
        call: Any = getattr(channel, arity)(f"{METHOD}{name}", *CODEC)
        stream = call(requests(), metadata=_metadata(token), timeout=SOON)
        await until_async(lambda: bool(reached.calls))
        if end == "revoke":
            fake_keybearer.revoke(token)
        elif end == "lower":
            fake_keybearer.change(token, role=Role.VALIDATOR)
        started = time.monotonic()
        if end == "outage":
            with fake_keybearer.outage():
                error = await _failure_of(stream)
        else:
            error = await _failure_of(stream)
    assert error.code() is code
    assert details_of(error).reason == reason
    assert time.monotonic() - started < SOON / 2


async def test_an_open_stream_of_a_live_key_stays_open(fake_keybearer: FakeKeybearer) -> None:
    """Judging again does not end the stream of a key that is still accepted."""
    token = fake_keybearer.issue()
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier(), rejudge_after=0.02)
    judged = asyncio.Event()

    async def requests() -> AsyncIterator[Message]:
        yield Message(value="first")
        await judged.wait()
        yield Message(value="second")

    async with (
        serving_async([interceptor], demo(async_handlers(Reached()))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
        stream = call(requests(), metadata=_metadata(token), timeout=SOON)
        before = fake_keybearer.questions
        await until_async(lambda: fake_keybearer.questions >= before + 5)
        judged.set()
        assert len([one async for one in stream]) == 2


class Forgetful:
    """Accepts every token once."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    async def verify(self, presented: Presented) -> Verdict:
        if presented.token in self._known:
            return Verdict(outcome=Outcome.REVOKED)
        self._known.add(presented.token)
        identity = Identity(
            key_id="key",
            account_id="account",
            owner_id="owner",
            effective_role=Role.DEVELOPER,
            granted_role=Role.DEVELOPER,
        )
        return Verdict(outcome=Outcome.VALID, identity=identity)


@pytest.mark.parametrize("style", ["generator", "writer"])
async def test_a_stream_that_never_pauses_ends_with_the_reason(style: str) -> None:
    """A denial arrives also when it comes while a message is being sent."""

    async def generate(request: Message, context: Any) -> AsyncIterator[Message]:
        while True:
            yield Message(value="x" * 10_000)

    async def write(request: Message, context: Any) -> None:
        while True:
            await context.write(Message(value="x" * 10_000))

    behaviour = generate if style == "generator" else write
    method = grpc.unary_stream_rpc_method_handler(behaviour, CODEC[1], CODEC[0])
    interceptor = AsyncAuthInterceptor(Forgetful(), rejudge_after=1e-9)
    async with (
        serving_async([interceptor], demo({"Lines": method})) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call: Any = channel.unary_stream(f"{METHOD}Lines", *CODEC)
        for number in range(50):
            stream = call(Message(), metadata=_metadata(f"token{number}"), timeout=SOON)
            error = await _failure_of(stream)
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            assert details_of(error).reason == "CREDENTIALS_INVALID"
