"""Checks that wait at the same time go to keybearer in one call."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from client.support import LoopThread, until
from keybearer import (
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    AsyncRemoteVerifier,
    CachingVerifier,
    KeybearerClient,
    Outcome,
    Presented,
    RemoteVerifier,
)
from keybearer.errors import VerifierUnavailableError
from keybearer.v1 import token_service_pb2 as pb
from watch.scripted_server import TIMEOUT_S, ScriptedServer, scripted_server

OWN = "kbear1_own"
MAX_BATCH = 100
MAX_CALLS = 4
PATIENCE_NS = 20_000_000
ALL = ("remote", "async remote", "caching", "async caching")
CACHING = ("caching", "async caching")
"""Those whose clock a test can stop, and whose waiting checks it can count."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server."""
    with scripted_server() as one:
        yield one


class Clock:
    """A clock that stands still until it is moved, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def still() -> Clock:
    """A clock that stands still."""
    return Clock()


class Checker:
    """Checks tokens with one verifier, each in a thread or a task of its own."""

    def __init__(
        self,
        server: ScriptedServer,
        start: Callable[[str], Any],
        describe: Callable[[], dict[str, Any]],
        cancel: Callable[[Any], None],
    ) -> None:
        self._server = server
        self._describe = describe
        self.start = start
        """Begins to check a token and returns the future of the verdict."""
        self.cancel = cancel
        """Cancels a check of an asynchronous verifier."""

    def hold_one(self, name: str = "held") -> Any:
        """Begin a check whose call the server holds until `release`."""
        self._server.hold = threading.Event()
        check = self.start(name)
        self.await_call()
        return check

    def await_call(self) -> None:
        """Wait until the server has received one more call."""
        assert self._server.asked.acquire(timeout=TIMEOUT_S)

    def await_waiting(self, count: int) -> None:
        """Wait until so many checks wait to be sent."""
        until(lambda: self._describe()["waiting"] == count)

    def release(self) -> None:
        """Release the held answers of the server."""
        assert self._server.hold is not None
        self._server.hold.set()


@contextlib.contextmanager
def checking(
    kind: str, server: ScriptedServer, own: Callable[[], str] = lambda: OWN, **options: Any
) -> Iterator[Checker]:
    """Run a verifier of a kind during a block.

    Args:
        kind: One of ALL.
        server: What it asks.
        own: Returns the verifier's own token.
        options: Further arguments of the verifier.
    """
    make = _checking_tasks if kind.startswith("async") else _checking_threads
    with make(kind, server, own, options) as checker:
        try:
            yield checker
        finally:
            if server.hold is not None:
                server.hold.set()


@contextlib.contextmanager
def _checking_threads(
    kind: str, server: ScriptedServer, own: Callable[[], str], options: dict[str, Any]
) -> Iterator[Checker]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(KeybearerClient(server.address, token=own, tls=False))
        pool = stack.enter_context(futures.ThreadPoolExecutor(300))
        caching = (
            stack.enter_context(CachingVerifier(client, **options)) if kind in CACHING else None
        )
        verifier = caching or RemoteVerifier(client, **options)
        yield Checker(
            server,
            lambda token: pool.submit(verifier.verify, Presented(f"kbear1_{token}")),
            dict if caching is None else caching.describe,
            _no_cancel,
        )


def _no_cancel(check: Any) -> None:
    raise AssertionError("a thread cannot be cancelled")


@contextlib.contextmanager
def _checking_tasks(
    kind: str, server: ScriptedServer, own: Callable[[], str], options: dict[str, Any]
) -> Iterator[Checker]:
    client = AsyncKeybearerClient(server.address, token=own, tls=False)
    caching = AsyncCachingVerifier(client, **options) if kind in CACHING else None
    verifier = caching or AsyncRemoteVerifier(client, **options)
    thread = LoopThread()

    def start(token: str) -> Any:
        return asyncio.run_coroutine_threadsafe(
            verifier.verify(Presented(f"kbear1_{token}")), thread.loop
        )

    try:
        yield Checker(
            server,
            start,
            dict if caching is None else caching.describe,
            lambda check: check.cancel(),
        )
    finally:
        if caching is not None:
            thread.run(caching.close())
        thread.run(client.close())
        thread.close()


def key_id_of(check: Any) -> str:
    """Return the id of the key that a check found."""
    identity = check.result(TIMEOUT_S).identity
    assert identity is not None
    return str(identity.key_id)


def asked_about(server: ScriptedServer) -> list[str]:
    """Return the tokens that the server was asked about, without those of probes."""
    return [token for call in server.calls for token in call if token.startswith("kbear1_")]


def has_no_answer(check: Any) -> bool:
    """Return whether a check ends without a verdict."""
    return isinstance(check.exception(TIMEOUT_S), VerifierUnavailableError)


def refusing(
    code: grpc.StatusCode, *, batches_only: bool = True
) -> Callable[[list[str], grpc.ServicerContext], None]:
    """Return what aborts calls with a status that has a reason."""
    info = error_details_pb2.ErrorInfo(domain="keybearer.v1", reason="INTERNAL")
    status = status_pb2.Status(code=code.value[0], message="refused by the test")
    status.details.add().Pack(info)

    def refuse(tokens: list[str], context: grpc.ServicerContext) -> None:
        if len(tokens) > 1 or not batches_only:
            context.abort_with_status(rpc_status.to_status(status))

    return refuse


# --- what goes together ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_check_alone_is_sent_alone(kind: str, server: ScriptedServer) -> None:
    """A check that finds no call under way goes at once, by ValidateToken."""
    with checking(kind, server) as checker:
        for number in range(3):
            assert key_id_of(checker.start(f"one{number}")) == f"one{number}"
    assert server.calls == [["kbear1_one0"], ["kbear1_one1"], ["kbear1_one2"]]
    assert server.batches == 0


@pytest.mark.parametrize("kind", ALL)
def test_checks_that_wait_go_together(kind: str, server: ScriptedServer) -> None:
    """Many checks make few calls, and each of them gets the verdict about its own token."""
    names = [f"key{number}" for number in range(200)]
    with checking(kind, server) as checker:
        held = checker.hold_one()
        checks = [checker.start(name) for name in names]
        checker.release()
        assert [key_id_of(check) for check in checks] == names
        assert key_id_of(held) == "held"
    assert sorted(asked_about(server)) == sorted(f"kbear1_{name}" for name in ["held", *names])
    assert len(server.calls) < len(names) / 4


@pytest.mark.parametrize("kind", CACHING)
def test_what_waits_goes_when_the_call_before_it_ends(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """No timer sends a check: those that wait go when the call before them has ended."""
    with checking(kind, server, clock=still) as checker:
        held = checker.hold_one()
        checks = [checker.start(f"key{number}") for number in range(31)]
        checker.await_waiting(31)
        assert len(server.calls) == 1
        checker.release()
        assert [key_id_of(check) for check in (held, *checks)]
    assert [len(call) for call in server.calls] == [1, 31]
    assert server.batches == 1


@pytest.mark.parametrize("kind", CACHING)
def test_a_hundred_checks_do_not_wait(kind: str, server: ScriptedServer, still: Clock) -> None:
    """When a hundred checks wait, they go at once, beside the call that is under way."""
    with checking(kind, server, clock=still) as checker:
        checker.hold_one()
        checks = [checker.start(f"key{number}") for number in range(MAX_BATCH)]
        checker.await_call()
        assert [len(call) for call in server.calls] == [1, MAX_BATCH]
        checker.release()
        assert all(check.result(TIMEOUT_S).valid for check in checks)


@pytest.mark.parametrize("kind", CACHING)
def test_a_check_does_not_wait_for_an_old_call(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """A check that finds a call older than 20 ms goes at once and takes along who waits."""
    with checking(kind, server, clock=still) as checker:
        checker.hold_one()
        still.now += PATIENCE_NS
        checker.start("first")
        checker.await_waiting(1)
        still.now += 1
        checker.start("second")
        checker.await_call()
        assert server.calls[1:] == [["kbear1_first", "kbear1_second"]]


@pytest.mark.parametrize("kind", CACHING)
def test_at_most_four_calls_are_under_way(kind: str, server: ScriptedServer, still: Clock) -> None:
    """The fifth call waits for the end of another one, however old that is."""
    with checking(kind, server, clock=still) as checker:
        checks = [checker.hold_one()]
        for number in range(1, MAX_CALLS):
            still.now += PATIENCE_NS + 1
            checks.append(checker.start(f"key{number}"))
            checker.await_call()
        still.now += PATIENCE_NS + 1
        checks += [checker.start(f"late{number}") for number in range(3)]
        checker.await_waiting(3)
        assert len(server.calls) == MAX_CALLS
        checker.release()
        assert all(check.result(TIMEOUT_S).valid for check in checks)
    assert len(server.calls[MAX_CALLS]) == 3


@pytest.mark.parametrize("kind", CACHING)
def test_a_token_is_asked_about_once_in_a_call(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """Checks of one token go together, also with the next call after one that asks about it."""
    with checking(kind, server, clock=still) as checker:
        checks = [checker.hold_one("same")]
        checks += [checker.start("same") for _ in range(20)]
        checker.await_waiting(20)
        checker.release()
        assert {key_id_of(check) for check in checks} == {"same"}
    assert server.calls == [["kbear1_same"], ["kbear1_same"]]


@pytest.mark.parametrize("kind", CACHING)
def test_a_verdict_is_never_older_than_its_check(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """A check that begins while the same token is asked about gets the verdict of a later call."""
    with checking(kind, server, clock=still) as checker:
        before = checker.hold_one("same")
        server.answer = server.unknown
        after = checker.start("same")
        checker.await_waiting(1)
        checker.release()
        assert before.result(TIMEOUT_S).valid
        assert after.result(TIMEOUT_S).outcome is Outcome.NOT_FOUND


@pytest.mark.parametrize("kind", CACHING)
def test_the_credential_is_that_of_the_moment_of_sending(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """A check that waited is sent with the verifier's current credential."""
    own = ["kbear1_first"]
    with checking(kind, server, lambda: own[0], clock=still) as checker:
        checker.hold_one()
        waiting = checker.start("waiting")
        checker.await_waiting(1)
        own[0] = "kbear1_second"
        server.credentials.clear()
        checker.release()
        assert waiting.result(TIMEOUT_S).valid
        assert "Bearer kbear1_second" in server.credentials
        assert "Bearer kbear1_first" not in server.credentials


