"""Bugs of the hot loop to plant, as `seeded_bugs` has those of the store."""

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from grpc import _server

from keybearer_service.rpc import hot_loop


def mix_up_answers() -> None:
    """Have every 200th call answered with what another one was answered."""
    end = hot_loop.HotCall.end
    answers: list[Any] = [b""]
    count = itertools.count(1)

    def end_with_another(self: hot_loop.HotCall, answer: Any) -> None:
        another, answers[0] = answers[0], answer
        end(self, answer if next(count) % 200 else another)

    hot_loop.HotCall.end = end_with_another  # type: ignore[method-assign]


def reuse_operations() -> None:
    """Have all calls ask for their message by one and the same operation."""
    cygrpc: Any = _server.cygrpc  # type: ignore[attr-defined]
    make = cygrpc.ReceiveMessageOperation
    made: list[Any] = []

    def make_once(flags: int) -> Any:
        if threading.current_thread().name != "hot-loop":
            return make(flags)
        if not made:
            made.append(make(flags))
        return made[0]

    cygrpc.ReceiveMessageOperation = make_once


LOOP_BUGS: Mapping[str, Callable[[], None]] = {
    "mix-up-answers": mix_up_answers,
    "reuse-operations": reuse_operations,
}
