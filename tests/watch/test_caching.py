"""CachingVerifier and AsyncCachingVerifier, at a scripted server and at the real one."""

import asyncio
import gc
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import pytest

from harness import Service, Stubs
from keybearer import (
    AsyncCachingVerifier,
    AsyncKeybearerClient,
    CachingVerifier,
    KeybearerClient,
    Outcome,
    Presented,
    Role,
)
from keybearer._cache import caching as caching_module
from keybearer._cache import stream as stream_module
from keybearer.errors import VerifierUnavailableError
from reliability.processes import environment
from watch.scripted_server import (
    ACCOUNT,
    TIMEOUT_S,
    ScriptedServer,
    ScriptedStream,
    scripted_server,
)

TOKEN = "kbear1_token"
KEY = "token"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server."""
    with scripted_server() as one:
        yield one


@contextmanager
def caching(server: ScriptedServer, **options: Any) -> Iterator[CachingVerifier]:
    """Run a verifier during a block."""
    client = KeybearerClient(server.address, token="kbear1_own", tls=False)
    with CachingVerifier(client, **options) as verifier:
        yield verifier


@contextmanager
def leased(server: ScriptedServer, **options: Any) -> Iterator[tuple[CachingVerifier, Any]]:
    """Run a verifier that holds a lease, with the server's end of its stream."""
    with caching(server, **options) as verifier, futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(verifier.wait_for_lease, TIMEOUT_S)
        stream = server.stream()
        stream.hello()
        stream.answer_ping()
        assert waiting.result()
        yield verifier, stream


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that another thread fulfils."""
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.005)


# --- answers --------------------------------------------------------------------------------------


def test_under_a_lease_a_token_is_asked_about_once(server: ScriptedServer) -> None:
    """Under a lease, the second check of a token reuses the verdict, whatever the rule."""
    with leased(server) as (verifier, _):
        first = verifier.verify(Presented(TOKEN))
        assert first.identity is not None
        assert first.identity.effective_role is Role.DEVELOPER
        assert all(verifier.verify(Presented(TOKEN)) is first for _ in range(100))
        assert server.questions == 1
        assert verifier.stats().hits >= 99


def test_without_a_stream_every_check_asks(server: ScriptedServer) -> None:
    """Without the stream, every check is correct and validates the token at the server."""
    with caching(server) as verifier:
        for _ in range(5):
            assert verifier.verify(Presented(TOKEN)).valid
        assert server.questions == 5
        assert not verifier.wait_for_lease(0)


def test_past_the_lease_the_server_is_asked(server: ScriptedServer) -> None:
    """Without a pong for two seconds of the verifier's clock, verdicts are not reused."""
    moved = 0

    def clock() -> int:
        return caching_module.now_ns() + moved

    with leased(server, clock=clock) as (verifier, _):
        verifier.verify(Presented(TOKEN))
        assert verifier.verify(Presented(TOKEN)).valid
        assert server.questions == 1
        moved = 2_000_000_001
        assert verifier.verify(Presented(TOKEN)).valid
        assert server.questions == 2


def test_past_the_lease_and_without_a_server_there_is_no_answer() -> None:
    """When neither lease nor server is there, VerifierUnavailableError is raised."""
    moved = 0
    with (
        scripted_server() as server,
        leased(server, clock=lambda: caching_module.now_ns() + moved) as (verifier, _),
    ):
        verifier.verify(Presented(TOKEN))
        server.stop()
        assert verifier.verify(Presented(TOKEN)).valid, "within the lease"
        moved = 2_000_000_001
        with pytest.raises(VerifierUnavailableError):
            verifier.verify(Presented(TOKEN))


def test_a_change_is_heard_and_the_next_check_asks(server: ScriptedServer) -> None:
    """A change evicts the verdict, so the next check validates the token again."""
    with leased(server) as (verifier, stream):
        verifier.verify(Presented(TOKEN))
        server.revision = 1
        server.answer = server.unknown
        stream.say(invalidation={"revision": 1, "key_id": KEY})
        eventually(lambda: verifier.stats().invalidations == 1, "the change was heard")
        assert verifier.verify(Presented(TOKEN)).outcome is Outcome.NOT_FOUND


