"""What is refused early, and what waits for nothing else."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from itertools import islice
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from harness import ReplaceableStore, Service, Stubs, refusal_of, refused
from keybearer.access import AccessRule
from keybearer.v1 import api_key_service_pb2
from keybearer_service.endpoints import AUTHORITY_METHODS, Executors, is_list, served_methods
from keybearer_service.net.bounds import (
    LIST_SHARES,
    MANAGEMENT_CALLS,
    CallBounds,
)
from keybearer_service.rpc.executors import CallExecutor
from keybearer_service.rpc.handlers import MethodHandlers, ServedMethod, refusing_handler
from keybearer_service.rpc.pipeline import MethodSpec
from keybearer_service.storage import ReadAbandonedError, Reader

WAIT_S = 20.0


class Held:
    """Reads of some accounts that wait until they are let go."""

    def __init__(self, store: ReplaceableStore, *account_ids: str) -> None:
        self._read = store.read
        self._account_ids = account_ids
        self._over = threading.Event()
        self._begun = threading.Semaphore(0)

    @contextmanager
    def read(self, caller: Any = None) -> Iterator[Reader]:
        """Open a snapshot; lists of the accounts wait, and single reads when none is named."""
        account_id = "" if caller is None else caller.identity.account_id
        if account_id in self._account_ids or (caller is None and not self._account_ids):
            self._begun.release()
            assert self._over.wait(WAIT_S)
        with self._read(caller) as reader:
            yield reader

    def wait_for(self, count: int) -> None:
        """Wait until so many reads are held."""
        for _ in range(count):
            assert self._begun.acquire(timeout=WAIT_S)

    def let_go(self) -> None:
        """Hold none any more."""
        self._over.set()


@contextmanager
def held(store: ReplaceableStore, *account_ids: str) -> Iterator[Held]:
    """Hold reads until the end of the block."""
    reads = Held(store, *account_ids)
    with store.replacing(read=reads.read):
        try:
            yield reads
        finally:
            reads.let_go()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads that call."""
    with ThreadPoolExecutor(64) as threads:
        yield threads


def outcome_of(call: Callable[[], Any]) -> str:
    """Make a call; return the reason of its refusal, or OK."""
    try:
        call()
    except grpc.RpcError as error:
        return refusal_of(error).reason
    return "OK"


def test_every_list_has_the_threads_of_lists() -> None:
    """And what takes authority away has its own."""
    executors = Executors()
    names = {spec.path: executors.of(spec).name for spec in served_methods().values()}
    executors.shutdown()
    of = {
        kind: {path.rpartition("/")[2] for path, name in names.items() if name == kind}
        for kind in names.values()
    }
    assert of["lists"] == {"ListAccounts", "ListUsers", "ListApiKeys", "ListAuditEvents"}
    assert {path for path, name in names.items() if name == "authority"} == AUTHORITY_METHODS
    assert of["public"] == {"RevokeToken"}
    assert "CreateApiKey" in of["management"]
    assert not any(is_list(served_methods()[path]) for path in AUTHORITY_METHODS)


def test_lists_hold_up_neither_changes_nor_reads(
    service: Service, store: ReplaceableStore, callers: ThreadPoolExecutor
) -> None:
    """While lists of several accounts hold every thread that lists may run on."""
    tenants = [service.tenant(f"tenant{n}") for n in range(2)]
    key = service.admin.create_key()
    with held(store, *(tenant.account_id for tenant in tenants)) as reads:
        lists = [
            callers.submit(outcome_of, tenant.stubs.list_keys)
            for tenant in tenants
            for _ in range(LIST_SHARES.of_one)
        ]
        reads.wait_for(LIST_SHARES.at_once)
        admin = service.admin
        assert admin.key(key.api_key.id).name == "a key"
        assert admin.revoke(key.api_key.id).revoke_time.seconds
        assert tenants[0].stubs.create_key().token
    assert [one.result(WAIT_S) for one in lists] == ["OK"] * len(lists)


