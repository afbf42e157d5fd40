"""Checks that cost microseconds and stay honest: the verifiers that guards use by default.

    auth = AuthInterceptor(CachingVerifier(KeybearerClient("keybearer:443", token=token)))

A verifier keeps answers and watches a stream of changes. An answer is used again only while the
server has vouched, within the last two seconds, that nothing was missed; a change that takes
authority away is heard within milliseconds. Without the stream every check asks the server, and
without the server there is no answer, which is never one. There is nothing to set that would
change this. `answers` has the rules and `stream` the connection; here are the threads and the two
flavours.
"""

import asyncio
import functools
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

import grpc

from keybearer._cache.stream import Link, Stream
from keybearer._cache.verdict_cache import SECOND, Answers, OutOfOrderError, Question
from keybearer._client import requests
from keybearer._client.channel import (
    AsyncTokenSource,
    Endpoint,
    authorization_of,
    current_token,
    current_token_async,
)
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.verifier import DEFAULT_TIMEOUT, Trouble, may_be_token, of_account
from keybearer.errors import VerifierUnavailableError, from_rpc_error
from keybearer.models import Outcome, Verdict

log = logging.getLogger(__name__)

DEFAULT_MAX_ENTRIES: Final = 10_000
"""Answers kept, at about a kilobyte each."""
MAX_NEGATIVE: Final = 1_000
MAX_PAUSE: Final = 2.0
"""Seconds between two tries to open the stream, at most."""
SHARE_WITHIN: Final = 1 * SECOND
"""A question sent longer ago is not shared any more: its answer may be that old."""
SECOND_TRY: Final = 0.5
"""Seconds that a broken connection has to come back within one check."""
_CLOSE_TIMEOUT = 1.0
_CREDENTIAL_TIMEOUT = 5.0
_BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})
_Metadata = tuple[tuple[str, str], ...]

if hasattr(time, "CLOCK_BOOTTIME"):
    now_ns: Callable[[], int] = functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    """Nanoseconds on a clock that goes on while the machine sleeps, where there is one."""