def test_an_answer_that_was_overtaken_by_a_change_is_given_and_not_kept(
    server: ScriptedServer,
) -> None:
    """A verdict that was read before a change and arrives after it is returned and not kept."""
    with leased(server) as (verifier, stream), futures.ThreadPoolExecutor(1) as pool:
        server.hold = threading.Event()
        check = pool.submit(verifier.verify, Presented(TOKEN))
        assert server.asked.acquire(timeout=TIMEOUT_S)
        stream.say(invalidation={"revision": 1, "key_id": KEY})
        eventually(lambda: verifier.stats().invalidations == 1, "the change was heard")
        server.hold.set()
        assert check.result().valid
        server.hold = None
        verifier.verify(Presented(TOKEN))
        assert server.questions == 2
        assert verifier.stats().rejected_stale >= 1


@pytest.mark.parametrize("token", ["", "x" * 513, "kbear1_ä", "kbear1_\n", "\udc80"])
def test_what_is_no_token_is_not_sent(server: ScriptedServer, token: str) -> None:
    """A text that is no token is NOT_FOUND without a call."""
    with caching(server) as verifier:
        assert verifier.verify(Presented(token)).outcome is Outcome.NOT_FOUND
        assert server.questions == 0


def test_an_identity_of_another_account_is_refused(server: ScriptedServer) -> None:
    """An identity of another account is NOT_FOUND, whatever the server says."""
    with leased(server, account_id="SomebodyElse0001") as (verifier, _):
        assert verifier.verify(Presented(TOKEN)).outcome is Outcome.NOT_FOUND
    with leased(server, account_id=ACCOUNT) as (verifier, _):
        assert verifier.verify(Presented(TOKEN)).valid


# --- many checks at once --------------------------------------------------------------------------


def test_different_tokens_are_different_questions(server: ScriptedServer) -> None:
    """Each token gets its own verdict."""
    with caching(server) as verifier, futures.ThreadPoolExecutor(8) as pool:
        keys = [f"key{number}" for number in range(200)]
        tokens = [f"kbear1_{key}" for key in keys]
        verdicts = list(pool.map(verifier.verify, map(Presented, tokens)))
        assert [verdict.identity and verdict.identity.key_id for verdict in verdicts] == keys


# --- asyncio --------------------------------------------------------------------------------------


def test_asyncio_shares_answers(server: ScriptedServer) -> None:
    """Tasks reuse verdicts, and the credential comes from their event loop."""

    async def play() -> None:
        loop = asyncio.get_running_loop()
        sources: list[Any] = []

        async def own_token() -> str:
            sources.append(asyncio.get_running_loop())
            return "kbear1_own"

        client = AsyncKeybearerClient(server.address, token=own_token, tls=False)
        async with AsyncCachingVerifier(client) as verifier:
            ready = asyncio.create_task(verifier.wait_for_lease(TIMEOUT_S))
            stream = await asyncio.to_thread(server.stream)
            await asyncio.to_thread(stream.hello)
            await asyncio.to_thread(stream.answer_ping)
            assert await ready
            assert (await verifier.verify(Presented(TOKEN))).valid
            assert server.questions == 1
            before = verifier.stats().hits
            assert (await verifier.verify(Presented(TOKEN))).valid
            assert verifier.stats().hits == before + 1
            assert set(sources) == {loop}

    asyncio.run(play())
    assert set(server.credentials) == {"Bearer kbear1_own"}


def test_asyncio_without_a_server_there_is_no_answer() -> None:
    """Without a server, the asynchronous verifier raises the same error."""

    async def play() -> None:
        client = AsyncKeybearerClient("127.0.0.1:1", token="kbear1_own", tls=False)
        async with AsyncCachingVerifier(client, timeout=1) as verifier:
            with pytest.raises(VerifierUnavailableError):
                await verifier.verify(Presented(TOKEN))

    asyncio.run(play())