# --- deadlines and cancellation -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL)
def test_a_check_leaves_at_its_own_deadline(kind: str, server: ScriptedServer) -> None:
    """A check that waits behind a call without an answer ends in time and is not sent."""
    with checking(kind, server, timeout=0.3) as checker:
        held = checker.hold_one()
        waiting = [checker.start(f"key{number}") for number in range(3)]
        assert all(has_no_answer(check) for check in (held, *waiting))
        checker.release()
    assert len(asked_about(server)) <= 4


def test_a_cancelled_check_is_not_sent(server: ScriptedServer, still: Clock) -> None:
    """A check that is cancelled while it waits leaves the others alone and is not sent."""
    with checking("async caching", server, clock=still) as checker:
        held = checker.hold_one()
        gone, stays = checker.start("gone"), checker.start("stays")
        checker.await_waiting(2)
        checker.cancel(gone)
        checker.await_waiting(1)
        checker.release()
        assert (key_id_of(held), key_id_of(stays)) == ("held", "stays")
    assert "kbear1_gone" not in asked_about(server)


@pytest.mark.parametrize("kind", ["async remote", "async caching"])
def test_a_cancelled_check_takes_nobody_along(kind: str, server: ScriptedServer) -> None:
    """When the check whose call is under way is cancelled, those that wait are sent."""
    with checking(kind, server) as checker:
        held = checker.hold_one()
        waiting = [checker.start(f"key{number}") for number in range(3)]
        checker.cancel(held)
        checker.await_call()
        gone, *stay = waiting
        checker.cancel(gone)
        checker.release()
        assert [key_id_of(check) for check in stay] == ["key1", "key2"]