else:
    now_ns = time.monotonic_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a caching verifier did so far, for metrics. Counts are a little low under threads."""

    hits: int
    """Checks answered from the cache."""
    misses: int
    """Checks that asked the server."""
    stored: int
    guarded: int
    """Answers not kept because something had changed since they were read."""
    invalidations: int
    """Changes that were told."""
    resets: int
    """How often everything kept was forgotten."""
    entries: int
    lease_held: bool
    """Whether kept answers may be used right now."""
    lease_age: timedelta | None
    """Since the ping that was last answered; kept answers are used up to 2 s. None: none yet."""
    last_invalidation: datetime | None
    """When a change was last told."""


@dataclass(slots=True)
class _Flight:
    """A question that was sent, and who waits for its answer."""

    token: str = field(repr=False)
    question: Question
    authorization: _Metadata = field(repr=False)
    verdict: Future[Verdict]
    is_second: bool = False


class _Engine:
    """Answers, connection and stream of one verifier; the same for both flavours.

    Args:
        endpoint: Where keybearer is.
        account_id: Of all the questions.
        timeout: Seconds a question may take.
        max_entries: Answers kept.
        authorize: Answers the metadata that presents our own credential; may block.
        clock: Nanoseconds; see `answers`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        account_id: str,
        timeout: float,
        max_entries: int,
        authorize: Callable[[], _Metadata],
        clock: Callable[[], int],
    ) -> None:
        self.answers = Answers(account_id, max_entries=max_entries, max_negative=MAX_NEGATIVE)
        self.clock = clock
        self.timeout = timeout
        self._endpoint = endpoint
        self._account_id = account_id
        self._authorize = authorize
        self._begin()
        _ENGINES.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._link = Link(self._endpoint)
        self._flights: dict[bytes, _Flight] = {}
        self._trouble = Trouble()
        self._stop = threading.Event()
        self._leased = threading.Event()
        self._thread: threading.Thread | None = None
        self._stream: Stream | None = None
        self._last_problem = ""

    def after_fork(self) -> None:
        """Begin anew in a child: its parent's threads, connection and locks are not its own."""
        # Kept, so that they are not finalised: that would wait for threads that do not exist here.
        _OF_THE_PARENT.append((self._link, self._flights, self._stream, self._thread))
        was_closed = self._stop.is_set()
        self.answers.forget_all()
        self._begin()
        if was_closed:
            self.close()

    # --- questions --------------------------------------------------------------------------------

    def ask(
        self, token: str, began: int, authorization: Callable[[], _Metadata]
    ) -> Future[Verdict]:
        """Ask the server, or wait for the answer to the same question of somebody else.

        The future's exception, if it has one, is a VerifierUnavailableError.
        """
        if not may_be_token(token):
            known: Future[Verdict] = Future()
            known.set_result(Verdict(outcome=Outcome.NOT_FOUND))
            return known
        with self._lock:
            mac = self.answers.mac(token)
            flight = self._flights.get(mac)
            if flight is not None and began - flight.question.asked_at <= SHARE_WITHIN:
                return flight.verdict
            question = self.answers.begin(token, self.clock())
            flight = self._flights[mac] = _Flight(token, question, (), Future())
        try:
            self._start()
            flight.authorization = authorization()
            self._send(flight)
        except Exception as error:  # noqa: BLE001 - whatever happened, there is no answer
            self._settle(flight, None, error)
        return flight.verdict

    def _send(self, flight: _Flight) -> None:
        validate, _ = self._link.stubs()
        spent = (self.clock() - flight.question.asked_at) / SECOND
        remaining = max(0.0, self.timeout - spent)
        call = validate.future(
            requests.validate_token(flight.token, account_id=self._account_id).request,
            timeout=min(SECOND_TRY, remaining) if flight.is_second else remaining,
            metadata=flight.authorization,
            # A connection that broke under the first try may be there again in a moment.
            wait_for_ready=flight.is_second,
        )
        call.add_done_callback(functools.partial(self._answered, flight))

    def _answered(self, flight: _Flight, call: Any) -> None:
        """Take an answer, on a thread of grpc's."""
        try:
            if call.code() in _BROKEN and not flight.is_second and not self._stop.is_set():
                flight.is_second = True
                self._send(flight)
                return
            response = call.result()
            plan = requests.validate_token(flight.token, account_id=self._account_id)
            verdict = of_account(plan.read(response), self._account_id)
            self.answers.store(flight.question, verdict)
            self._settle(flight, verdict, None)
        except grpc.RpcError as error:
            self._settle(flight, None, from_rpc_error(error))
        except Exception as error:  # noqa: BLE001 - whatever happened, there is no answer
            self._settle(flight, None, error)

    def _settle(self, flight: _Flight, verdict: Verdict | None, error: Exception | None) -> None:
        with self._lock:
            if self._flights.get(flight.question.mac) is flight:
                del self._flights[flight.question.mac]
        if verdict is not None:
            self._trouble.ends()
            flight.verdict.set_result(verdict)
            return
        unavailable = self._trouble.begins(error or TimeoutError())
        unavailable.__cause__ = error
        flight.verdict.set_exception(unavailable)

    # --- the stream -------------------------------------------------------------------------------

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(
                    target=self._watch, name="keybearer-watch", daemon=True
                )
                self._thread.start()

    def _watch(self) -> None:
        failures = 0
        while not self._stop.is_set():
            failures = 0 if self._stream_once() else failures + 1
            # The first pause is far shorter than the lease, so that a stream that ends in the
            # regular way costs nobody a question.
            self._stop.wait(random.uniform(0.5, 1) * min(MAX_PAUSE, 0.05 * 2.0 ** min(failures, 9)))

    def _stream_once(self) -> bool:
        """Follow one stream to its end; tell whether it was of use. Never raises."""
        stream = self._stream = Stream(self.answers, self.clock)
        try:
            _, watch = self._link.stubs()
            stream.call = watch(stream, metadata=self._authorize(), wait_for_ready=True)
            if self._stop.is_set():
                stream.call.cancel()
            for response in stream.call:
                stream.take(response)
                if stream.answered:
                    self._last_problem = ""
                    self._leased.set()
            self._problem("the server ended it")
        except OutOfOrderError as error:
            self._problem(str(error))
            self.answers.start_over()
        except grpc.RpcError as error:
            self._problem(str(from_rpc_error(error)))
        except Exception:
            log.exception("the stream of changes failed")
        finally:
            stream.close()
            if stream.call is not None:
                stream.call.cancel()
        if stream.is_dead:
            self._link.renew()
        return stream.answered > 0

    def _problem(self, problem: str) -> None:
        """Say why there is no stream, once for each reason."""
        if problem and problem != self._last_problem and not self._stop.is_set():
            log.info("the stream of changes ended: %s", problem)
        self._last_problem = problem

    def wait_for_lease(self, timeout: float) -> bool:
        """Open the stream, and wait until answers may be kept; tell whether they may."""
        self._start()
        until = time.monotonic() + timeout
        while not self.answers.holds(self.clock()):
            self._leased.clear()
            if self.answers.holds(self.clock()):
                break
            if not self._leased.wait(max(0.0, until - time.monotonic())):
                return False
        return True

    def close(self) -> None:
        """End the stream, reporting what is to be reported, and close the connection."""
        self._stop.set()
        stream, thread = self._stream, self._thread
        if stream is not None and stream.call is not None:
            stream.finish()
            if stream.answered:
                stream.finished.wait(_CLOSE_TIMEOUT)
            stream.call.cancel()
        self._link.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_TIMEOUT)
        # Nothing vouches for what is kept any more.
        self.answers.start_over()

    # --- figures ----------------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        now = self.clock()
        counts = self.answers.counts
        age = self.answers.lease_age(now)
        changed_at = self.answers.last_invalidation_at
        return CacheStats(
            hits=counts.hits,
            misses=counts.misses,
            stored=counts.stored,
            guarded=counts.guarded,
            invalidations=counts.invalidations,
            resets=counts.resets,
            entries=len(self.answers),
            lease_held=self.answers.holds(now),
            lease_age=None if age is None else timedelta(microseconds=age // 1000),
            last_invalidation=None
            if changed_at is None
            else datetime.now(UTC) - timedelta(microseconds=(now - changed_at) // 1000),
        )

    def describe(self) -> dict[str, Any]:
        stats = self.stats()
        return {
            "address": self._endpoint.address,
            "account_id": self._account_id,
            "lease_held": stats.lease_held,
            "lease_age_s": None if stats.lease_age is None else stats.lease_age.total_seconds(),
            "last_invalidation": None
            if stats.last_invalidation is None
            else stats.last_invalidation.isoformat(timespec="milliseconds"),
            "stream": self._last_problem or ("open" if stats.lease_held else "not open"),
            "entries": stats.entries,
            "hits": stats.hits,
            "misses": stats.misses,
            "stored": stats.stored,
            "guarded": stats.guarded,
            "invalidations": stats.invalidations,
            "resets": stats.resets,
        }


_ENGINES: "weakref.WeakSet[_Engine]" = weakref.WeakSet()
_OF_THE_PARENT: list[Any] = []


def _after_fork() -> None:
    for engine in list(_ENGINES):
        engine.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class CachingVerifier:
    """Asks keybearer about a token once a minute, and hears at once when the answer changes.

    Safe to share between threads, and usable in processes made by fork. The connection is opened
    by the first check. Use it as a context manager, or `close` it.

    Args:
        client: With the credential of a VALIDATOR. Tells where keybearer is; the verifier opens a
            connection of its own and does not close the client.
        account_id: Empty: only keys of the client's own account are known. `-`: those of any
            account, and an id: those of that one; both for clients of the operator account.
        timeout: Seconds a check may take that has to ask.
        max_entries: Answers kept, at about a kilobyte each.
        clock: For tests: nanoseconds of a clock that never steps.
    """

    def __init__(
        self,
        client: KeybearerClient,
        *,
        account_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        source = client.token_source

        def authorize() -> _Metadata:
            return () if source is None else (authorization_of(current_token(source)),)

        self._authorize = authorize
        self._engine = _Engine(
            client.endpoint,
            account_id=account_id,
            timeout=timeout,
            max_entries=max_entries,
            authorize=authorize,
            clock=clock,
        )
        self._find = self._engine.answers.find
        self._clock = clock
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def verify(self, token: str) -> Verdict:
        """Answer the verdict about a token.

        Raises:
            VerifierUnavailableError: keybearer could not be asked, and no kept answer may be used.
        """
        began = self._clock()
        try:
            verdict = self._find(token, began)
        except UnicodeEncodeError:
            return Verdict(outcome=Outcome.NOT_FOUND)
        if verdict is not None:
            return verdict
        return self._engine.ask(token, began, self._authorize).result()

    def wait_for_lease(self, timeout: float) -> bool:
        """Wait, up to so many seconds, until answers may be kept; tell whether they may.

        For a start-up that wants the first requests to be fast. Checks do not need it.
        """
        return self._engine.wait_for_lease(timeout)

    def stats(self) -> CacheStats:
        """Answer the figures, for metrics."""
        return self._engine.stats()

    def describe(self) -> dict[str, Any]:
        """Answer the state in plain values, for a health page. It names no token."""
        return self._engine.describe()

    def close(self) -> None:
        """End the stream and close the connection. Every later check is denied."""
        self._finalizer()


class AsyncCachingVerifier:
    """As CachingVerifier, for asyncio: an answer that is kept is answered without waiting.

    The stream has a thread of its own, so that an event loop that is busy still forgets in time.
    For use within one event loop. The client's token source may be a coroutine function.
    """

    def __init__(
        self,
        client: AsyncKeybearerClient,
        *,
        account_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        self._credential = _LoopCredential(client.token_source)
        self._engine = _Engine(
            client.endpoint,
            account_id=account_id,
            timeout=timeout,
            max_entries=max_entries,
            authorize=self._credential.authorize,
            clock=clock,
        )
        self._find = self._engine.answers.find
        self._clock = clock
        self._finalizer = weakref.finalize(self, self._engine.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def verify(self, token: str) -> Verdict:
        """Answer the verdict about a token.

        Raises:
            VerifierUnavailableError: As `CachingVerifier.verify`.
        """
        began = self._clock()
        try:
            verdict = self._find(token, began)
        except UnicodeEncodeError:
            return Verdict(outcome=Outcome.NOT_FOUND)
        if verdict is not None:
            return verdict
        try:
            authorization = await self._credential.get()
        except Exception as error:
            raise VerifierUnavailableError("our own credential cannot be had") from error
        asked = self._engine.ask(token, began, lambda: authorization)
        # Shielded, so that a caller that gives up does not take the answer from the others.
        return await asyncio.shield(asyncio.wrap_future(asked))

    async def wait_for_lease(self, timeout: float) -> bool:  # noqa: ASYNC109 - as the other flavour
        """Wait, up to so many seconds, until answers may be kept; tell whether they may."""
        await self._credential.get()
        return await asyncio.to_thread(self._engine.wait_for_lease, timeout)

    def stats(self) -> CacheStats:
        """Answer the figures, for metrics."""
        return self._engine.stats()

    def describe(self) -> dict[str, Any]:
        """Answer the state in plain values, for a health page. It names no token."""
        return self._engine.describe()

    async def close(self) -> None:
        """End the stream and close the connection. Every later check is denied."""
        await asyncio.to_thread(self._finalizer)


class _LoopCredential:
    """A credential whose source may belong to an event loop, for that loop and for threads."""

    def __init__(self, source: AsyncTokenSource | None) -> None:
        self._source = source
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self) -> _Metadata:
        """Answer the metadata that presents it."""
        self._loop = asyncio.get_running_loop()
        if self._source is None:
            return ()
        return (authorization_of(await current_token_async(self._source)),)

    def authorize(self) -> _Metadata:
        """Answer the same on a thread.

        Raises:
            VerifierUnavailableError: The loop that could answer it does not run.
        """
        if self._source is None or isinstance(self._source, str):
            return () if self._source is None else (authorization_of(self._source),)
        if self._loop is None or not self._loop.is_running():
            raise VerifierUnavailableError("our own credential cannot be had: the loop stands")
        asked = asyncio.run_coroutine_threadsafe(self.get(), self._loop)
        return asked.result(_CREDENTIAL_TIMEOUT)
