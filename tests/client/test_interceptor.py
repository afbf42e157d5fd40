"""AuthInterceptor in front of a real grpc.server."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from client.support import (
    COMPLETE,
    DEMO,
    Message,
    Reached,
    calling,
    demo,
    details_of,
    failure_of,
    handlers,
    serving,
    until,
)
from keybearer import (
    AccessRule,
    AsyncAuthInterceptor,
    AuthInterceptor,
    Role,
    RuleError,
    current_identity,
)
from keybearer.testing import FakeKeybearer

METHOD = "/test.guarded.Demo/"
CODEC: Any = (Message.SerializeToString, Message.FromString)
SOON = 5.0
"""Seconds within which something must have happened."""


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def _code(call: Any) -> grpc.StatusCode:
    """Run a call to its end, and return its status."""
    try:
        for _ in call if hasattr(call, "__next__") else [call()]:
            pass
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
def guarded(fake_keybearer: FakeKeybearer) -> Iterator[grpc.Channel]:
    """A channel to a service that the fake keybearer guards."""
    interceptor = AuthInterceptor(fake_keybearer.verifier())
    with calling([interceptor], demo(handlers(Reached()))) as channel:
        yield channel


def test_streams_know_their_caller_at_every_message(
    guarded: grpc.Channel, fake_keybearer: FakeKeybearer
) -> None:
    """The identity is set in every step of a generator, for every arity."""
    token = fake_keybearer.issue()
    key_id = fake_keybearer.identity_of(token).key_id
    messages = [Message(value=part) for part in ("a", "b", "c")]
    echoed = [f"{key_id} {part}" for part in ("a", "b", "c")]

    lines: Any = guarded.unary_stream(f"{METHOD}Lines", *CODEC)
    collect: Any = guarded.stream_unary(f"{METHOD}Collect", *CODEC)
    chat: Any = guarded.stream_stream(f"{METHOD}Chat", *CODEC)
    metadata = _metadata(token)
    assert [one.value for one in lines(Message(value="a b c"), metadata=metadata)] == echoed
    assert collect(iter(messages), metadata=metadata).value == f"{key_id} a b c"
    assert [one.value for one in chat(iter(messages), metadata=metadata)] == echoed


@pytest.mark.parametrize("arity", ["unary_stream", "stream_unary", "stream_stream"])
def test_a_denied_stream_ends_before_anything_is_sent(arity: str, guarded: grpc.Channel) -> None:
    """A client that sends nothing yet gets the denial at once."""
    name = {"unary_stream": "Lines", "stream_unary": "Collect", "stream_stream": "Chat"}[arity]
    call: Any = getattr(guarded, arity)(f"{METHOD}{name}", *CODEC)
    denied = threading.Event()

    def patient() -> Iterator[Message]:
        denied.wait(SOON)
        return
        yield

    request = Message(value="a") if arity == "unary_stream" else patient()
    started = time.monotonic()
    error = failure_of(lambda: call(request, timeout=SOON))
    denied.set()
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details_of(error).reason == "CREDENTIALS_MISSING"
    assert time.monotonic() - started < SOON / 2


def test_an_unknown_method_stays_unknown_to_strangers(guarded: grpc.Channel) -> None:
    """An unknown method is UNIMPLEMENTED without a credential: tools probe for methods."""
    call: Any = guarded.unary_unary(f"{METHOD}Nothing", *CODEC)
    assert _code(lambda: call(Message())) is grpc.StatusCode.UNIMPLEMENTED


def test_a_public_method_has_no_caller_even_on_a_thread_that_had_one(
    fake_keybearer: FakeKeybearer,
) -> None:
    """A public method has no identity, also on a thread that had one."""
    token = fake_keybearer.issue()
    interceptor = AuthInterceptor(fake_keybearer.verifier())
    with calling([interceptor], demo(handlers(Reached())), workers=1) as channel:
        guarded: Any = channel.unary_unary(f"{METHOD}Any", *CODEC)
        public: Any = channel.unary_unary(f"{METHOD}Public", *CODEC)
        for _ in range(3):
            assert guarded(Message(), metadata=_metadata(token)).value != "nobody "
            assert public(Message(), metadata=_metadata(token)).value == "nobody "


def test_health_and_reflection_need_no_credential(fake_keybearer: FakeKeybearer) -> None:
    """Health and reflection need no credential."""
    server = grpc.server(
        futures.ThreadPoolExecutor(4),
        interceptors=[AuthInterceptor(fake_keybearer.verifier())],
        options=(("grpc.so_reuseport", 0),),
    )
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    reflection.enable_server_reflection([reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == 1
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == 1
        watch.cancel()
        probe: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        assert len(list(probe(iter([b":\x00"])))) == 1
    server.stop(None).wait()


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Reset",
        "/grpc.health.v1.HealthExtra/Check",
        "/grpc.reflection.v1.ServerReflection/Other",
    ],
)
def test_only_the_exact_methods_of_health_and_reflection_are_public(
    path: str, fake_keybearer: FakeKeybearer
) -> None:
    """Only the exact paths of health and reflection are public."""
    _, service_name, method = path.split("/")
    reached = Reached()
    behaviour = handlers(reached)["Any"]
    interceptor = AuthInterceptor(fake_keybearer.verifier())
    with calling([interceptor], demo({method: behaviour}, service_name)) as channel:
        call: Any = channel.unary_unary(path, *CODEC)
        assert _code(lambda: call(Message())) is grpc.StatusCode.PERMISSION_DENIED
    assert reached.calls == []


def test_health_can_be_guarded_too(fake_keybearer: FakeKeybearer) -> None:
    """`public_methods` replaces the default public paths."""
    interceptor = AuthInterceptor(fake_keybearer.verifier(), public_methods=())
    method = demo({"Check": handlers(Reached())["Any"]}, "grpc.health.v1.Health")
    with calling([interceptor], method) as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check", *CODEC)
        assert _code(lambda: call(Message())) is grpc.StatusCode.PERMISSION_DENIED


def test_a_mapping_gives_rules_to_methods_without_one(fake_keybearer: FakeKeybearer) -> None:
    """A mapping gives rules to methods, and overrides options."""
    rules = {
        f"{METHOD}Unruled": AccessRule(role=Role.DEVELOPER),
        f"{METHOD}Any": AccessRule(role=Role.ADMIN),
    }
    interceptor = AuthInterceptor(fake_keybearer.verifier(), rules=rules)
    metadata = _metadata(fake_keybearer.issue(Role.DEVELOPER))
    with calling([interceptor], demo(handlers(Reached()))) as channel:
        unruled: Any = channel.unary_unary(f"{METHOD}Unruled", *CODEC)
        ruled: Any = channel.unary_unary(f"{METHOD}Any", *CODEC)
        assert _code(lambda: unruled(Message(), metadata=metadata)) is grpc.StatusCode.OK
        code = _code(lambda: ruled(Message(), metadata=metadata))
        assert code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("flavour", [AuthInterceptor, AsyncAuthInterceptor])
def test_a_service_with_a_hole_is_refused_at_start(
    flavour: Any, fake_keybearer: FakeKeybearer
) -> None:
    """A named service with a method without a rule is rejected at the start."""
    verifier = (
        fake_keybearer.verifier() if flavour is AuthInterceptor else fake_keybearer.async_verifier()
    )
    flavour(verifier, services=[COMPLETE])
    with pytest.raises(RuleError, match="Unruled"):
        flavour(verifier, services=[DEMO], rules={f"{METHOD}Operators": AccessRule()})
    with pytest.raises(RuleError, match="operator_only"):
        flavour(verifier, services=[DEMO], rules={f"{METHOD}Unruled": AccessRule()})
    with pytest.raises(RuleError, match="operator_only"):
        flavour(verifier, rules={"/a.B/C": AccessRule(operator_only=True)})


def test_bytes_that_do_not_parse_are_judged_after_the_caller(
    guarded: grpc.Channel, fake_keybearer: FakeKeybearer
) -> None:
    """Malformed bytes are UNAUTHENTICATED for strangers, INVALID_ARGUMENT for callers."""
    call: Any = guarded.unary_unary(f"{METHOD}Any")
    with pytest.raises(grpc.RpcError) as stranger:
        call(b"\xff\xff")
    assert stranger.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caller:
        call(b"\xff\xff", metadata=_metadata(fake_keybearer.issue()))
    assert caller.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(caller.value)
    assert (details.reason, details.field_names) == ("FIELD_INVALID", ("(message)",))


@pytest.mark.parametrize(
    ("arity", "name"), [("stream_unary", "Collect"), ("stream_stream", "Chat")]
)
def test_a_message_of_a_stream_that_does_not_parse_ends_it(
    arity: str, name: str, guarded: grpc.Channel, fake_keybearer: FakeKeybearer
) -> None:
    """A malformed message of a stream ends it with INVALID_ARGUMENT."""
    call: Any = getattr(guarded, arity)(f"{METHOD}{name}")
    messages = iter([Message(value="a").SerializeToString(), b"\xff\xff"])
    metadata = _metadata(fake_keybearer.issue())
    error = failure_of(lambda: call(messages, metadata=metadata, timeout=SOON))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error).field_names == ("(message)",)


def test_a_behaviour_keeps_its_own_thread_pool(fake_keybearer: FakeKeybearer) -> None:
    """The wrapper keeps `experimental_thread_pool`, which grpc reads."""

    def where(request: Message, context: grpc.ServicerContext) -> Message:
        return Message(value=threading.current_thread().name)

    pool = futures.ThreadPoolExecutor(1, thread_name_prefix="own-pool")
    where.experimental_thread_pool = pool  # type: ignore[attr-defined]
    method = grpc.unary_unary_rpc_method_handler(where, CODEC[1], CODEC[0])
    interceptor = AuthInterceptor(fake_keybearer.verifier())
    with calling([interceptor], demo({"Any": method})) as channel:
        call: Any = channel.unary_unary(f"{METHOD}Any", *CODEC)
        answer = call(Message(), metadata=_metadata(fake_keybearer.issue()))
    assert answer.value.startswith("own-pool")
    pool.shutdown()


def test_a_non_blocking_behaviour_is_guarded_and_works(fake_keybearer: FakeKeybearer) -> None:
    """A non-blocking behaviour, which responds through a callback, is guarded."""
    callers = []

    def push(request: Message, context: Any, send: Any) -> None:
        callers.append(current_identity().key_id)
        send(Message(value="pushed"))
        send(None)

    push.experimental_non_blocking = True  # type: ignore[attr-defined]
    method = grpc.unary_stream_rpc_method_handler(push, CODEC[1], CODEC[0])
    interceptor = AuthInterceptor(fake_keybearer.verifier())
    token = fake_keybearer.issue()
    with calling([interceptor], demo({"Lines": method})) as channel:
        call: Any = channel.unary_stream(f"{METHOD}Lines", *CODEC)
        assert _code(call(Message())) is grpc.StatusCode.UNAUTHENTICATED
        answers = [one.value for one in call(Message(), metadata=_metadata(token))]
    assert answers == ["pushed"]
    assert callers == [fake_keybearer.identity_of(token).key_id]


def test_a_check_that_hangs_does_not_hold_up_other_calls(
    guarded: grpc.Channel, fake_keybearer: FakeKeybearer
) -> None:
    """A check that hangs does not delay other calls."""
    checked: Any = guarded.unary_unary(f"{METHOD}Any", *CODEC)
    public: Any = guarded.unary_unary(f"{METHOD}Public", *CODEC)
    token = fake_keybearer.issue()
    with fake_keybearer.stall():
        waiting = [checked.future(Message(), metadata=_metadata(token)) for _ in range(3)]
        started = time.monotonic()
        public(Message(), timeout=SOON)
        assert time.monotonic() - started < 1
        assert not any(one.done() for one in waiting)
    assert [one.exception(SOON) for one in waiting] == [None] * 3


def test_a_handler_is_wrapped_once(fake_keybearer: FakeKeybearer) -> None:
    """A handler is wrapped once, not on every call."""
    interceptor = AuthInterceptor(fake_keybearer.verifier())
    made = {path: demo(handlers(Reached())) for path in ("one", "two")}

    class Details:
        method = f"{METHOD}Any"
        invocation_metadata = ()

    first = interceptor.intercept_service(made["one"].service, Details())
    assert interceptor.intercept_service(made["one"].service, Details()) is first
    assert interceptor.intercept_service(made["two"].service, Details()) is not first


def test_a_verifier_of_the_wrong_flavour_is_refused(fake_keybearer: FakeKeybearer) -> None:
    """A verifier for the other kind of server is rejected."""
    with pytest.raises(TypeError, match="for threads"):
        AuthInterceptor(fake_keybearer.async_verifier())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="for asyncio"):
        AsyncAuthInterceptor(fake_keybearer.verifier())  # type: ignore[arg-type]


def test_the_interceptor_for_asyncio_denies_clearly_on_a_grpc_server(
    fake_keybearer: FakeKeybearer, caplog: pytest.LogCaptureFixture
) -> None:
    """The interceptor for asyncio denies every call of a grpc.server."""
    interceptor = AsyncAuthInterceptor(fake_keybearer.async_verifier())
    reached = Reached()
    with calling([interceptor], demo(handlers(reached))) as channel:
        call: Any = channel.unary_unary(f"{METHOD}Public", *CODEC)
        stream: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
        unknown: Any = channel.unary_unary(f"{METHOD}Nothing", *CODEC)
        for _ in range(2):
            with pytest.raises(grpc.RpcError, match="needs AuthInterceptor") as raised:
                call(Message(), timeout=SOON)
            assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert _code(stream(iter([Message()]), timeout=SOON)) is grpc.StatusCode.INTERNAL
        code = _code(lambda: unknown(Message(), timeout=SOON))
        assert code is grpc.StatusCode.UNIMPLEMENTED
    assert reached.calls == []
    assert "AsyncAuthInterceptor is for grpc.aio.server" in caplog.text


def _stream_that_stays_open(
    address: str, token: str, arity: str
) -> tuple[grpc.Channel, Any, threading.Event]:
    """Open a stream, see its first message, and leave it open."""
    hold = threading.Event()

    def requests() -> Iterator[Message]:
        yield Message(value="first")
        hold.wait(SOON)

    channel = grpc.insecure_channel(address)
    call: Any = getattr(channel, arity)(
        f"{METHOD}{'Chat' if arity == 'stream_stream' else 'Collect'}", *CODEC
    )
    if arity == "stream_unary":
        return channel, call.future(requests(), metadata=_metadata(token), timeout=SOON), hold
    stream = call(requests(), metadata=_metadata(token), timeout=SOON)
    next(stream)
    return channel, stream, hold


@pytest.mark.parametrize("arity", ["stream_stream", "stream_unary"])
def test_a_silent_stream_ends_when_its_key_is_revoked(
    arity: str, fake_keybearer: FakeKeybearer
) -> None:
    """A silent stream ends when its key is revoked."""
    token = fake_keybearer.issue()
    interceptor = AuthInterceptor(fake_keybearer.verifier(), rejudge_after=0.1)
    reached = Reached()
    with serving([interceptor], demo(handlers(reached))) as address:
        channel, stream, hold = _stream_that_stays_open(address, token, arity)
        until(lambda: bool(reached.calls))
        started = time.monotonic()
        fake_keybearer.revoke(token)
        with pytest.raises(grpc.RpcError) as raised:
            stream.result() if arity == "stream_unary" else next(stream)
        assert raised.value.code() is grpc.StatusCode.CANCELLED
        assert time.monotonic() - started < SOON / 2
        hold.set()
        channel.close()


def test_a_silent_stream_of_a_live_key_stays_open(fake_keybearer: FakeKeybearer) -> None:
    """Judging again does not end the stream of a key that is still accepted."""
    token = fake_keybearer.issue()
    interceptor = AuthInterceptor(fake_keybearer.verifier(), rejudge_after=0.02)
    with serving([interceptor], demo(handlers(Reached()))) as address:
        channel, stream, hold = _stream_that_stays_open(address, token, "stream_stream")
        before = fake_keybearer.questions
        until(lambda: fake_keybearer.questions >= before + 5)
        assert stream.is_active()
        hold.set()
        assert _code(stream) is grpc.StatusCode.OK
        channel.close()


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("revoke", grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
        ("expire", grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED"),
        ("lower", grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT"),
        ("outage", grpc.StatusCode.UNAVAILABLE, "VERIFIER_UNAVAILABLE"),
    ],
)
def test_a_stream_that_moves_ends_with_the_reason(
    end: str,
    code: grpc.StatusCode,
    reason: str,
    fake_keybearer: FakeKeybearer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream with traffic ends with the reason, at the first message after the interval."""
    token = fake_keybearer.issue(expires_in=timedelta(hours=1))
    interceptor = AuthInterceptor(fake_keybearer.verifier(), rejudge_after=0.05)
    # On a busy machine a stream may seem silent for a moment, and would be cancelled for that.
    monkeypatch.setattr(interceptor._watchdog, "_judge_until_idle", threading.Event().wait)

    def endless() -> Iterator[Message]:
        while True:
            yield Message(value="more")
            time.sleep(0.002)

    with calling([interceptor], demo(handlers(Reached()))) as channel:
        call: Any = channel.stream_stream(f"{METHOD}Chat", *CODEC)
        stream = call(endless(), metadata=_metadata(token), timeout=SOON)
        next(stream)
        if end == "revoke":
            fake_keybearer.revoke(token)
        elif end == "expire":
            fake_keybearer.advance(timedelta(hours=1))
        elif end == "lower":
            fake_keybearer.change(token, role=Role.VALIDATOR)
        trouble = fake_keybearer.outage() if end == "outage" else contextlib.nullcontext()
        with trouble:
            error = failure_of(lambda: stream)
    assert error.code() is code
    assert details_of(error).reason == reason


def test_streams_are_forgotten_when_they_end(fake_keybearer: FakeKeybearer) -> None:
    """The watchdog forgets streams that end, and its thread ends with the last one."""
    interceptor = AuthInterceptor(fake_keybearer.verifier(), rejudge_after=0.1)
    metadata = _metadata(fake_keybearer.issue())
    with calling([interceptor], demo(handlers(Reached()))) as channel:
        call: Any = channel.unary_stream(f"{METHOD}Lines", *CODEC)
        for _ in range(10):
            list(call(Message(value="a b"), metadata=metadata))
        watchdog = interceptor._watchdog
        until(lambda: not watchdog._streams and not watchdog._running)