def test_a_thread_that_is_interrupted_takes_nobody_along(
    server: ScriptedServer, still: Clock
) -> None:
    """When the thread that makes a call is interrupted, another one makes it."""
    interrupts = iter([False, True])

    def own() -> str:
        # The credential is fetched on the thread that makes the call.
        if threading.current_thread().name.startswith("ThreadPool") and next(interrupts, False):
            raise KeyboardInterrupt
        return OWN

    with checking("caching", server, own, clock=still) as checker:
        held = checker.hold_one()
        waiting = [checker.start(f"key{number}") for number in range(3)]
        checker.await_waiting(3)
        checker.release()
        assert key_id_of(held) == "held"
        errors = [check.exception(TIMEOUT_S) for check in waiting]
        assert sorted(type(error).__name__ for error in errors) == [
            "KeyboardInterrupt",
            "NoneType",
            "NoneType",
        ]


# --- calls without a good answer ------------------------------------------------------------------


def _hold_and_wait(checker: Checker) -> list[Any]:
    checker.hold_one()
    checks = [checker.start(f"key{number}") for number in range(3)]
    checker.await_waiting(3)
    return checks


@pytest.mark.parametrize("kind", CACHING)
@pytest.mark.parametrize("wrong", ["one less", "one more", "none"])
def test_another_number_of_verdicts_is_no_answer(
    wrong: str, kind: str, server: ScriptedServer, still: Clock
) -> None:
    """When a response has not one verdict for each token, no check gets any of them."""

    def spoil(responses: list[pb.ValidateTokenResponse]) -> list[pb.ValidateTokenResponse]:
        return {"one less": responses[1:], "one more": [*responses, responses[0]], "none": []}[
            wrong
        ]

    server.answer_batch = spoil
    with checking(kind, server, clock=still) as checker:
        checks = _hold_and_wait(checker)
        checker.release()
        assert all(has_no_answer(check) for check in checks)
    asked = [call for call in server.calls if "kbear1_key0" in call]
    assert len(asked) == 1


