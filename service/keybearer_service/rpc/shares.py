"""Calls of one kind that accounts share fairly: none has more than its share of them."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from keybearer_service.domain.errors import CallAbandoned, Overloaded
from keybearer_service.net.bounds import ShareBounds
from keybearer_service.telemetry.recorder import Recorder
from keybearer_service.usecases.call_context import CallContext

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AccountShares:
    """Lets calls run when it is the turn of their account; until then they wait on their thread.

    It is known only on a thread which account a call is of. So there are more threads than calls
    that run, and one account may hold a part of them.
    """

    def __init__(self, bounds: ShareBounds, name: str, recorder: Recorder) -> None:
        """Create the shares.

        Args:
            bounds: How many calls.
            name: The name of the executor, for metrics.
            recorder: Counts what is refused.
        """
        self._bounds = bounds
        self._name = name
        self._recorder = recorder
        self._changed = threading.Condition()
        self._present: Counter[str] = Counter()
        self._running: Counter[str] = Counter()

    def sharing(
        self, serve: Callable[[RequestT, CallContext], ResponseT]
    ) -> Callable[[RequestT, CallContext], ResponseT]:
        """Return a function that serves within the share of the caller's account."""

        def shared(request: RequestT, call: CallContext) -> ResponseT:
            with self._held(call):
                return serve(request, call)

        return shared

    @contextmanager
    def _held(self, call: CallContext) -> Iterator[None]:
        account_id = call.identity.account_id
        with self._counted(self._present, account_id, self._bounds.of_one):
            with self._changed:
                while not self._may_run(account_id):
                    self._changed.wait(call.remaining_s)
                    if not call.is_alive:
                        raise CallAbandoned
                self._running[account_id] += 1
            try:
                yield
            finally:
                with self._changed:
                    _subtract(self._running, account_id)
                    self._changed.notify_all()

    @contextmanager
    def _counted(self, counts: Counter[str], account_id: str, most: int) -> Iterator[None]:
        with self._changed:
            if counts[account_id] >= most:
                self._recorder.overloaded(self._name, "account")
                raise Overloaded("too many of these calls of this account at once; try again later")
            counts[account_id] += 1
        try:
            yield
        finally:
            with self._changed:
                _subtract(counts, account_id)

    def _may_run(self, account_id: str) -> bool:
        return (
            self._running.total() < self._bounds.at_once
            and self._running[account_id] < self._bounds.of_one_at_once
        )


def _subtract(counts: Counter[str], account_id: str) -> None:
    counts[account_id] -= 1
    if not counts[account_id]:
        del counts[account_id]
