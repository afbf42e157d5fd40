"""The hot methods on a thread of their own: what it serves, what it hands over, and its end."""

import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import _server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fakes import FakeClock, SeededEntropy
from harness import (
    ReplaceableStore,
    Service,
    Stubs,
    initialise,
    make_app,
    message,
    open_replaceable,
    raising,
    refused,
    running,
    store_of,
)
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.domain.clock import MINUTE
from keybearer_service.ext_authz.v3 import ext_authz_pb2 as envoy
from keybearer_service.net.bounds import VALIDATION_CALLS
from keybearer_service.rpc.hot_loop import MAX_WAITING
from keybearer_service.storage import StoreLockedError
from reliability.hostile import HostileConnection
from rpc.test_overload import first_ended

VALIDATE = "/keybearer.v1.TokenService/ValidateToken"
BATCH = "/keybearer.v1.TokenService/BatchValidateTokens"
CHECK = "/envoy.service.auth.v3.Authorization/Check"
TIMEOUT_S = 10.0
LONG_TIMEOUT_S = 60.0
"""Of thousands of calls that wait for each other."""
LOOP = "hot-loop"
JUDGES = {LOOP, "hot-loop-judge"}
"""The threads that judge: over a file, over a database."""
Code = grpc.StatusCode


def validate(token: str) -> bytes:
    """Return the message that asks about one token."""
    return pb.ValidateTokenRequest(token=token).SerializeToString()


def batch(count: int) -> Callable[[str], bytes]:
    """Return what makes the message that asks about a token several times."""
    return lambda token: message(
        pb.BatchValidateTokensRequest, requests=[{"token": token}] * count
    ).SerializeToString()


def check(token: str) -> bytes:
    """Return the message of an Envoy that asks about a token."""
    request = envoy.CheckRequest()
    request.attributes.request.http.headers["authorization"] = f"Bearer {token}"
    return request.SerializeToString()


