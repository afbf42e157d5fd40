"""Checks that wait at the same time go to keybearer in one call.

A check that finds no call under way is sent at once. The others wait for that call to end and then
go together, so a busy service makes few large calls, and an idle one waits for nothing. A verdict
always comes from a call that began after its check did.
"""

import asyncio
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import grpc

from keybearer._client.outages import OutageGate
from keybearer._wire.limits import MAX_BATCH
from keybearer._wire.token_format import may_be_token
from keybearer.errors import DeadlineExceededError, KeybearerError, VerifierUnavailableError
from keybearer.models import Outcome, Verdict

MAX_CALLS: Final = 4
"""Calls that are under way at the same time."""
PATIENCE: Final = 0.02
"""Seconds. A check that arrives when the last call is older does not wait for its end."""

_OF_ALL: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
"""The codes of a call that would fail for each of its tokens alone as well."""


class Check(ABC):
    """A check that waits for its verdict."""

    __slots__ = ("_error", "_verdict", "deadline", "has_left", "is_alone", "token")

    def __init__(self, token: str, deadline: float) -> None:
        self.token = token
        self.deadline = deadline
        self.is_alone = False
        """Whether it is sent without others, since a call for several tokens did not answer it."""
        self.has_left = False
        """Whether nobody waits for it any more."""
        self._verdict: Verdict | None = None
        self._error: Exception | None = None

    @property
    def is_settled(self) -> bool:
        """Whether there is a result."""
        return self._verdict is not None or self._error is not None

    def settle(self, result: Verdict | Exception) -> None:
        """Store the result and wake the thread or task that waits for it."""
        if isinstance(result, Exception):
            self._error = result
        else:
            self._verdict = result
        self.wake()

    @abstractmethod
    def wake(self) -> None:
        """Wake the thread or task that waits for this check."""

    def result(self) -> Verdict:
        """Return the verdict.

        Raises:
            Exception: There is none.
        """
        if self._verdict is None:
            raise self._error or _out_of_time()
        return self._verdict


CheckT = TypeVar("CheckT", bound=Check)


class Call(NamedTuple, Generic[CheckT]):
    """Checks that go together."""

    checks: list[CheckT]
    tokens: list[str]
    """Their tokens, each once."""

    def __repr__(self) -> str:
        """Leave the tokens out."""
        return f"Call({len(self.checks)} checks)"

    @property
    def deadline(self) -> float:
        """The last moment at which one of the checks still waits."""
        return max(check.deadline for check in self.checks)


