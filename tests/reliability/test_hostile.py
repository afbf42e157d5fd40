"""Clients that begin calls and never finish them do not stop the others: promise P8."""

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from h2.exceptions import ProtocolError

from keybearer.v1 import api_key_service_pb2, token_service_pb2
from reliability.hostile import MAX_STREAMS, VALIDATE, HostileConnection
from reliability.processes import ServerProcess, init, serving

HEALTH = "/grpc.health.v1.Health"
REVOKE_TOKEN = "/keybearer.v1.TokenService/RevokeToken"
RESETS = 5_000
CONNECTS_WITHIN_S = 20.0


class Target:
    """A server, an honest caller, and a key for callers who are not."""

    def __init__(self, server: ServerProcess, token: str) -> None:
        self.server = server
        self.admin = server.stubs(token)
        created = self.admin.create_key(role="ROLE_VALIDATOR")
        self.key_id, self.token = created.api_key.id, created.token
        self._honest = server.stubs(self.token)

    def validate(self, calls: int, timeout: float = 8) -> None:
        """Validate, one call after the other; print how long it took."""
        times = []
        request = token_service_pb2.ValidateTokenRequest(token=self.token)
        for _ in range(calls):
            started = time.monotonic()
            assert self._honest.tokens.ValidateToken(request, timeout=timeout).valid
            times.append(time.monotonic() - started)
        times.sort()
        p50, p99 = times[len(times) // 2] * 1000, times[len(times) * 99 // 100] * 1000
        sys.stdout.write(f"{calls} validations: p50 {p50:.1f} ms, p99 {p99:.1f} ms\n")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A running server."""
    ids = init(tmp_path / "data")
    with serving(tmp_path / "data") as server:
        yield Target(server, ids["token"])


def begin_calls(
    stack: ExitStack, address: str, path: str, token: str, connections: int, streams: int
) -> list[tuple[HostileConnection, int]]:
    """Begin many calls and wait until the server has taken in their headers."""
    begun = []
    for _ in range(connections):
        connection = stack.enter_context(HostileConnection(address))
        begun += [(connection, connection.begin_call(path, token)) for _ in range(streams)]
        connection.settle()
    return begun


@pytest.mark.parametrize("with_token", [False, True], ids=["anonymous", "authenticated"])
@pytest.mark.parametrize(
    ("connections", "streams"),
    [(2, MAX_STREAMS), pytest.param(200, 1, marks=pytest.mark.slow)],
)
def test_calls_without_a_message_do_not_stop_validation(
    target: Target, connections: int, streams: int, *, with_token: bool
) -> None:
    """200 calls whose message never comes leave validation working."""
    with ExitStack() as stack:
        token = target.token if with_token else ""
        begin_calls(stack, target.server.address, VALIDATE, token, connections, streams)
        target.validate(200)


@pytest.mark.parametrize(
    "path",
    [f"{HEALTH}/Check", pytest.param(f"{HEALTH}/Watch", marks=pytest.mark.slow), REVOKE_TOKEN],
)
def test_public_methods_cost_nobody_else_a_thread(target: Target, path: str) -> None:
    """200 anonymous calls of a public method that wait for ever leave everything else working."""
    with ExitStack() as stack:
        begin_calls(stack, target.server.address, path, "", 2, MAX_STREAMS)
        target.validate(100)
        assert target.admin.key(target.key_id).id == target.key_id
        target.admin.keys.RevokeApiKey(
            api_key_service_pb2.RevokeApiKeyRequest(
                id=target.key_id,
                reason=1,  # type: ignore[arg-type]  # LOST, an enum's number
            )
        )


@pytest.mark.slow
def test_a_message_in_small_pieces_does_not_stop_validation(target: Target) -> None:
    """Calls that have sent a part of their message wait without harm."""
    with ExitStack() as stack:
        begun = begin_calls(stack, target.server.address, VALIDATE, target.token, 2, MAX_STREAMS)
        for connection, stream in begun:
            connection.send_some(stream, b"\0\0\0\0\x50\x0a")
        target.validate(100)


@pytest.mark.slow
def test_a_message_that_does_not_come_is_not_waited_for(target: Target) -> None:
    """A slow sender is cut off after ten seconds, told by the stream's end."""
    with HostileConnection(target.server.address) as connection:
        stream = connection.begin_call(token=target.token)
        started = time.monotonic()
        connection.wait_for_end([stream])
        sys.stdout.write(f"cut off after {time.monotonic() - started:.1f} s\n")
    assert target.server.stop() == 0
    assert any(event["event"] == "slow_calls_cut_off" for event in target.server.events)


def test_streams_that_are_reset_do_not_stop_validation(target: Target) -> None:
    """Thousands of calls begun and taken back at once leave validation working."""
    sent = 0
    while sent < RESETS:
        with HostileConnection(target.server.address) as connection:
            with suppress(ConnectionError, ProtocolError):  # the server may have had enough
                for _ in range(500):
                    connection.reset(connection.begin_call(token=target.token))
                    sent += 1
                connection.settle()
            target.validate(10)


def test_oversized_metadata_is_refused_and_harms_nobody(target: Target) -> None:
    """A metadata value beyond 8 KiB ends the call; other calls go on."""
    call: Callable[..., bytes] = target.server.channel().unary_unary(VALIDATE)
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", metadata=(("x-padding", "x" * 9000),), timeout=8)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    target.validate(50)


def test_compressed_metadata_harms_nobody(target: Target) -> None:
    """Huffman-coded metadata, which the transport does not limit, stops nobody."""
    with HostileConnection(target.server.address) as connection:
        extra = [(f"x-padding-{number}", "x" * 1000) for number in range(200)]
        for token in ("", target.token):
            for _ in range(10):
                connection.begin_call(token=token, extra=extra)
        target.validate(50)


def test_a_server_that_hires_no_stand_ins_is_found_out(tmp_path: Path) -> None:
    """The harness sees validation stop when waiting threads are not made up for."""
    ids = init(tmp_path / "data")
    flags = ["--no-hot-loop"]  # which needs none for those that are served meanwhile
    with (
        serving(tmp_path / "data", bugs=["no-stand-ins"], flags=flags) as server,
        ExitStack() as stack,
    ):
        target = Target(server, ids["token"])
        begin_calls(stack, server.address, VALIDATE, target.token, 2, MAX_STREAMS)
        with pytest.raises(grpc.RpcError) as stopped:
            target.validate(200, timeout=3)
        assert stopped.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_silent_connections_on_the_grpc_port_stop_nobody_who_is_connected(tmp_path: Path) -> None:
    """With few descriptors too: beyond its bound the port takes no more, until some end."""
    token = init(tmp_path / "data")["token"]
    few = ("bash", "-c", 'ulimit -n 256; exec "$@"', "--")
    with serving(tmp_path / "data", wrapper=few) as server:
        connected = server.stubs(token)
        assert connected.who_am_i().valid
        host, _, port = server.address.rpartition(":")
        with ExitStack() as silent:
            for _ in range(400):
                silent.enter_context(socket.create_connection((host, int(port))))
            for _ in range(20):
                assert connected.who_am_i().valid
        # The server hears of their end a moment later, and takes no other connection until then.
        who_am_i = server.stubs(token).tokens.WhoAmI
        request = token_service_pb2.WhoAmIRequest()
        assert who_am_i(request, wait_for_ready=True, timeout=CONNECTS_WITHIN_S).valid
        assert server.stop() == 0