@pytest.fixture(params=["file", "database"])
def service(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> Iterator[Service]:
    """A running service with a hot loop, whatever this run has.

    Over a file the loop judges, over a database a thread beside it.
    """
    on_postgres = request.param == "database"
    if on_postgres:
        pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")
    with running(
        tmp_path / "data",
        clock,
        entropy,
        opener=open_replaceable,
        hot_loop=True,
        on_postgres=on_postgres,
    ) as running_service:
        yield running_service


@pytest.fixture
def token(admin: Stubs, clock: FakeClock) -> str:
    """A token of a key that is no longer young; nor is that of the administrator."""
    made = admin.create_key()
    clock.advance(11 * MINUTE)
    return made.token


def call(service: Service, method: str, payload: bytes, **options: Any) -> Any:
    """Begin a call of raw bytes as the administrator."""
    metadata = [("authorization", f"Bearer {service.admin_token}")]
    options.setdefault("timeout", TIMEOUT_S)
    begin: Any = service.channel().unary_unary(method)
    return begin.future(payload, metadata=metadata, **options)


@contextmanager
def reading_threads(store: ReplaceableStore, token: str) -> Iterator[list[str]]:
    """Record the names of the threads that read the key of a token.

    The key of the caller is read again whenever anything was written meanwhile, such as its use.
    """
    names: list[str] = []
    key_id = token.split("_")[1]

    def recorded(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def record(asked: Any) -> Any:
            if key_id in asked:
                names.append(threading.current_thread().name)
            return read(asked)

        return record

    with store.replacing(lookup=recorded(store.lookup), lookup_many=recorded(store.lookup_many)):
        yield names


@pytest.mark.parametrize(
    ("method", "payload"),
    [(VALIDATE, validate), (BATCH, batch(10)), (CHECK, check)],
    ids=["validate", "batch", "check"],
)
def test_a_hot_method_is_served_by_the_loop(
    service: Service,
    store: ReplaceableStore,
    token: str,
    method: str,
    payload: Callable[[str], bytes],
) -> None:
    """Single checks, small batches, and the checks of an Envoy."""
    with reading_threads(store, token) as names:
        assert call(service, method, payload(token)).result()
    judge = "hot-loop-judge" if service.data_dir.url else LOOP
    assert set(names) == {judge}


def test_a_large_batch_is_handed_over(
    service: Service, store: ReplaceableStore, token: str
) -> None:
    """It would hold up everybody else."""
    call(service, VALIDATE, validate(token)).result()
    with reading_threads(store, token) as names:
        call(service, BATCH, batch(11)(token)).result()
    assert names
    assert not JUDGES.intersection(names)


def test_the_first_use_of_a_young_secret_is_handed_over(
    service: Service, store: ReplaceableStore, admin: Stubs, token: str
) -> None:
    """It is written to the store; and it is counted once."""
    made = admin.create_key()
    call(service, VALIDATE, validate(token)).result()
    with reading_threads(store, made.token) as names:
        assert admin.outcome(made.token) == "VALID"
    assert names[-1] not in JUDGES
    service.flush_uses()
    assert admin.key(made.api_key.id).use_count == 1


def test_a_use_is_counted_once_on_the_loop_too(
    service: Service, admin: Stubs, token: str, clock: FakeClock
) -> None:
    """That of the key that is asked about, and that of the caller's."""
    validator = admin.create_key(role="ROLE_VALIDATOR")
    clock.advance(11 * MINUTE)
    caller = service.as_token(validator.token)
    for _ in range(3):
        assert caller.outcome(token) == "VALID"
    service.flush_uses()
    assert admin.key(validator.api_key.id).use_count == 3
    assert admin.key(token.split("_")[1]).use_count == 3


@contextmanager
def standing(store: ReplaceableStore, key_id: str) -> Iterator[threading.Event]:
    """Have the store stand while it reads one key; yield what is set once it does."""
    stands, goes_on = threading.Event(), threading.Event()

    def standing_in(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def stand(asked: Any) -> Any:
            if key_id in asked:
                stands.set()
                assert goes_on.wait(LONG_TIMEOUT_S)
            return read(asked)

        return stand

    with store.replacing(
        lookup=standing_in(store.lookup), lookup_many=standing_in(store.lookup_many)
    ):
        try:
            yield stands
        finally:
            goes_on.set()


def test_calls_that_come_together_are_judged_by_one_statement(
    service: Service, store: ReplaceableStore, admin: Stubs, token: str, clock: FakeClock
) -> None:
    """Each with its own answer."""
    made = [admin.create_key() for _ in range(8)]
    clock.advance(11 * MINUTE)
    asked: list[int] = []
    lookup_many = store.lookup_many

    def count(key_ids: Any) -> Any:
        asked.append(len(key_ids))
        return lookup_many(key_ids)

    begin: Any = service.channel().unary_unary(VALIDATE)
    metadata = [("authorization", f"Bearer {service.admin_token}")]
    with store.replacing(lookup_many=count):
        with standing(store, token.split("_")[1]) as stands:
            first = begin.future(validate(token), metadata=metadata)
            assert stands.wait(TIMEOUT_S)
            others = [begin.future(validate(one.token), metadata=metadata) for one in made]
            # A call of another method comes after them.
            begin_list: Any = service.channel().unary_unary("/nothing/nothing")
            refused(lambda: begin_list(b"", timeout=TIMEOUT_S))
        answers = [pb.ValidateTokenResponse.FromString(one.result()) for one in others]
        assert first.result()
    assert [one.key_id for one in answers] == [one.api_key.id for one in made]
    assert max(asked) > 2


def test_a_call_whose_time_is_over_is_not_judged(
    service: Service, store: ReplaceableStore, admin: Stubs, token: str, clock: FakeClock
) -> None:
    """Nobody waits for the verdict, and no use is counted."""
    other = admin.create_key()
    clock.advance(11 * MINUTE)
    with standing(store, token.split("_")[1]) as stands:
        first = call(service, VALIDATE, validate(token))
        assert stands.wait(TIMEOUT_S)
        late = call(service, VALIDATE, validate(other.token), timeout=0.1)
        assert late.code() is Code.DEADLINE_EXCEEDED
    assert first.result()
    assert admin.outcome(token) == "VALID"
    service.flush_uses()
    assert admin.key(other.api_key.id).use_count == 0


def test_a_store_that_stands_stops_nothing_else(
    service: Service, store: ReplaceableStore, admin: Stubs, token: str
) -> None:
    """Other methods are served while a read of the loop does not return."""
    with standing(store, token.split("_")[1]) as stands:
        first = call(service, VALIDATE, validate(token))
        assert stands.wait(TIMEOUT_S)
        assert admin.list_keys().api_keys
        assert admin.who_am_i().valid
    assert first.result()


def test_a_loop_that_hangs_is_not_alive(
    service: Service, store: ReplaceableStore, token: str
) -> None:
    """Liveness says so after two seconds, and takes it back once the loop goes on.

    A thread of its own that judges may wait for its database; the loop beside it goes on.
    """
    health: Any = health_pb2_grpc.HealthStub(service.channel())
    liveness = health_pb2.HealthCheckRequest(service="liveness")
    with standing(store, token.split("_")[1]) as stands:
        first = call(service, VALIDATE, validate(token))
        assert stands.wait(TIMEOUT_S)
        answer = health.Check(liveness, timeout=TIMEOUT_S)
        # A database that stands says nothing of the process.
        is_alive = service.data_dir.url is not None
        assert (answer.status == health_pb2.HealthCheckResponse.SERVING) is is_alive
    assert first.result()
    answer = health.Check(liveness, timeout=TIMEOUT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_call_that_is_judged_after_the_end_of_the_server_harms_nothing(
    service: Service, store: ReplaceableStore, token: str
) -> None:
    """Its answer has nowhere to go; grpc would end the process for sending it."""
    with standing(store, token.split("_")[1]) as stands:
        first = call(service, VALIDATE, validate(token))
        assert stands.wait(TIMEOUT_S)
        ending = threading.Thread(target=service.only_node.stop, args=(0,))
        ending.start()
        assert first.code() is Code.UNAVAILABLE
    ending.join(TIMEOUT_S)
    assert not ending.is_alive()


def test_what_the_store_refuses_has_the_error_of_the_ordinary_path(
    service: Service, store: ReplaceableStore, admin: Stubs, token: str
) -> None:
    """UNAVAILABLE, with the time to wait; and the loop serves on."""
    locked = raising(StoreLockedError("x"))
    with store.replacing(lookup=locked, lookup_many=locked):
        refusal = refused(lambda: admin.validate(token))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert refusal.retry_after
    assert admin.outcome(token) == "VALID"


def calls_of(service: Service, method: str, payload: bytes, count: int) -> list[Any]:
    """Begin many calls, over as many connections as they need."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels: list[Any] = [service.channel(options) for _ in range(count // 80 + 1)]
    methods = [channel.unary_unary(method) for channel in channels]
    metadata = [("authorization", f"Bearer {service.admin_token}")]
    return [
        methods[n % len(methods)].future(payload, metadata=metadata, timeout=LONG_TIMEOUT_S)
        for n in range(count)
    ]


@pytest.mark.parametrize("service", ["file"], indirect=True)
def test_what_is_handed_over_has_the_room_of_the_ordinary_path(
    service: Service, store: ReplaceableStore, token: str
) -> None:
    """What is beyond is refused at once, what waits is answered, and the loop serves on."""
    stands, goes_on = threading.Semaphore(0), threading.Event()
    lookup_many = store.lookup_many

    def stand(key_ids: Any) -> Any:
        stands.release()
        assert goes_on.wait(LONG_TIMEOUT_S)
        return lookup_many(key_ids)

    threads, queued = VALIDATION_CALLS.threads, VALIDATION_CALLS.queued
    with store.replacing(lookup_many=stand):
        calls = calls_of(service, BATCH, batch(11)(token), threads)
        for _ in calls:
            assert stands.acquire(timeout=TIMEOUT_S)
        calls += calls_of(service, BATCH, batch(11)(token), queued + 20)
        assert {one.code() for one in first_ended(calls, 20)} == {Code.RESOURCE_EXHAUSTED}
        assert call(service, VALIDATE, validate(token)).result()
        goes_on.set()
        codes = Counter(one.code() for one in calls)
    assert codes == {Code.OK: threads + queued, Code.RESOURCE_EXHAUSTED: 20}


@pytest.mark.parametrize("service", ["database"], indirect=True)
def test_no_more_calls_than_there_is_room_for_wait_for_the_judge(
    service: Service, store: ReplaceableStore, token: str
) -> None:
    """While its database stands; what waited is answered afterwards."""
    with standing(store, token.split("_")[1]) as stands:
        [first] = calls_of(service, VALIDATE, validate(token), 1)
        assert stands.wait(TIMEOUT_S)
        calls = calls_of(service, VALIDATE, validate(token), MAX_WAITING + 20)
        assert {one.code() for one in first_ended(calls, 20)} == {Code.RESOURCE_EXHAUSTED}
    assert first.result()
    codes = Counter(one.code() for one in calls)
    assert codes == {Code.OK: MAX_WAITING, Code.RESOURCE_EXHAUSTED: 20}


def test_a_call_that_ends_without_a_message_is_told_so(service: Service) -> None:
    """As on the ordinary path."""
    begin: Any = service.channel().stream_unary(VALIDATE)
    metadata = [("authorization", f"Bearer {service.admin_token}")]
    refusal = refused(lambda: begin(iter([]), metadata=metadata, timeout=TIMEOUT_S))
    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["(message)"])


def test_a_call_that_is_taken_back_is_no_failure(
    service: Service, log: Callable[[], str], token: str
) -> None:
    """Nothing is logged of it, whatever it had sent."""
    with HostileConnection(service.address) as connection:
        for sent in (b"", validate(token)[:10]):
            stream = connection.begin_call(token=service.admin_token)
            if sent:
                connection.send_some(stream, b"\0\0\0\0\x50" + sent)
            connection.reset(stream)
        connection.settle()
        assert service.admin.outcome(token) == "VALID"
    assert "call_failed" not in log()


def test_a_call_that_is_refused_before_its_message_is_none_of_the_loop(
    service: Service, log: Callable[[], str]
) -> None:
    """Anybody can make such calls, and a line for each would fill the log."""
    with HostileConnection(service.address) as connection:
        for _ in range(20):
            connection.wait_for_end([connection.begin_call()])
        connection.settle()
    assert "hot_loop_failed" not in log()


def test_the_private_socket_admits_no_credential(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for the process itself, which has none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    with running(tmp_path / "data", clock, entropy, hot_loop=True) as service:
        _ = service.only_node
        [socket] = tmp_path.glob("keybearer-*/*.sock")
        with grpc.secure_channel(f"unix:{socket}", credentials) as channel:
            admin = Stubs(channel, service.admin_token)
            assert refused(lambda: admin.validate("x")).reason == "CREDENTIALS_MISSING"


def test_a_loop_that_does_not_work_is_not_used(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, log: Callable[[], str]
) -> None:
    """The ordinary path serves, and the log says so once."""
    cygrpc: Any = _server.cygrpc  # type: ignore[attr-defined]
    make = cygrpc.SendStatusFromServerOperation

    def moved(*arguments: Any) -> Any:
        if threading.current_thread().name == LOOP:
            raise TypeError("this part of grpc has moved")
        return make(*arguments)

    data_dir, created = initialise(tmp_path / "data", clock, SeededEntropy(1))
    with monkeypatch.context() as patched:
        patched.setattr(cygrpc, "SendStatusFromServerOperation", moved)
        app = make_app(data_dir, clock, SeededEntropy(2), opener=open_replaceable, hot_loop=True)
    app.start()
    try:
        with (
            grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel,
            reading_threads(store_of(app), created.issued.token) as names,
        ):
            admin = Stubs(channel, created.issued.token)
            assert admin.outcome(created.issued.token) == "VALID"
        assert LOOP not in names
    finally:
        app.stop(grace_s=0)
    assert log().count("hot_loop_unusable") == 1