def test_asyncio_a_credential_that_cannot_be_had_is_no_answer(server: ScriptedServer) -> None:
    """An error of the token source becomes VerifierUnavailableError."""

    async def broken() -> str:
        raise RuntimeError("the vault is closed")

    async def play() -> None:
        client = AsyncKeybearerClient(server.address, token=broken, tls=False)
        async with AsyncCachingVerifier(client) as verifier:
            with pytest.raises(VerifierUnavailableError) as caught:
                await verifier.verify(Presented(TOKEN))
            assert "vault" not in str(caught.value)

    asyncio.run(play())


# --- the stream -----------------------------------------------------------------------------------


def test_the_stream_resumes_where_it_ended(server: ScriptedServer) -> None:
    """A new stream sends the epoch and the last revision, and the cache stays."""
    with leased(server) as (verifier, stream):
        stream.say(invalidation={"revision": 7, "key_id": "other"})
        eventually(lambda: verifier.stats().invalidations == 1, "the change was heard")
        server.revision = 7
        verifier.verify(Presented(TOKEN))
        stream.end()
        again = server.stream()
        subscription = again.hello(head=9).subscribe
        assert (subscription.epoch, subscription.from_revision) == ("epoch", 7)
        again.answer_ping(9)
        verifier.verify(Presented(TOKEN))
        assert server.questions == 1


def test_pings_come_every_half_second_and_carry_the_clock(server: ScriptedServer) -> None:
    """Pings come every half second, the first at once, with the time of the clock."""
    with caching(server) as verifier:
        verifier.verify(Presented(TOKEN))
        stream = server.stream()
        stream.hello()
        times = []
        for _ in range(4):
            times.append(stream.next("ping").ping.sent_at)
            stream.say(pong={"sent_at": times[-1], "head_revision": 0})
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert all(0.4e9 < gap < 1.5e9 for gap in gaps)