def test_an_account_has_its_share_of_lists_and_no_more(
    service: Service, store: ReplaceableStore, callers: ThreadPoolExecutor
) -> None:
    """Beyond it is refused at once, and the lists of others are answered meanwhile."""
    tenant, beyond = service.tenant(), 30
    with held(store, tenant.account_id):
        lists = [
            callers.submit(outcome_of, tenant.stubs.list_keys)
            for _ in range(LIST_SHARES.of_one + beyond)
        ]
        ended = islice(as_completed(lists, WAIT_S), beyond)
        assert {one.result() for one in ended} == {"OVERLOADED"}
        refusal = refused(tenant.stubs.list_users)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "OVERLOADED",
        )
        assert refusal.retry_after
        assert service.admin.list_keys().api_keys
        assert tenant.stubs.key(tenant.key_id).id == tenant.key_id
    outcomes = [one.result(WAIT_S) for one in lists]
    assert outcomes.count("OK") == LIST_SHARES.of_one
    assert outcome_of(tenant.stubs.list_keys) == "OK"


def test_calls_beyond_the_queue_are_refused_at_once(
    service: Service, store: ReplaceableStore, admin: Stubs
) -> None:
    """They are told when to come again; those that wait are answered, and other kinds go on."""
    room = MANAGEMENT_CALLS.threads + MANAGEMENT_CALLS.queued
    request = api_key_service_pb2.GetApiKeyRequest(id=service.admin_key_id)
    pools = [[("grpc.use_local_subchannel_pool", 1)] for _ in range(room // 80 + 1)]
    channels = [Stubs(service.channel(options), service.admin_token) for options in pools]
    key = admin.create_key()
    with held(store) as reads:
        calls = [
            channels[n % len(channels)].keys.GetApiKey.future(request, timeout=WAIT_S)
            for n in range(MANAGEMENT_CALLS.threads)
        ]
        reads.wait_for(MANAGEMENT_CALLS.threads)
        calls += [
            channels[n % len(channels)].keys.GetApiKey.future(request, timeout=WAIT_S)
            for n in range(room + 20 - MANAGEMENT_CALLS.threads)
        ]
        for early in first_ended(calls, 20):
            assert refusal_of(early).reason == "OVERLOADED"
            assert refusal_of(early).retry_after
        assert admin.outcome(key.token) == "VALID"
        assert admin.revoke(key.api_key.id).revoke_time.seconds
    codes = [call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) == room
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 20


def first_ended(calls: list[Any], count: int) -> list[Any]:
    """Return the first calls that end, so many."""
    ended: SimpleQueue[Any] = SimpleQueue()
    for call in calls:
        call.add_done_callback(ended.put)
    return [ended.get(timeout=WAIT_S) for _ in range(count)]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_call_of_each_kind_is_refused_without_a_thread(*, is_stream: bool) -> None:
    """Whether it has one message each way or many."""
    spec = MethodSpec(
        path="/test.Service/Method",
        rule=AccessRule(public=True),
        request=api_key_service_pb2.GetApiKeyRequest,
        response=api_key_service_pb2.GetApiKeyResponse,
        is_stream=is_stream,
    )
    executor = CallExecutor(CallBounds(threads=1, queued=0), "full")
    overloaded: list[str] = []
    served = ServedMethod(None, executor, refusing_handler(spec))
    with ExitStack() as stack:
        stack.callback(executor.shutdown)
        server = grpc.server(executor)
        server.add_generic_rpc_handlers((MethodHandlers({spec.path: served}, overloaded.append),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        stack.callback(lambda: server.stop(None).wait())
        channel: Any = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        for _ in range(50):
            if is_stream:
                error = refused(lambda: list(channel.stream_stream(spec.path)(iter([b""]))))
            else:
                error = refused(lambda: channel.unary_unary(spec.path)(b""))
            assert error.reason == "OVERLOADED"
            assert error.retry_after == 1.0
    assert overloaded == ["full"] * 50


def test_a_list_that_nobody_waits_for_ends(service: Service, store: ReplaceableStore) -> None:
    """It is no failure: neither INTERNAL nor an outage is logged or answered."""

    @contextmanager
    def abandoned(_caller: Any = None) -> Iterator[Reader]:
        raise ReadAbandonedError("nobody waits")
        yield

    with store.replacing(read=abandoned):
        error = refused(service.admin.list_keys)
    assert error.code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