@pytest.mark.parametrize("kind", CACHING)
@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
def test_a_call_that_fails_is_asked_again_one_by_one(
    code: grpc.StatusCode, kind: str, server: ScriptedServer, still: Clock
) -> None:
    """What one token may have caused harms no other: each is asked about alone."""
    server.fail = refusing(code)
    with checking(kind, server, clock=still) as checker:
        checks = _hold_and_wait(checker)
        checker.release()
        assert [key_id_of(check) for check in checks] == ["key0", "key1", "key2"]
    assert [len(call) for call in server.calls] == [1, 3, 1, 1, 1]


@pytest.mark.parametrize("kind", CACHING)
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_an_outage_is_not_asked_again_one_by_one(
    code: grpc.StatusCode, kind: str, server: ScriptedServer, still: Clock
) -> None:
    """What concerns every token is not asked again for each of them."""
    server.fail = refusing(code)
    with checking(kind, server, clock=still) as checker:
        checks = _hold_and_wait(checker)
        checker.release()
        assert all(has_no_answer(check) for check in checks)
    assert all("kbear1_key0" not in call for call in server.calls if len(call) == 1)


@pytest.mark.parametrize("kind", CACHING)
def test_an_item_without_a_verdict_is_asked_about_alone(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """An item of a batch that could not be judged is an error of its own check alone."""

    def answer(request: pb.ValidateTokenRequest) -> pb.ValidateTokenResponse:
        return pb.ValidateTokenResponse() if "key1" in request.token else server.valid(request)

    def fail(tokens: list[str], context: grpc.ServicerContext) -> None:
        if tokens == ["kbear1_key1"]:
            refusing(grpc.StatusCode.UNAVAILABLE, batches_only=False)(tokens, context)

    server.answer, server.fail = answer, fail
    with checking(kind, server, clock=still) as checker:
        first, second, third = _hold_and_wait(checker)
        checker.release()
        assert (key_id_of(first), key_id_of(third)) == ("key0", "key2")
        assert has_no_answer(second)


@pytest.mark.parametrize("kind", CACHING)
def test_known_trouble_is_not_waited_for_again(
    kind: str, server: ScriptedServer, still: Clock
) -> None:
    """When the call ahead shows that nobody gets an answer, those that wait are refused at once."""

    def fail(tokens: list[str], context: grpc.ServicerContext) -> None:
        assert server.hold is not None
        server.asked.release()
        server.hold.wait(TIMEOUT_S)
        context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "as a connection fails, without a reason")

    server.fail = fail
    with checking(kind, server, clock=still) as checker:
        checks = _hold_and_wait(checker)
        checker.release()
        assert all(has_no_answer(check) for check in checks)
    assert asked_about(server) == ["kbear1_held"]