def test_a_stream_that_does_not_answer_is_given_up_with_its_connection(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After too many unanswered pings, the verifier opens a new connection."""
    monkeypatch.setattr(stream_module, "PING_SECONDS", 0.05)
    with caching(server) as verifier:
        verifier.verify(Presented(TOKEN))
        first = server.stream()
        first.hello()
        second = server.stream()
        second.next("subscribe")
        assert first.peer != second.peer


@pytest.mark.parametrize("broken", ["authorize", "clock"])
def test_nothing_is_raised_in_the_background(
    server: ScriptedServer, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The background thread logs errors and tries again."""
    fail = threading.Event()

    def own_token() -> str:
        if fail.is_set():
            raise RuntimeError("the vault is closed")
        return "kbear1_own"

    client = KeybearerClient(server.address, token=own_token, tls=False)
    with CachingVerifier(client) as verifier:
        verifier.verify(Presented(TOKEN))
        stream = server.stream()
        stream.hello()
        fail.set()
        stream.end()
        eventually(lambda: "failed" in caplog.text, "it was logged")
        fail.clear()
        server.stream().hello()


def test_the_credential_is_asked_for_each_time(server: ScriptedServer) -> None:
    """Every stream and every validation uses the current token of the source."""
    own = ["kbear1_first"]
    client = KeybearerClient(server.address, token=lambda: own[0], tls=False)
    with CachingVerifier(client) as verifier:
        verifier.verify(Presented(TOKEN))
        own[0] = "kbear1_second"
        verifier.verify(Presented(TOKEN))
    assert "Bearer kbear1_second" in server.credentials


# --- usage ----------------------------------------------------------------------------------------


def test_answers_given_from_the_cache_are_reported(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports name key, secret, count and the time of the last use."""
    monkeypatch.setattr(stream_module, "USAGE_EVERY", 0.2)
    with leased(server) as (verifier, stream):
        for _ in range(6):
            verifier.verify(Presented(TOKEN))
        before = time.time()
        stream.next("usage")
        (item,) = stream.usage
        assert (item.key_id, item.secret_version, item.count) == (KEY, 1, 5)
        assert abs(item.last_used_time.ToNanoseconds() / 1e9 - before) < 2


def test_what_was_not_reported_is_reported_when_it_closes(server: ScriptedServer) -> None:
    """Closing reports the remaining uses, in messages of at most 500 items."""
    with leased(server) as (verifier, stream):
        for number in range(700):
            verifier.verify(Presented(f"kbear1_{number}"))
            verifier.verify(Presented(f"kbear1_{number}"))
        verifier.close()
        eventually(lambda: len(stream.usage) == 700, "everything was reported")


def test_reported_uses_arrive_in_the_store(service: Service, admin: Stubs) -> None:
    """Reported uses reach the store of a real service."""
    created = admin.create_key()
    client = KeybearerClient(service.address, token=admin.token, tls=False)
    with CachingVerifier(client) as verifier:
        assert verifier.wait_for_lease(TIMEOUT_S)
        for _ in range(10):
            assert verifier.verify(Presented(created.token)).valid
        assert verifier.stats().hits == 9

    def counted() -> bool:
        service.flush_uses()
        return admin.key(created.api_key.id).use_count == 10

    eventually(counted, "ten uses are stored")


# --- life and death -------------------------------------------------------------------------------


def watch_threads() -> set[threading.Thread]:
    """Return the threads of verifiers that follow a stream."""
    return {one for one in threading.enumerate() if one.name == "keybearer-watch"}


def test_closing_ends_threads_and_answers(server: ScriptedServer) -> None:
    """After `close`, every check raises, and closing again does nothing."""
    before = watch_threads()
    with leased(server) as (verifier, _):
        verifier.verify(Presented(TOKEN))
        (thread,) = watch_threads() - before
        verifier.close()
        verifier.close()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        with pytest.raises(VerifierUnavailableError):
            verifier.verify(Presented(TOKEN))


def test_a_verifier_that_is_forgotten_ends_its_thread(server: ScriptedServer) -> None:
    """The thread of a verifier ends when nothing refers to the verifier."""
    before = watch_threads()
    client = KeybearerClient(server.address, token="kbear1_own", tls=False)
    verifier = CachingVerifier(client)
    verifier.verify(Presented(TOKEN))
    (thread,) = watch_threads() - before
    del verifier
    gc.collect()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_a_child_made_by_fork_has_a_stream_of_its_own(service: Service, admin: Stubs) -> None:
    """The child of a fork has its own stream, and the parent's continues."""
    created = admin.create_key()
    with subprocess.Popen(
        [sys.executable, "-m", "watch.forking", service.address],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(f"{admin.token}\n{created.token}\n")
        program.stdin.flush()
        assert json.loads(program.stdout.readline()) == [True, 0, True, True, True]
        admin.revoke(created.api_key.id)
        assert [json.loads(line) for line in program.stdout] == [[True], [True]]


# --- figures --------------------------------------------------------------------------------------


def test_the_figures_tell_what_happened(server: ScriptedServer) -> None:
    """`stats` and `describe` report what happened."""
    with leased(server) as (verifier, stream):
        for _ in range(4):
            verifier.verify(Presented(TOKEN))
        stream.say(invalidation={"revision": 1, "everything": True})
        eventually(lambda: verifier.stats().invalidations == 1, "the change was heard")
        stats = verifier.stats()
        assert (stats.hits, stats.misses, stats.stored, stats.entries) == (3, 1, 1, 0)
        assert stats.lease_held
        assert stats.lease_age is not None
        assert 0 <= stats.lease_age.total_seconds() < 2
        assert stats.last_invalidation is not None
        described = json.loads(json.dumps(verifier.describe()))
        assert described["lease_held"] is True
        assert described["address"] == server.address


def test_nothing_shows_a_token(server: ScriptedServer) -> None:
    """No `repr`, log or description contains a token."""
    with leased(server) as (verifier, _):
        verifier.verify(Presented(TOKEN))
        shown = repr(verifier) + repr(verifier.describe()) + repr(verifier.stats())
        engine = verifier._engine  # noqa: SLF001 - nothing that it holds may be a token
        shown += repr(vars(engine)) + repr(vars(engine.verdicts))
        assert "kbear1" not in shown


# --- a server that cannot be believed -------------------------------------------------------------


def _pong_of(stream: ScriptedStream, head: int) -> None:
    sent_at = stream.next("ping").ping.sent_at
    stream.say(pong={"sent_at": sent_at, "head_revision": head})


def _duplicate(stream: ScriptedStream) -> None:
    stream.say(invalidation={"revision": 21, "key_id": "other"})
    stream.say(invalidation={"revision": 21, "key_id": "other"})


def _reorder(stream: ScriptedStream) -> None:
    stream.say(invalidation={"revision": 22, "key_id": "other"})
    stream.say(invalidation={"revision": 21, "key_id": "other"})


def _change_behind_its_pong(stream: ScriptedStream) -> None:
    _pong_of(stream, 30)
    stream.say(invalidation={"revision": 25, "key_id": "other"})


def _pong_behind_a_change(stream: ScriptedStream) -> None:
    stream.say(invalidation={"revision": 30, "key_id": "other"})
    _pong_of(stream, 25)


def _pong_of_nobodys_ping(stream: ScriptedStream) -> None:
    sent_at = stream.next("ping").ping.sent_at
    stream.say(pong={"sent_at": sent_at + 10**12, "head_revision": 30})


def _pong_twice(stream: ScriptedStream) -> None:
    sent_at = stream.next("ping").ping.sent_at
    for _ in range(2):
        stream.say(pong={"sent_at": sent_at, "head_revision": 20})


def _say_nothing(stream: ScriptedStream) -> None:
    stream.say()


@pytest.mark.parametrize(
    "misbehave",
    [
        _duplicate,
        _reorder,
        _change_behind_its_pong,
        _pong_behind_a_change,
        _pong_of_nobodys_ping,
        _pong_twice,
        _say_nothing,
    ],
)
def test_a_server_that_contradicts_itself_is_not_believed(
    server: ScriptedServer, misbehave: Callable[[ScriptedStream], None]
) -> None:
    """After contradictory messages the cache is empty, and the next stream starts from now."""
    server.revision = 20
    with caching(server) as verifier, futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(verifier.wait_for_lease, TIMEOUT_S)
        stream = server.stream()
        stream.hello(head=20)
        stream.answer_ping(20)
        assert waiting.result()
        verifier.verify(Presented(TOKEN))
        misbehave(stream)
        again = server.stream()
        assert again.next("subscribe").subscribe.epoch == ""
        questions = server.questions
        verifier.verify(Presented(TOKEN))
        assert server.questions == questions + 1


@pytest.mark.parametrize("how", ["reset", "hello of another epoch", "hello from before"])
def test_another_history_forgets_everything(server: ScriptedServer, how: str) -> None:
    """Another epoch or a reset empties the cache."""
    server.revision = 20
    with leased(server) as (verifier, stream):
        stream.say(invalidation={"revision": 20, "key_id": "other"})
        eventually(lambda: verifier.stats().invalidations == 1, "the change was heard")
        verifier.verify(Presented(TOKEN))
        server.revision = 3
        server.answer = server.unknown
        stream.end()
        again = server.stream()
        again.next("subscribe")
        if how == "reset":
            again.say(reset={"epoch": "epoch", "head_revision": 25})
        elif how == "hello from before":
            again.say(hello={"epoch": "epoch", "head_revision": 3})
        else:
            again.say(hello={"epoch": "other", "head_revision": 25})
        eventually(lambda: verifier.stats().resets == 2, "everything was forgotten")
        again.answer_ping(25)
        assert verifier.verify(Presented(TOKEN)).outcome is Outcome.NOT_FOUND
