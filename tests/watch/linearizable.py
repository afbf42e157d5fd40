"""A linearizability check: Wing and Gong's search with Lowe's memo, one key at a time.

A key is absent, active, disabled or revoked, and has a current secret. With some slack, a read may
have happened that long before it began, which is what a cache may lag.
"""

from typing import NamedTuple

NEVER = float("inf")


class Operation(NamedTuple):
    """One operation on a key."""

    began: float
    ended: float
    """NEVER when its end is not known; it may then have happened or not."""
    kind: str
    secret: int = 0
    """Of a `verify`: which secret, from 1."""
    allowed: bool = False
    """Of a `verify`: what it answered."""


class State(NamedTuple):
    """The state of a key."""

    life: str = "absent"
    secret: int = 0


def after(state: State, operation: Operation) -> State | None:
    """Return the state after an operation, or None when it is impossible in this state."""
    life, secret = state
    match operation.kind:
        case "create":
            return State("active", 1) if life == "absent" else None
        case "revoke":
            return State("revoked", secret) if life != "absent" else None
        case "disable":
            return State("disabled", secret) if life in ("active", "disabled") else None
        case "enable":
            return State("active", secret) if life in ("active", "disabled") else None
        case "rotate":
            return State(life, secret + 1) if life in ("active", "disabled") else None
        case "verify":
            true = life == "active" and operation.secret == secret
            return state if operation.allowed == true else None
    raise ValueError(operation.kind)


def is_linearizable(history: list[Operation], slack: float = 0.0) -> bool:
    """Return whether some order explains a history.

    Args:
        history: The operations on one key.
        slack: Seconds that a `verify` may lag.
    """
    operations = sorted(
        one._replace(began=one.began - slack) if one.kind == "verify" else one for one in history
    )
    must = sum(1 << index for index, one in enumerate(operations) if one.ended != NEVER)
    seen: set[tuple[int, State]] = set()
    stack = [(0, State())]
    while stack:
        done, state = _take_reads(operations, *stack.pop())
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        for index, one in _open(operations, done):
            following = after(state, one)
            if following is not None and one.kind != "verify":
                stack.append((done | 1 << index, following))
    return False


def _open(operations: list[Operation], done: int) -> list[tuple[int, Operation]]:
    """Return what may come next: the operations that began before the first of the others ended."""
    left = [(index, one) for index, one in enumerate(operations) if not done >> index & 1]
    horizon = min((one.ended for _, one in left), default=NEVER)
    return [(index, one) for index, one in left if one.began <= horizon]


def _take_reads(operations: list[Operation], done: int, state: State) -> tuple[int, State]:
    """Apply every read that is possible now: a read changes nothing, so it blocks nothing."""
    while True:
        fitting = [
            index
            for index, one in _open(operations, done)
            if one.kind == "verify" and after(state, one) is not None
        ]
        if not fitting:
            return done, state
        for index in fitting:
            done |= 1 << index
