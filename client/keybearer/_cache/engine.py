"""The cache, the connection, the stream and the thread of a caching verifier."""

import asyncio
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc

from keybearer._cache.connection import Connection
from keybearer._cache.stream import Stream
from keybearer._cache.validation import Validation
from keybearer._cache.verdict_cache import OutOfOrderError, VerdictCache
from keybearer._client.channel import Endpoint
from keybearer._client.outages import PROBE_TIMEOUT, PROBE_TOKEN, OutageGate, probe_in_thread
from keybearer._client.remote import request_about
from keybearer.errors import from_rpc_error
from keybearer.models import Verdict

log = logging.getLogger(__name__)

MAX_NEGATIVE: Final = 1_000
"""Negative verdicts that are kept."""
MAX_PAUSE: Final = 2.0
"""Seconds between two attempts to open the stream, at most."""
_CLOSE_TIMEOUT: Final = 1.0
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What a caching verifier did so far, for metrics. Many threads make the counts a bit low."""

    hits: int
    """Checks that reused a verdict."""
    misses: int
    """Checks that found no verdict to reuse, so that the server was asked."""
    stored: int
    """Verdicts that were kept."""
    rejected_stale: int
    """Verdicts that were not kept, because something had changed since they were read."""
    invalidations: int
    """Changes that were announced."""
    resets: int
    """How often the cache was emptied."""
    entries: int
    """Verdicts that are kept now."""
    lease_held: bool
    """Whether kept verdicts may be reused now."""
    lease_age: timedelta | None
    """The age of the ping that was answered last; verdicts are reused up to 2 s after it. None when
    no ping was answered yet."""
    last_invalidation: datetime | None
    """When a change was last announced; None when none was yet."""


class Engine:
    """The cache, the connection and the stream of one verifier, for threads and for asyncio.

    Args:
        endpoint: Where keybearer is.
        account_id: The account restriction of all validations.
        timeout: Seconds that a validation may take.
        max_entries: How many positive verdicts are kept.
        authorize: Returns the metadata that presents the verifier's own credential; may block.
        clock: Nanoseconds; see `verdict_cache`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        account_id: str,
        timeout: float,
        max_entries: int,
        authorize: Callable[[], Metadata],
        clock: Callable[[], int],
    ) -> None:
        self.verdicts = VerdictCache(account_id, max_entries=max_entries, max_negative=MAX_NEGATIVE)
        self.clock = clock
        self.timeout = timeout
        self._endpoint = endpoint
        self.gate = OutageGate(endpoint.address)
        self._account_id = account_id
        self._authorize = authorize
        self._start_state()
        _ENGINES.add(self)

    def __repr__(self) -> str:
        return f"{self._endpoint.address!r}, account_id={self._account_id!r}"

    def _start_state(self) -> None:
        self._lock = threading.Lock()
        self._connection = Connection(self._endpoint)
        self._stop = threading.Event()
        self._leased = threading.Event()
        self._thread: threading.Thread | None = None
        self._stream: Stream | None = None
        self._last_problem = ""

    def after_fork(self) -> None:
        """Return to the initial state: threads, connection and locks belong to the parent."""
        # Keep references to the parent's objects: finalising them would wait for threads that do
        # not exist in the child.
        _OF_THE_PARENT.append((self._connection, self._stream, self._thread))
        was_closed = self._stop.is_set()
        self.verdicts.forget_all()
        self.gate.start_over()
        self._start_state()
        if was_closed:
            self.close()

    # --- validations ------------------------------------------------------------------------------

    def ask(self, tokens: Sequence[str], timeout: float) -> list[Verdict]:
        """Validate tokens at the server, keep what may be kept, and return the verdicts.

        Args:
            tokens: Up to 100, each once.
            timeout: Seconds that the call may take.

        Raises:
            KeybearerError: There is no answer.
        """
        validation = self._begin(tokens, timeout)
        metadata = self._authorize()
        while True:
            try:
                response = validation.method()(**validation.arguments(), metadata=metadata)
            except grpc.RpcError as error:
                validation.failed(error)
            else:
                return validation.read(response)

    async def ask_async(
        self, tokens: Sequence[str], seconds: float, authorize: Callable[[], Awaitable[Metadata]]
    ) -> list[Verdict]:
        """Do the same as `ask` for asyncio, with a credential that may belong to the loop."""
        validation = self._begin(tokens, seconds)
        metadata = await authorize()
        while True:
            sent = validation.method().future(**validation.arguments(), metadata=metadata)
            call = await _ended(sent)
            if call.code() is grpc.StatusCode.OK:
                return validation.read(call.result())
            validation.failed(call)

    def _begin(self, tokens: Sequence[str], timeout: float) -> Validation:
        self._start()
        return Validation(
            self._connection,
            self.verdicts,
            tokens=tokens,
            account_id=self._account_id,
            timeout=timeout,
            clock=self.clock,
        )

    def begin_probing(self) -> None:
        """Probe until an outage is over, unless the verifier is closed."""
        if not self._stop.is_set():
            probe_in_thread(self.gate, self._probe)

    def _probe(self) -> None:
        """Validate no caller's token.

        Raises:
            Exception: There is no answer.
        """
        self._connection.stubs().validate_token(
            request_about([PROBE_TOKEN], self._account_id).message,
            timeout=min(PROBE_TIMEOUT, self.timeout),
            metadata=self._authorize(),
            wait_for_ready=True,
        )

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
            # The first pause is far shorter than the lease, so a stream that ends in the regular
            # way causes no validation.
            self._stop.wait(random.uniform(0.5, 1) * min(MAX_PAUSE, 0.05 * 2.0 ** min(failures, 9)))

    def _stream_once(self) -> bool:
        """Follow one stream to its end, and return whether it prolonged the lease. Never raises."""
        stream = self._stream = Stream(self.verdicts, self.clock)
        try:
            stubs = self._connection.stubs()
            stream.connection = stubs.number
            stream.call = stubs.watch_invalidations(
                stream, metadata=self._authorize(), wait_for_ready=True
            )
            if self._stop.is_set():
                stream.call.cancel()
            for response in stream.call:
                stream.take(response)
                if stream.answered:
                    self._last_problem = ""
                    self._leased.set()
            self._log_end("the server ended it")
        except OutOfOrderError as error:
            self._log_end(str(error))
            self.verdicts.start_over()
        except grpc.RpcError as error:
            self._log_end(str(from_rpc_error(error)))
        except Exception:
            log.exception("the stream of changes failed")
        finally:
            stream.close()
            if stream.call is not None:
                stream.call.cancel()
        if stream.is_dead:
            self._connection.renew()
        return stream.answered > 0

    def _log_end(self, problem: str) -> None:
        """Log why the stream ended, unless the last one ended for the same reason."""
        if problem and problem != self._last_problem and not self._stop.is_set():
            log.info("the stream of changes from %s ended: %s", self._endpoint.address, problem)
        self._last_problem = problem

    def wait_for_lease(self, timeout: float) -> bool:
        """Open the stream, wait until verdicts may be reused, and return whether they may."""
        self._start()
        until = time.monotonic() + timeout
        while not self.verdicts.holds(self.clock()):
            self._leased.clear()
            if self.verdicts.holds(self.clock()):
                break
            if not self._leased.wait(max(0.0, until - time.monotonic())):
                return False
        return True

    def close(self) -> None:
        """Report the last usage, end the stream and close the connection."""
        self._stop.set()
        stream, thread = self._stream, self._thread
        if stream is not None and stream.call is not None:
            stream.finish()
            if stream.answered:
                stream.finished.wait(_CLOSE_TIMEOUT)
            stream.call.cancel()
        self._connection.close()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_TIMEOUT)
        # Nothing vouches for the cache any more.
        self.verdicts.start_over()

    # --- state ------------------------------------------------------------------------------------

    def stats(self) -> CacheStats:
        """Return the counts and the state of the lease."""
        now = self.clock()
        counts = self.verdicts.counts
        age = self.verdicts.lease_age(now)
        changed_at = self.verdicts.last_invalidation_at
        return CacheStats(
            hits=counts.hits,
            misses=counts.misses,
            stored=counts.stored,
            rejected_stale=counts.rejected_stale,
            invalidations=counts.invalidations,
            resets=counts.resets,
            entries=len(self.verdicts),
            lease_held=self.verdicts.holds(now),
            lease_age=None if age is None else timedelta(microseconds=age // 1000),
            last_invalidation=None
            if changed_at is None
            else datetime.now(UTC) - timedelta(microseconds=(now - changed_at) // 1000),
        )

    def describe(self) -> dict[str, Any]:
        """Return the state in plain values."""
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
            "rejected_stale": stats.rejected_stale,
            "invalidations": stats.invalidations,
            "resets": stats.resets,
        }


async def _ended(call: Any) -> Any:
    """Wait for the end of a call of a `grpc.Channel` and return it; cancelling cancels the call."""
    ended: Future[Any] = Future()

    def end(call: Any) -> None:
        # A thread of grpc runs this; the future may be cancelled meanwhile.
        if ended.set_running_or_notify_cancel():
            ended.set_result(call)

    call.add_done_callback(end)
    try:
        return await asyncio.wrap_future(ended)
    except asyncio.CancelledError:
        call.cancel()
        raise


_ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_OF_THE_PARENT: list[Any] = []


def _after_fork() -> None:
    for engine in list(_ENGINES):
        engine.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
