"""Health for anybody: liveness, readiness, and streams that hold nothing up."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb

from fakes import FakeClock, SeededEntropy
from harness import ReplaceableStore, Service, Stubs, raising, running
from keybearer_service.rpc import health
from keybearer_service.storage import StoreLockedError

TIMEOUT_S = 20.0
WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"
SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING
LOCAL_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


def check(channel: grpc.Channel, name: str = "") -> int:
    """Ask for the status of a service."""
    ask: Any = channel.unary_unary(CHECK, response_deserializer=pb.HealthCheckResponse.FromString)
    answer = ask(pb.HealthCheckRequest(service=name).SerializeToString(), timeout=TIMEOUT_S)
    return int(answer.status)


def watch(channel: grpc.Channel, name: str = "") -> Any:
    """Open a Watch stream."""
    call: Any = channel.unary_stream(WATCH, response_deserializer=pb.HealthCheckResponse.FromString)
    return call(pb.HealthCheckRequest(service=name).SerializeToString(), timeout=TIMEOUT_S)


def test_watches_opened_and_cancelled_in_a_loop_stop_nobody(service: Service, admin: Stubs) -> None:
    """2,000 streams over 8 connections, without a credential: everybody is answered afterwards."""

    def loop(channel: grpc.Channel) -> None:
        for _ in range(250):
            call = watch(channel)
            assert next(call).status == SERVING
            call.cancel()

    channels = [service.channel(LOCAL_OPTIONS) for _ in range(8)]
    with ThreadPoolExecutor(8) as clients:
        list(clients.map(loop, channels))
    assert admin.who_am_i().valid
    assert check(channels[0], health.LIVENESS) == SERVING


def test_open_watches_do_not_hold_up_the_end(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """Every stream hears NOT_SERVING and is ended; the grace is not waited for."""
    with running(tmp_path / "data", clock, entropy) as service:
        streams = [watch(service.channel(), name) for name in ("", "nothing") * 10]
        for stream in streams:
            next(stream)
        began = time.monotonic()
        service.only_node.stop(grace_s=10)
        assert time.monotonic() - began < 5
        for stream in streams[::2]:
            assert next(stream).status == NOT_SERVING
        for stream in streams:
            with pytest.raises(grpc.RpcError) as refusal:
                next(stream)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_watchers_that_leave_when_they_hear_of_the_end_do_not_stop_it(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """Cancelling on NOT_SERVING, as balancers do, is safe while the server stops."""
    with running(tmp_path / "data", clock, entropy) as service:

        def follow(channel: grpc.Channel) -> None:
            stream = watch(channel)
            assert next(stream).status == SERVING
            following.release()
            assert next(stream).status == NOT_SERVING
            stream.cancel()

        following = threading.Semaphore(0)
        channels = [service.channel(LOCAL_OPTIONS) for _ in range(20)]
        with ThreadPoolExecutor(20) as clients:
            done = [clients.submit(follow, channel) for channel in channels]
            for _ in channels:
                assert following.acquire(timeout=TIMEOUT_S)
            service.only_node.stop(grace_s=10)
            for one in done:
                one.result(TIMEOUT_S)


def test_a_watch_hears_of_a_store_that_fails_and_comes_back(
    service: Service, store: ReplaceableStore
) -> None:
    """SERVING, NOT_SERVING, SERVING: each sent once, when it changes."""
    stream = watch(service.channel(), "keybearer.v1.TokenService")
    assert next(stream).status == SERVING
    with store.replacing(lookup=raising(StoreLockedError("locked"))):
        assert next(stream).status == NOT_SERVING
    assert next(stream).status == SERVING
    stream.cancel()


def test_liveness_does_not_look_at_the_store(service: Service, store: ReplaceableStore) -> None:
    """A locked file makes the service unready; it must not have it restarted."""
    channel = service.channel()
    with store.replacing(lookup=raising(StoreLockedError("locked"))):
        assert check(channel) == NOT_SERVING
        assert check(channel, health.LIVENESS) == SERVING


def test_a_service_nobody_knows_is_told_so_and_kept_open(service: Service) -> None:
    """As the protocol of health checks says; it may come to be served later."""
    stream = watch(service.channel(), "nothing")
    assert next(stream).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    stream.cancel()
    with pytest.raises(grpc.RpcError) as refusal:
        check(service.channel(), "nothing")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.usefixtures("one_node")
def test_one_peer_cannot_take_all_watches(service: Service) -> None:
    """Beyond its share a peer is refused, and a stream that ends makes room again."""
    channels = [service.channel(LOCAL_OPTIONS) for _ in range(3)]
    streams = [watch(channels[n % 3]) for n in range(health.MAX_WATCHES_OF_A_PEER)]
    for stream in streams:
        assert next(stream).status == SERVING
    with pytest.raises(grpc.RpcError) as refusal:
        next(watch(channels[0]))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for stream in streams:
        stream.cancel()
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        again = watch(channels[0])
        try:
            assert next(again).status == SERVING
        except grpc.RpcError:
            assert time.monotonic() < deadline
            continue
        again.cancel()
        break