# --- what is kept ---------------------------------------------------------------------------------


def test_the_verdicts_of_a_batch_are_kept_under_the_lease(server: ScriptedServer) -> None:
    """Each verdict of a batch is reused, unless a change overtook it."""
    names = [f"key{number}" for number in range(5)]
    client = KeybearerClient(server.address, token=OWN, tls=False)
    clock = Clock()
    with (
        CachingVerifier(client, clock=clock) as verifier,
        futures.ThreadPoolExecutor(10) as pool,
    ):
        leased = pool.submit(verifier.wait_for_lease, TIMEOUT_S)
        stream = server.stream()
        stream.hello()
        stream.answer_ping()
        assert leased.result()
        server.hold = threading.Event()
        held = pool.submit(verifier.verify, Presented("kbear1_held"))
        assert server.asked.acquire(timeout=TIMEOUT_S)
        checks = [pool.submit(verifier.verify, Presented(f"kbear1_{name}")) for name in names]
        until(lambda: verifier.describe()["waiting"] == len(names))
        server.hold.set()
        assert held.result().valid
        assert server.asked.acquire(timeout=TIMEOUT_S)
        assert all(check.result().valid for check in checks)
        assert [len(call) for call in server.calls] == [1, len(names)]
        again = [verifier.verify(Presented(f"kbear1_{name}")) for name in names]
        assert all(verdict.valid for verdict in again)
        assert len(server.calls) == 2


def test_a_verdict_of_a_batch_that_a_change_overtook_is_not_kept(server: ScriptedServer) -> None:
    """The item whose key changed while the batch was under way is asked about again."""
    clock = Clock()
    client = KeybearerClient(server.address, token=OWN, tls=False)
    with (
        CachingVerifier(client, clock=clock) as verifier,
        futures.ThreadPoolExecutor(10) as pool,
    ):
        leased = pool.submit(verifier.wait_for_lease, TIMEOUT_S)
        stream = server.stream()
        stream.hello()
        stream.answer_ping()
        assert leased.result()
        first, second = threading.Event(), threading.Event()
        server.hold = first
        held = pool.submit(verifier.verify, Presented("kbear1_held"))
        assert server.asked.acquire(timeout=TIMEOUT_S)
        names = ("changed", "same")
        checks = [pool.submit(verifier.verify, Presented(f"kbear1_{name}")) for name in names]
        until(lambda: verifier.describe()["waiting"] == len(names))
        server.hold = second
        first.set()
        assert held.result().valid
        assert server.asked.acquire(timeout=TIMEOUT_S)
        stream.say(invalidation={"revision": 1, "key_id": "changed"})
        until(lambda: verifier.stats().invalidations == 1)
        second.set()
        assert all(check.result().valid for check in checks)
        assert verifier.verify(Presented("kbear1_same")).valid
        assert len(server.calls) == 2
        assert verifier.verify(Presented("kbear1_changed")).valid
        assert server.calls[2:] == [["kbear1_changed"]]
