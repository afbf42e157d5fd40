"""How each entry point is asked. Every reply is checked."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode

from bench import generator
from bench.servers import Target
from keybearer import (
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    KeybearerClient,
    Presented,
    RemoteVerifier,
)
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.ext_authz.v3 import ext_authz_pb2 as envoy

BATCH = 100
SMALL_BATCH = 10
ID_LENGTH = 16
_VALIDATE = "/keybearer.v1.TokenService/ValidateToken"
_BATCH = "/keybearer.v1.TokenService/BatchValidateTokens"
_CHECK = "/envoy.service.auth.v3.Authorization/Check"

Ask = Callable[[float], generator.Report]


class EntryPoint(NamedTuple):
    """One way to ask about tokens."""

    name: str
    ask: Ask
    """Asks for so many seconds."""
    questions: int = 1
    """Tokens that one reply is about."""


class Asker:
    """Asks one server about the same tokens in every way."""

    def __init__(self, target: Target, caller: str, tokens: list[str], connections: int) -> None:
        self._target = target
        self._caller = caller
        self._tokens = tokens
        self._connections = connections

    def validate(self, name: str = "ValidateToken", in_flight: int = 1) -> EntryPoint:
        """Ask by ValidateToken."""
        bodies = [
            generator.message(pb.ValidateTokenRequest(token=token).SerializeToString())
            for token in self._tokens
        ]
        return EntryPoint(name, self._grpc(_VALIDATE, bodies, is_valid, in_flight))

    def batches(self, size: int) -> EntryPoint:
        """Ask by BatchValidateTokens."""
        starts = range(0, len(self._tokens) - size + 1, size)
        bodies = [_batch_request(self._tokens[start : start + size]) for start in starts]

        def all_valid(reply: bytes) -> bool:
            responses = pb.BatchValidateTokensResponse.FromString(reply).responses
            return len(responses) == size and all(one.valid for one in responses)

        name = f"BatchValidateTokens, {size} tokens"
        return EntryPoint(name, self._grpc(_BATCH, bodies, all_valid), size)

    def ext_authz(self) -> EntryPoint:
        """Ask by Envoy's Check."""
        bodies = [_check_request(token) for token in self._tokens]
        return EntryPoint("ext_authz Check", self._grpc(_CHECK, bodies, _is_allowed))

    def forward_auth(self) -> EntryPoint:
        """Ask by GET /v1/auth."""
        return self._http("forward-auth", "GET /v1/auth", _is_authorized, authorized=True)

    def introspection(self) -> EntryPoint:
        """Ask by POST /oauth2/introspect."""
        return self._http("introspection", "POST /oauth2/introspect", _is_active, authorized=False)

    @contextmanager
    def checks(self, threads: int, *, gathered: bool) -> Iterator[EntryPoint]:
        """Check from threads of one process, through the client.

        Args:
            threads: How many check at the same time.
            gathered: By a RemoteVerifier; otherwise each check makes a call of its own.
        """
        address = f"127.0.0.1:{self._target.port}"
        with KeybearerClient(address, token=self._caller, tls=False) as client:
            verifier = RemoteVerifier(client)

            def check(token: str) -> bool:
                if gathered:
                    return verifier.verify(Presented(token)).valid
                return client.validate_token(token).valid

            how = "RemoteVerifier" if gathered else "validate_token"
            yield EntryPoint(
                f"{how}, {threads} thread{'s' if threads > 1 else ''}",
                lambda seconds: _check_for(check, self._tokens, threads, seconds),
            )

    def tasks(self, count: int, *, gathered: bool) -> EntryPoint:
        """Check as `checks` does, from tasks of one event loop."""
        address = f"127.0.0.1:{self._target.port}"

        async def ask(seconds: float) -> generator.Report:
            async with AsyncKeybearerClient(address, token=self._caller, tls=False) as client:
                verifier = AsyncRemoteVerifier(client)

                async def check(token: str) -> bool:
                    if gathered:
                        return (await verifier.verify(Presented(token))).valid
                    return (await client.validate_token(token)).valid

                return await _check_in_tasks(check, self._tokens, count, seconds)

        how = "AsyncRemoteVerifier" if gathered else "async validate_token"
        return EntryPoint(
            f"{how}, {count} task{'s' if count > 1 else ''}",
            lambda seconds: asyncio.run(ask(seconds)),
        )

    def _grpc(
        self, path: str, bodies: list[bytes], check: generator.Check, in_flight: int = 1
    ) -> Ask:
        return lambda seconds: generator.run(
            port=self._target.port,
            path=path,
            metadata=[("authorization", f"Bearer {self._caller}")],
            bodies=bodies,
            check=check,
            seconds=seconds,
            connections=self._connections,
            in_flight=in_flight,
        )

    def _http(
        self, name: str, line: str, check: generator.HttpCheck, *, authorized: bool
    ) -> EntryPoint:
        head = (
            f"{line} HTTP/1.1\r\nHost: 127.0.0.1:{self._target.http_port}\r\n"
            f"X-Keybearer-Caller: Bearer {self._caller}\r\n"
        )
        requests = []
        for token in self._tokens:
            if authorized:
                requests.append(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
                continue
            form = urlencode({"token": token})
            requests.append(
                f"{head}Content-Type: application/x-www-form-urlencoded\r\n"
                f"Content-Length: {len(form)}\r\n\r\n{form}".encode()
            )
        return EntryPoint(
            name,
            lambda seconds: generator.run_http(
                port=self._target.http_port,
                requests=requests,
                check=check,
                seconds=seconds,
                connections=self._connections,
            ),
        )


def is_valid(reply: bytes) -> bool:
    """Check a reply: a VALID verdict about a named key."""
    verdict = pb.ValidateTokenResponse.FromString(reply)
    return verdict.valid and len(verdict.key_id) == ID_LENGTH


def _is_allowed(reply: bytes) -> bool:
    return envoy.CheckResponse.FromString(reply).HasField("ok_response")


def _is_authorized(head: bytes, body: bytes) -> bool:
    return head.startswith(b"http/1.1 200") and b"x-keybearer-owner: " in head and not body


def _is_active(head: bytes, body: bytes) -> bool:
    return head.startswith(b"http/1.1 200") and b'"active":true' in body.replace(b" ", b"")


def _check_request(token: str) -> bytes:
    request = envoy.CheckRequest()
    request.attributes.request.http.headers["authorization"] = f"Bearer {token}"
    return generator.message(request.SerializeToString())


def _batch_request(tokens: Sequence[str]) -> bytes:
    requests = [pb.ValidateTokenRequest(token=token) for token in tokens]
    return generator.message(pb.BatchValidateTokensRequest(requests=requests).SerializeToString())


def _check_for(
    check: Callable[[str], bool], tokens: Sequence[str], threads: int, seconds: float
) -> generator.Report:
    report = generator.Report()
    lock = threading.Lock()
    started = time.perf_counter()

    def run(number: int) -> None:
        latencies = []
        wrong = 0
        turn = number * len(tokens) // threads
        while (before := time.perf_counter()) - started < seconds:
            wrong += not check(tokens[turn % len(tokens)])
            latencies.append(time.perf_counter() - before)
            turn += 1
        with lock:
            report.latencies += latencies
            report.replies += len(latencies)
            report.wrong += wrong

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    report.seconds = time.perf_counter() - started
    return report


async def _check_in_tasks(
    check: Callable[[str], Awaitable[bool]], tokens: Sequence[str], count: int, seconds: float
) -> generator.Report:
    report = generator.Report()
    started = time.perf_counter()

    async def run(number: int) -> None:
        turn = number * len(tokens) // count
        while (before := time.perf_counter()) - started < seconds:
            report.wrong += not await check(tokens[turn % len(tokens)])
            report.latencies.append(time.perf_counter() - before)
            report.replies += 1
            turn += 1

    await asyncio.gather(*(run(number) for number in range(count)))
    report.seconds = time.perf_counter() - started
    return report
