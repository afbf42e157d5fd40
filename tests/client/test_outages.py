"""An outage of keybearer does not spread to the service that it guards."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from certificates import Authority
from client.support import Message, Reached, demo, handlers, serving, until
from keybearer import (
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    AuthInterceptor,
    CachingVerifier,
    KeybearerClient,
    Presented,
    RemoteVerifier,
    TLSConfig,
    Verifier,
    errors,
)
from keybearer.testing import FakeKeybearer
from keybearer.v1 import token_service_pb2 as pb

CALLERS = 20
PROBES = 5
PROBE_TIMEOUT_S = 1.0
WORKERS = 6
"""Of a default thread pool on a machine with two cores."""
IMMEDIATE_S = 0.1
"""More than a refusal takes that waits for nothing, on a busy machine."""


@contextlib.contextmanager
def guarded(verifier: Verifier) -> Iterator[str]:
    """Run a guarded service with health probes, and yield its address."""
    server = grpc.server(
        futures.ThreadPoolExecutor(WORKERS), interceptors=[AuthInterceptor(verifier)]
    )
    server.add_generic_rpc_handlers((demo(handlers(Reached())),))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


class Caller(threading.Thread):
    """Calls a guarded service, again and again."""

    def __init__(self, address: str, token: str) -> None:
        super().__init__(daemon=True)
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._call: Any = self._channel.unary_unary(
            "/test.guarded.Demo/Any", Message.SerializeToString
        )
        self._token = token
        self._over = threading.Event()
        self.codes: list[grpc.StatusCode] = []

    def run(self) -> None:
        metadata = (("authorization", f"Bearer {self._token}"),)
        while not self._over.is_set():
            try:
                self._call(Message(), metadata=metadata, timeout=10)
                self.codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                self.codes.append(error.code())

    def stop(self) -> None:
        """Stop calling."""
        self._over.set()
        self.join()
        self._channel.close()


@contextlib.contextmanager
def calling(address: str, tokens: list[str]) -> Iterator[list[Caller]]:
    """Run a caller for each token."""
    callers = [Caller(address, token) for token in tokens]
    for caller in callers:
        caller.start()
    try:
        yield callers
    finally:
        for caller in callers:
            caller.stop()


def _remote(client: KeybearerClient) -> Any:
    return contextlib.nullcontext(RemoteVerifier(client))


VERIFIERS: dict[str, Callable[[KeybearerClient], Any]] = {
    "remote": _remote,
    "caching": CachingVerifier,
}


@pytest.mark.parametrize("outage", ["refused", "stalled", "store down"])
@pytest.mark.parametrize("kind", VERIFIERS)
def test_health_probes_of_the_guarded_service_do_not_wait(
    kind: str, outage: str, fake_keybearer: FakeKeybearer
) -> None:
    """Twenty callers that try again do not take the threads that a probe of the service needs."""
    tokens = [fake_keybearer.issue() for _ in range(CALLERS)]
    with (
        KeybearerClient(
            fake_keybearer.address, token=fake_keybearer.validator_token, tls=False
        ) as client,
        VERIFIERS[kind](client) as verifier,
        guarded(verifier) as address,
        contextlib.ExitStack() as stack,
    ):
        assert verifier.verify(Presented(tokens[0])).valid
        if outage == "refused":
            fake_keybearer.stop()
        elif outage == "stalled":
            stack.enter_context(fake_keybearer.stall())
        else:
            stack.enter_context(fake_keybearer.outage())
        callers = stack.enter_context(calling(address, tokens))
        until(lambda: any(grpc.StatusCode.UNAVAILABLE in caller.codes for caller in callers))
        until(lambda: all(caller.codes for caller in callers))
        with grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            probe: Any = health_pb2_grpc.HealthStub(channel)
            for _ in range(PROBES):
                answer = probe.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


def _is_refused(verifier: Verifier, token: str) -> float | None:
    """Check a token, and return the seconds until the refusal; None when it was answered."""
    began = time.monotonic()
    try:
        verifier.verify(Presented(token))
    except errors.VerifierUnavailableError:
        return time.monotonic() - began
    return None


@pytest.mark.parametrize("kind", VERIFIERS)
def test_callers_are_refused_at_once_and_served_again_afterwards(
    kind: str, fake_keybearer: FakeKeybearer
) -> None:
    """Once trouble is known no check waits, and its end is found without a caller."""
    tokens = [fake_keybearer.issue() for _ in range(10)]
    with (
        KeybearerClient(
            fake_keybearer.address, token=fake_keybearer.validator_token, tls=False
        ) as client,
        VERIFIERS[kind](client) as verifier,
    ):
        with fake_keybearer.stall():
            assert _is_refused(verifier, tokens[0]) is not None
            waited = [_is_refused(verifier, token) for token in tokens]
            assert all(one is not None and one < IMMEDIATE_S for one in waited), waited
        until(lambda: _is_refused(verifier, tokens[1]) is None)
        assert [_is_refused(verifier, token) for token in tokens] == [None] * 10


@pytest.mark.parametrize("kind", ["remote", "caching"])
def test_the_same_for_asyncio(kind: str, fake_keybearer: FakeKeybearer) -> None:
    """A thousand checks at once are refused at once, and served again afterwards."""
    token = fake_keybearer.issue()

    async def check(verifier: AsyncRemoteVerifier | AsyncCachingVerifier) -> bool:
        try:
            return (await verifier.verify(Presented(token))).valid
        except errors.VerifierUnavailableError:
            return False

    async def run() -> None:
        async with (
            AsyncKeybearerClient(
                fake_keybearer.address, token=fake_keybearer.validator_token, tls=False
            ) as client,
            contextlib.AsyncExitStack() as stack,
        ):
            verifier: AsyncRemoteVerifier | AsyncCachingVerifier = (
                AsyncRemoteVerifier(client)
                if kind == "remote"
                else await stack.enter_async_context(AsyncCachingVerifier(client))
            )
            with fake_keybearer.stall():
                assert not await check(verifier)
                began = time.monotonic()
                assert not any(await asyncio.gather(*(check(verifier) for _ in range(1000))))
                assert time.monotonic() - began < 1
            end = time.monotonic() + 10
            while not await check(verifier):
                assert time.monotonic() < end
                await asyncio.sleep(0.01)

    asyncio.run(run())


def test_trouble_with_one_key_denies_nobody_else() -> None:
    """An error about one token, as when its pepper is missing, is no outage for other tokens."""
    with (
        _serving_all_but("poison") as address,
        KeybearerClient(address, token="own", tls=False, try_timeout=0.2, timeout=0.2) as client,
    ):
        for make in VERIFIERS.values():
            with make(client) as verifier:
                for _ in range(20):
                    assert _is_refused(verifier, "poison") is not None
                    assert _is_refused(verifier, "healthy") is None


@contextlib.contextmanager
def _serving_all_but(bad: str) -> Iterator[str]:
    """Run a keybearer whose store fails for one token."""
    info = error_details_pb2.ErrorInfo(domain="keybearer.v1", reason="STORE_UNAVAILABLE")
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message="no pepper")
    status.details.add().Pack(info)

    def validate(request: pb.ValidateTokenRequest, context: Any) -> pb.ValidateTokenResponse:
        if request.token == bad:
            context.abort_with_status(rpc_status.to_status(status))
        return pb.ValidateTokenResponse(outcome=pb.VALIDATION_OUTCOME_NOT_FOUND)

    handler = grpc.unary_unary_rpc_method_handler(
        validate, pb.ValidateTokenRequest.FromString, pb.ValidateTokenResponse.SerializeToString
    )
    methods = {"ValidateToken": handler}
    service = grpc.method_handlers_generic_handler("keybearer.v1.TokenService", methods)
    with serving([], service) as address:
        yield address


@dataclass(frozen=True)
class Cause:
    """A way in which a connection fails, and what the log has to say about it."""

    says: str
    tls: bool | TLSConfig = False
    address: str = ""
    """Empty means that of a fake."""
    serves_tls: bool = False


CAUSES = {
    "nobody listens": Cause("Connection refused", address="127.0.0.1:1"),
    "TLS to a plaintext port": Cause("speaks plaintext: pass tls=False", tls=True),
    "plaintext to a TLS port": Cause("may speak TLS", serves_tls=True),
    "an unknown authority": Cause("is not trusted", tls=True, serves_tls=True),
    "an unknown name": Cause("its name is not known", address="keybearer.invalid:443"),
}


@pytest.mark.parametrize("kind", VERIFIERS)
@pytest.mark.parametrize("name", CAUSES)
def test_the_log_says_where_and_why(
    name: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line has the address and the cause, also after attempts that ended for another reason."""
    cause = CAUSES[name]
    credentials = None
    if cause.serves_tls:
        certificate, key = Authority(tmp_path).issue("server")
        pair = (key.read_bytes(), certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair])
    with FakeKeybearer(credentials) as fake:
        address = cause.address or fake.address
        with (
            KeybearerClient(address, token="own", tls=cause.tls) as client,
            VERIFIERS[kind](client) as verifier,
        ):
            for _ in range(3):
                assert _is_refused(verifier, "any") is not None
    lines = [one.getMessage() for one in caplog.records if "cannot be reached" in one.getMessage()]
    assert len(lines) == 1
    assert f"at {address}," in lines[0]
    assert cause.says in lines[0]
    assert "DEADLINE_EXCEEDED" not in lines[0]
