"""Slow senders: calls whose headers came and whose message does not.

grpc gives every call a thread as soon as its headers are there, and the thread then waits for the
message. So 32 callers that send nothing but headers would stop a server of 32 threads, for as long
as they like and without any credential. Here, a thread that waits for a message is made up for by
another one, and a message that does not come is not waited for.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import CallAbandoned, FieldInvalid
from keybearer_service.net.bounds import GRPC, CallBounds

log = structlog.get_logger(__name__)

M = TypeVar("M")

MESSAGE_WITHIN_S = GRPC.body_s
"""How long a message may take after its headers."""
SLOW_AFTER_S = 0.05
"""A message comes with its headers; one that takes this long has a slow sender."""
MAX_SLOW = 64
"""Calls that may wait for slow senders; beyond, those that have waited longest are cut off. Their
threads may have a connection to the store each, so they must not use up the open files."""
_LOOK_EVERY_S = 0.05
_TELL_EVERY_S = 60.0


class Submitted:
    """What `submit` returns: as much of a Future as grpc asks for.

    Nobody waits for a call or asks what became of it, and the locks of a true Future that nobody
    needs would cost each call 6 us.
    """

    def add_done_callback(self, callback: Callable[..., object]) -> None:
        """Ignore it: grpc counts calls by it, for `maximum_concurrent_rpcs`, which is not set."""


_SUBMITTED = Submitted()
_Work = tuple[Callable[..., object], tuple[object, ...]]


class Ping:
    """An empty task in an executor."""

    def __init__(self, executor: "CallExecutor") -> None:
        """Submit it."""
        self._executor = executor
        self._finished_before = executor.finished
        self._done = threading.Event()
        executor.submit(self._done.set)

    def answered_within(self, seconds: float) -> bool:
        """Wait; return whether this task or another one ended meanwhile."""
        return self._done.wait(seconds) or self._executor.finished != self._finished_before


class CallExecutor(ThreadPoolExecutor):
    """A fixed number of threads for calls, with stand-ins once all of them wait for slow senders.

    grpc takes an executor for a method only when it is an instance of `ThreadPoolExecutor`; nothing
    of that class is used but its name.
    """

    def __init__(self, bounds: CallBounds, name: str) -> None:
        """Start the threads.

        Args:
            bounds: How many calls may be worked on at a time, and wait.
            name: What the names of the threads begin with.
        """
        self.name = name
        self._max_queued = bounds.queued
        self._threads_at_work = bounds.threads
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._wanted = bounds.threads
        self._is_shut_down = False
        self.finished = 0
        """Counts the tasks that ended; a count may be lost, but not every one of several."""
        self._hire()

    @property
    def queued(self) -> int:
        """How many calls wait for a thread."""
        return self._queue.qsize()

    @property
    def has_room(self) -> bool:
        """Whether one more call may wait."""
        return self._queue.qsize() < self._max_queued

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def submit(  # type: ignore[override]  # what is returned has of a Future what grpc asks for
        self, work: Callable[..., object], /, *args: object
    ) -> Submitted:
        """Queue a call, whether there is room or not: `MethodHandlers` looks before.

        Raises:
            RuntimeError: The executor was shut down.
        """
        if self._is_shut_down:
            raise RuntimeError("the executor was shut down")
        self._queue.put((work, args))
        return _SUBMITTED

    def ping(self) -> "Ping":
        """Submit an empty task, to see whether the executor ends tasks at all."""
        return Ping(self)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's signature
        """Stop taking calls and end the threads.

        Args:
            wait: Return only once every thread has ended.
            cancel_futures: Drop the calls that still wait.
        """
        with self._lock:
            self._is_shut_down = True
            threads = list(self._threads)
        if cancel_futures:
            with suppress(Empty):
                while True:
                    self._queue.get_nowait()
        for _ in threads:
            self._queue.put(None)
        if wait:
            for thread in threads:
                thread.join()

    def make_up_for(self, waiting: int) -> None:
        """Have threads for others too while `waiting` of them wait for slow senders.

        Twice as many stand in, so that hundreds who come at once are made up for in a few steps.
        Stand-ins leave after their next call once nobody is slow any more.
        """
        with self._lock:
            if waiting >= self._wanted:
                self._wanted = self._threads_at_work + 2 * waiting
                self._hire()
            elif not waiting:
                self._wanted = self._threads_at_work

    def _hire(self) -> None:
        while len(self._threads) < self._wanted and not self._is_shut_down:
            thread = threading.Thread(
                target=self._run, name=f"{self.name}-{len(self._threads)}", daemon=True
            )
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, args = item
            try:
                work(*args)
            except BaseException:  # the thread goes on; grpc has answered for what behaviours raise
                log.exception("task_failed")
            self.finished += 1
            # Nothing of a call stays here while the thread waits for the next one.
            del item, work, args
            if len(self._threads) > self._wanted and self._leaves():
                return
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _leaves(self) -> bool:
        with self._lock:
            is_surplus = len(self._threads) > self._wanted
            if is_surplus:
                self._threads.discard(threading.current_thread())
            return is_surplus


class HereAndNow(ThreadPoolExecutor):
    """Runs what is submitted at once, on the thread that submits it: grpc's serving thread.

    Only for what waits for nothing. Like CallExecutor an executor by its name alone.
    """

    def __init__(self) -> None:
        """Start no thread."""

    def submit(  # type: ignore[override]  # as in CallExecutor
        self, work: Callable[..., object], /, *args: object
    ) -> Submitted:
        """Run a call."""
        work(*args)
        return _SUBMITTED


class Cancellable(Protocol):
    """A call that can be ended; grpc's ServicerContext is one."""

    def cancel(self) -> object:
        """End the call; a wait for its message raises."""
        ...


