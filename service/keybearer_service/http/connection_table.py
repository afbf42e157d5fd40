"""The open connections of a listener, and which of them is closed when there are too many."""

import enum
from collections import Counter
from collections.abc import Callable
from heapq import nsmallest
from typing import Protocol

from keybearer_service.net.bounds import Bounds

_SHED_AT_ONCE = 64
"""Looking for the worst connections costs a walk through all, so of silent ones this part of the
bound goes at once."""


class Standing(enum.IntEnum):
    """How much a connection is worth keeping, from the least."""

    SILENT = 0
    """It has not been sent one response yet."""
    ANSWERED = 1
    """It has asked for what anybody may ask."""
    IDENTIFIED = 2
    """It belongs to a gateway that has shown its key."""
    ANSWERING = 3
    """A whole request is being answered: never shed."""


class Held(Protocol):
    """A connection, in whatever stage."""

    peer: str
    since: float
    """When its stage began, on the clock of the event loop."""

    @property
    def standing(self) -> Standing:
        """How much it is worth keeping."""
        ...

    def close_if_late(self, now: float) -> bool:
        """Close the connection when its stage has taken too long; return whether it has."""
        ...

    def drop(self) -> None:
        """Close the connection at once."""
        ...


class ConnectionTable:
    """The open connections of a listener. For the thread of its event loop alone."""

    def __init__(self, bounds: Bounds, on_removed: Callable[[], object]) -> None:
        """Begin with no connection.

        Args:
            bounds: Of the listener.
            on_removed: Called when a connection is counted no more.
        """
        self._bounds = bounds
        self._on_removed = on_removed
        self._held: dict[Held, None] = {}
        self._of_peer: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        """How many connections were closed before their time, by reason, until `take_closed`."""

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> None:
        """Count one more connection."""
        self._held[held] = None
        self._of_peer[held.peer] += 1

    def replace(self, held: Held, later: Held) -> None:
        """Count a connection in its next stage in place of the one before."""
        self._forget(held)
        self.add(later)

    def remove(self, held: Held) -> None:
        """Count one less, unless it was removed or replaced before."""
        if self._forget(held):
            self._on_removed()

    def make_room(self, peer: str) -> bool:
        """Return whether a new connection of a peer may stay, after others were closed for it."""
        if self._of_peer[peer] >= self._bounds.connections_of_one_peer:
            return self._shed([held for held in self._held if held.peer == peer])
        if len(self._held) >= self._bounds.connections:
            return self._shed(list(self._held))
        return True

    def shed_silent(self, since: float) -> bool:
        """Close some connections that have been silent since then; return whether there were any.

        Args:
            since: A time on the clock of the event loop.
        """
        return self._shed(
            [
                held
                for held in self._held
                if held.standing is Standing.SILENT and held.since <= since
            ]
        )

    def close_late(self, now: float) -> None:
        """Close every connection whose stage has taken too long."""
        for held in list(self._held):
            if held.close_if_late(now):
                self.closed["late"] += 1

    def take_closed(self) -> dict[str, int]:
        """Return, and forget, how many connections were closed before their time, by reason."""
        closed, self.closed = self.closed, Counter()
        return dict(closed)

    def _forget(self, held: Held) -> bool:
        if held not in self._held:
            return False
        del self._held[held]
        self._of_peer[held.peer] -= 1
        if not self._of_peer[held.peer]:
            del self._of_peer[held.peer]
        return True

    def _shed(self, candidates: list[Held]) -> bool:
        ranked = [
            (held.standing, held.since, index)
            for index, held in enumerate(candidates)
            if held.standing < Standing.ANSWERING
        ]
        worst = nsmallest(1 + self._bounds.connections // _SHED_AT_ONCE, ranked)
        for rank, (standing, _since, index) in enumerate(worst):
            if rank == 0 or standing is Standing.SILENT:
                self.remove(candidates[index])
                candidates[index].drop()
                self.closed["shed"] += 1
        return bool(worst)