class Queue(Generic[CheckT]):
    """Decides which checks go together and when. It has no lock and does no I/O.

    Times are seconds of a monotonic clock. The caller of a method makes the calls that it returns,
    and reports the end of each one by `end`.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[CheckT, None] = OrderedDict()
        self._under_way = 0
        self._last_began = 0.0

    def __len__(self) -> int:
        """Return how many checks wait to be sent."""
        return len(self._waiting)

    def begin_alone(self, now: float) -> bool:
        """Begin a call for one check that has not arrived, unless a call is under way already.

        This saves most checks of an idle service the cost of waiting objects.
        """
        if self._under_way:
            return False
        self._under_way = 1
        self._last_began = now
        return True

    def arrive(self, check: CheckT, now: float) -> list[Call[CheckT]]:
        """Add a check, and return the calls that begin now."""
        self._waiting[check] = None
        return self._begin(now)

    def leave(self, check: CheckT) -> None:
        """Forget a check that nobody waits for any more."""
        check.has_left = True
        self._waiting.pop(check, None)

    def end(self, now: float, again: Sequence[CheckT] = ()) -> list[Call[CheckT]]:
        """Note that a call has ended, and return the calls that begin now.

        Args:
            now: The current time.
            again: The checks of the call that have no result; they go before the others.
        """
        self._under_way -= 1
        for check in reversed(again):
            if not check.has_left:
                self._waiting[check] = None
                self._waiting.move_to_end(check, last=False)
        return self._begin(now)

    def _begin(self, now: float) -> list[Call[CheckT]]:
        calls = []
        while self._waiting and self._may_begin(now):
            calls.append(self._take())
            self._under_way += 1
            self._last_began = now
        return calls

    def _may_begin(self, now: float) -> bool:
        if not self._under_way:
            return True
        return self._under_way < MAX_CALLS and (
            now - self._last_began > PATIENCE
            or len(self._waiting) >= MAX_BATCH
            or next(iter(self._waiting)).is_alone
        )

    def _take(self) -> Call[CheckT]:
        limit = 1 if next(iter(self._waiting)).is_alone else MAX_BATCH
        tokens: dict[str, None] = {}
        checks = []
        for check in self._waiting:
            if len(tokens) < limit or check.token in tokens:
                tokens[check.token] = None
                checks.append(check)
        for check in checks:
            del self._waiting[check]
        return Call(checks, list(tokens))


def distribute(call: Call[CheckT], result: Sequence[Verdict] | Exception) -> list[CheckT]:
    """Settle the checks of a call, and return those that must be asked about alone.

    Args:
        call: The call, which has ended.
        result: A verdict for each of its tokens, or why there are none.
    """
    again = []
    if isinstance(result, Exception):
        if len(call.tokens) > 1 and _may_concern_one(result):
            again = call.checks
        else:
            _settle_all(call, result)
    elif len(result) != len(call.tokens):
        # Which verdict belongs to which token is unknown.
        _settle_all(call, KeybearerError("the response has another number of verdicts than tokens"))
    else:
        verdicts = dict(zip(call.tokens, result, strict=True))
        for check in call.checks:
            verdict = verdicts[check.token]
            # The service could not judge this one; alone, it says why.
            if verdict.outcome is Outcome.UNSPECIFIED and len(call.tokens) > 1:
                again.append(check)
            else:
                check.settle(verdict)
    for check in again:
        check.is_alone = True
    return again


def _settle_all(call: Call[CheckT], error: Exception) -> None:
    for check in call.checks:
        check.settle(error)


def _may_concern_one(error: Exception) -> bool:
    return isinstance(error, KeybearerError) and error.code not in _OF_ALL


def _failed(
    gate: OutageGate, error: Exception, begin_probing: Callable[[], object]
) -> VerifierUnavailableError:
    """Note that a check could not be made, and return the error to raise."""
    if isinstance(error, VerifierUnavailableError):
        return error
    unavailable = gate.failed(error)
    begin_probing()
    return unavailable


def _out_of_time() -> KeybearerError:
    return DeadlineExceededError("the check ran out of time")


class Gatherer:
    """Finds verdicts for threads.

    A call is made by the thread of one of its checks: the one that may wait longest, so that no
    thread waits for the sake of others.

    Args:
        gate: Refuses checks while it is known that they fail.
        ask: Makes one call. It gets tokens, each once, and the seconds that the call may take, and
            returns a verdict for each token, in order.
        begin_probing: Called after a failure; finds out when the outage is over.
        timeout: Seconds that a check may take.
        now: Returns the monotonic time, in seconds.
    """

    def __init__(
        self,
        gate: OutageGate,
        *,
        ask: Callable[[Sequence[str], float], Sequence[Verdict]],
        begin_probing: Callable[[], object],
        timeout: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gate = gate
        self._ask = ask
        self._begin_probing = begin_probing
        self._timeout = timeout
        self._now = now
        self.start_over()
        _GATHERERS.add(self)

    def start_over(self) -> None:
        """Return to the initial state. For the child of a fork, which has no other thread."""
        self._lock = threading.Lock()
        self._queue: Queue[_ThreadCheck] = Queue()

    @property
    def waiting(self) -> int:
        """How many checks wait to be sent."""
        return len(self._queue)

    def verify(self, token: str) -> Verdict:
        """Return the verdict about a token, which may be any text.

        Raises:
            VerifierUnavailableError: There is no verdict.
        """
        if not may_be_token(token):
            return Verdict(outcome=Outcome.NOT_FOUND)
        self._gate.assert_closed()
        try:
            verdict = self._wait(token)
        except VerifierUnavailableError:
            raise
        except Exception as error:
            raise _failed(self._gate, error, self._begin_probing) from error
        self._gate.recovered()
        return verdict

    def _wait(self, token: str) -> Verdict:
        now = self._now()
        with self._lock:
            if self._queue.begin_alone(now):
                check = None
            else:
                check = _ThreadCheck(token, now + self._timeout)
                _hand_out(self._queue.arrive(check, now))
        if check is None:
            return self._ask_alone(token)
        try:
            while not check.is_settled:
                if check.call is not None:
                    self._make(check, check.call)
                elif not check.woken.wait(max(0.0, check.deadline - self._now())):
                    break
        finally:
            self._leave(check)
        return check.result()

    def _ask_alone(self, token: str) -> Verdict:
        try:
            (verdict,) = self._ask([token], self._timeout)
        except VerifierUnavailableError:
            raise
        except Exception as error:
            # Before the next call begins, so that it is refused if nobody gets an answer now.
            raise _failed(self._gate, error, self._begin_probing) from error
        finally:
            with self._lock:
                _hand_out(self._queue.end(self._now()))
        return verdict

    def _make(self, sender: "_ThreadCheck", call: "Call[_ThreadCheck]") -> None:
        sender.woken.clear()
        result: Sequence[Verdict] | Exception
        try:
            # What waited may learn of an outage before it is sent.
            self._gate.assert_closed()
            result = self._ask(call.tokens, max(0.0, sender.deadline - self._now()))
        except Exception as error:  # noqa: BLE001 - whatever happened, there is no verdict
            result = error
        again = distribute(call, result)
        if isinstance(result, Exception) and not again:
            # As in `_ask_alone`.
            _failed(self._gate, result, self._begin_probing)
        with self._lock:
            sender.call = None
            _hand_out(self._queue.end(self._now(), again))

    def _leave(self, check: "_ThreadCheck") -> None:
        with self._lock:
            self._queue.leave(check)
            if check.call is not None:
                # The thread was interrupted, or woke up too late; another one makes the call.
                unsettled = [one for one in check.call.checks if not one.is_settled]
                check.call = None
                _hand_out(self._queue.end(self._now(), unsettled))


class _ThreadCheck(Check):
    """A check whose thread waits."""

    __slots__ = ("call", "woken")

    def __init__(self, token: str, deadline: float) -> None:
        super().__init__(token, deadline)
        self.call: Call[_ThreadCheck] | None = None
        """The call that its thread has to make."""
        self.woken = threading.Event()

    def wake(self) -> None:
        self.woken.set()


def _hand_out(calls: Iterable[Call[_ThreadCheck]]) -> None:
    for call in calls:
        sender = max(call.checks, key=lambda check: check.deadline)
        sender.call = call
        sender.wake()


class AsyncGatherer:
    """The same as Gatherer for asyncio. Checks of different event loops go separately.

    A call for several checks has a task of its own, so a check that is cancelled leaves the others
    alone. The arguments are those of Gatherer; `ask` returns an awaitable.
    """

    def __init__(
        self,
        gate: OutageGate,
        *,
        ask: Callable[[Sequence[str], float], Awaitable[Sequence[Verdict]]],
        begin_probing: Callable[[], object],
        timeout: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gate = gate
        self._ask = ask
        self._begin_probing = begin_probing
        self._timeout = timeout
        self._now = now
        self._queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Queue[_TaskCheck]] = (
            weakref.WeakKeyDictionary()
        )
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many checks wait to be sent."""
        return sum(map(len, list(self._queues.values())))

    async def verify(self, token: str) -> Verdict:
        """Return the verdict about a token, as Gatherer.verify does."""
        if not may_be_token(token):
            return Verdict(outcome=Outcome.NOT_FOUND)
        self._gate.assert_closed()
        try:
            verdict = await self._wait(token)
        except VerifierUnavailableError:
            raise
        except Exception as error:
            raise _failed(self._gate, error, self._begin_probing) from error
        self._gate.recovered()
        return verdict

    async def _wait(self, token: str) -> Verdict:
        loop = asyncio.get_running_loop()
        queue = self._queues.get(loop)
        if queue is None:
            queue = self._queues[loop] = Queue()
        now = self._now()
        if queue.begin_alone(now):
            return await self._ask_alone(queue, token)
        check = _TaskCheck(token, now + self._timeout, loop.create_future())
        for call in queue.arrive(check, now):
            self._start(queue, call)
        try:
            await asyncio.wait((check.woken,), timeout=self._timeout)
        finally:
            queue.leave(check)
        return check.result()

    async def _ask_alone(self, queue: "Queue[_TaskCheck]", token: str) -> Verdict:
        # Without a task of its own: nobody else is concerned when this check is cancelled.
        try:
            (verdict,) = await self._ask([token], self._timeout)
        except VerifierUnavailableError:
            raise
        except Exception as error:
            raise _failed(self._gate, error, self._begin_probing) from error
        finally:
            for following in queue.end(self._now()):
                self._start(queue, following)
        return verdict

    def _start(self, queue: "Queue[_TaskCheck]", call: "Call[_TaskCheck]") -> None:
        task = asyncio.create_task(self._make(queue, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, queue: "Queue[_TaskCheck]", call: "Call[_TaskCheck]") -> None:
        again: list[_TaskCheck] = []
        try:
            if not all(check.has_left for check in call.checks):
                result = await self._result(call)
                again = distribute(call, result)
                if isinstance(result, Exception) and not again:
                    _failed(self._gate, result, self._begin_probing)
        finally:
            for following in queue.end(self._now(), again):
                self._start(queue, following)

    async def _result(self, call: "Call[_TaskCheck]") -> Sequence[Verdict] | Exception:
        try:
            self._gate.assert_closed()
            return await self._ask(call.tokens, max(0.0, call.deadline - self._now()))
        except Exception as error:  # noqa: BLE001 - whatever happened, there is no verdict
            return error


class _TaskCheck(Check):
    """A check whose task waits."""

    __slots__ = ("woken",)

    def __init__(self, token: str, deadline: float, woken: "asyncio.Future[None]") -> None:
        super().__init__(token, deadline)
        self.woken = woken

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


_GATHERERS: "weakref.WeakSet[Gatherer]" = weakref.WeakSet()


def _after_fork() -> None:
    for gatherer in list(_GATHERERS):
        gatherer.start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
