"""Slow senders: calls whose headers came and whose message does not.

grpc gives every call a thread as soon as its headers are there, and the thread then waits for the
message. So 32 callers that send nothing but headers would stop a server of 32 threads, for as long
as they like and without any credential. Here, a thread that waits for a message is made up for by
another one, and a message that does not come is not waited for.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import CallAbandoned, FieldInvalid

log = structlog.get_logger(__name__)

M = TypeVar("M")

MESSAGE_WITHIN_S = 10.0
"""How long a message may take after its headers."""
SLOW_AFTER_S = 0.05
"""A message comes with its headers; one that takes this long has a slow sender."""
MAX_SLOW = 64
"""Calls that may wait for slow senders; beyond, those that have waited longest are cut off. Their
threads may have a connection to the store each, so they must not use up the open files."""
_LOOK_EVERY_S = 0.05
_TELL_EVERY_S = 60.0


class _Task:
    """A call to be worked on: what the base class keeps in its queue, and a Future in one.

    Nobody waits for a call or asks what became of it, and the locks of a true Future that nobody
    needs would cost each call 6 us.
    """

    __slots__ = ("_args", "_work")

    def __init__(self, work: Callable[..., object], args: tuple[object, ...]) -> None:
        self._work = work
        self._args = args

    @property
    def future(self) -> "_Task":
        """What the base class cancels when it shuts down."""
        return self

    def run(self, *_context: object) -> None:
        """Do the work. The thread outlives whatever it raises, as with a Future.

        From Python 3.14 on, a worker hands over the context of its thread, which is empty here.
        """
        try:
            self._work(*self._args)
        except BaseException:  # grpc has answered for what behaviours raise
            log.exception("task_failed")

    def cancel(self) -> None:
        """Leave the work undone: it is out of the queue already."""

    def add_done_callback(self, callback: Callable[..., object]) -> None:
        """Call nobody: grpc counts calls by it, for `maximum_concurrent_rpcs`, which is not set."""


class CallExecutor(ThreadPoolExecutor):
    """Threads for calls, with stand-ins once all of them wait for slow senders."""

    def __init__(self, threads: int, name: str) -> None:
        """Take how many calls may be worked on at a time."""
        super().__init__(threads, thread_name_prefix=name)
        self._threads_at_work = threads

    def submit(  # type: ignore[override]  # what is answered has of a Future what grpc asks for
        self, work: Callable[..., object], /, *args: object
    ) -> _Task:
        """Have a call worked on.

        Raises:
            RuntimeError: The pool was shut down.
        """
        task = _Task(work, args)
        with self._shutdown_lock:
            if self._shutdown:
                raise RuntimeError("the pool was shut down")
            self._work_queue.put(task)  # type: ignore[arg-type]
            self._adjust_thread_count()
        return task

    def make_up_for(self, waiting: int) -> None:
        """Have threads for others too while so many of them wait for slow senders."""
        if waiting >= self._max_workers:
            # Twice as many, so that hundreds who come at once are made up for in a few steps. The
            # base class starts threads only when calls come, and some are in its queue already.
            self._max_workers = self._threads_at_work + 2 * waiting
            for _ in range(min(2 * waiting, self._work_queue.qsize())):
                self._adjust_thread_count()
        elif not waiting:
            self._max_workers = self._threads_at_work


class Cancellable(Protocol):
    """A call that can be ended; grpc's ServicerContext is one."""

    def cancel(self) -> object:
        """End the call; whoever waits for its message is told."""
        ...


class MessageWatchdog:
    """Watches the calls that wait for their message."""

    def __init__(self, clock: Clock) -> None:
        """Take the clock. `start` begins the watching."""
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