class MessageWatchdog:
    """Watches the calls that wait for their message."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waits: dict[int, tuple[float, Cancellable, CallExecutor]] = {}
        """Since when which call waits, on a thread of which pool. No class: it is made a call."""
        self._pools: set[CallExecutor] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-senders", daemon=True)
        self._cut_off = 0
        self._told_at = clock.monotonic() - _TELL_EVERY_S

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watching."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def waiting(self) -> int:
        """How many calls wait for their message."""
        return len(self._waits)

    def first_message(self, messages: Iterator[M], call: Cancellable, pool: CallExecutor) -> M:
        """Wait for the message of a call that has one, on a thread of `pool`.

        Raises:
            FieldInvalid: The caller ended the call without one.
            CallAbandoned: The caller has gone, or was cut off.
        """
        wait = self._clock.monotonic(), call, pool
        self._waits[id(wait)] = wait  # one step of the interpreter each: no lock is needed
        try:
            return next(messages)
        except StopIteration:
            raise FieldInvalid("(message)", "required") from None
        except Exception:  # noqa: BLE001 - the transport's own, which it alone knows
            raise CallAbandoned from None
        finally:
            del self._waits[id(wait)]

    def _run(self) -> None:
        while not self._ending.wait(_LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        now = self._clock.monotonic()
        slow = [wait for wait in list(self._waits.values()) if now - wait[0] > SLOW_AFTER_S]
        self._pools |= {pool for _, _, pool in slow}
        for pool in self._pools:
            pool.make_up_for(sum(one is pool for _, _, one in slow))
        too_many = len(slow) - MAX_SLOW  # a dict keeps its order: the oldest first
        for index, (since, call, _) in enumerate(slow):
            if now - since > MESSAGE_WITHIN_S or index < too_many:
                call.cancel()
                self._cut_off += 1
        if self._cut_off and now - self._told_at >= _TELL_EVERY_S:
            log.warning("slow_calls_cut_off", calls=self._cut_off)
            self._cut_off, self._told_at = 0, now
