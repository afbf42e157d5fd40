"""What was asked during a failover and what was answered, and what must be true of it.

Times are seconds of CLOCK_BOOTTIME, of one machine.
"""

import itertools
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

BOUND_S: Final = 2.0
"""How long after an acknowledged revocation a check may begin that still finds the key valid."""
VALID: Final = "VALID"
REVOKED: Final = "REVOKED"
AWAY: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})
"""What a call may be answered with when the database does not answer."""


def now() -> float:
    """Return the time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Key:
    """A key whose creation was acknowledged."""

    key_id: str
    token: str
    created_at: float
    """When its creation was acknowledged."""
    revoking_since: float | None = None
    """When its revocation was asked for, first."""
    revoked_at: float | None = None
    """When its revocation was acknowledged."""


class Seen(NamedTuple):
    """One check of a key, or another call about it."""

    source: str
    key_id: str
    began: float
    ended: float
    answer: str
    """An outcome, or the status of a call that failed."""


class Outage(NamedTuple):
    """How long a source had no answers."""

    source: str
    seconds: float


@dataclass
class Findings:
    """What was wrong in a round."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged changes that the database does not have."""
    late: list[str] = field(default_factory=list)
    """Keys that were found valid too late."""
    wrong: list[str] = field(default_factory=list)
    """Other answers that must not be."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.late or self.wrong)

    def __str__(self) -> str:
        kinds = {"LOST": self.lost, "LATE": self.late, "WRONG": self.wrong}
        return "\n".join(f"{kind}: {one}" for kind, found in kinds.items() for one in found[:10])


def judge(keys: Iterable[Key], seen: Iterable[Seen]) -> Findings:
    """Compare what was answered with what had been acknowledged."""
    found = Findings()
    known = {key.key_id: key for key in keys}
    for one in seen:
        key = known[one.key_id]
        if one.answer == VALID:
            if key.revoked_at is not None and one.began > key.revoked_at + BOUND_S:
                found.late.append(
                    f"{one.source} found {one.key_id} valid"
                    f" {one.began - key.revoked_at:.2f} s after its revocation"
                )
        elif one.answer == REVOKED:
            if key.revoking_since is None or one.ended < key.revoking_since:
                found.wrong.append(f"{one.source}: {one.key_id} is revoked by nobody")
        elif one.answer not in AWAY:
            found.wrong.append(f"{one.source}: {one.key_id} is {one.answer}")
    return found


def missing(keys: Iterable[Key], stored: Mapping[str, bool], where: str) -> Iterator[str]:
    """Yield the acknowledged changes that are not there.

    Args:
        keys: All keys.
        stored: Whether each stored key is revoked, by its id.
        where: Who said so.
    """
    for key in keys:
        if key.key_id not in stored:
            yield f"the creation of {key.key_id}, {where}"
        elif key.revoked_at is not None and not stored[key.key_id]:
            yield f"the revocation of {key.key_id}, {where}"


def outages(seen: Iterable[Seen], since: float, until: float) -> list[Outage]:
    """Return for each source the longest time for which it had nothing but failures.

    Args:
        seen: All checks.
        since: Only what ended afterwards counts.
        until: Only what ended before counts.
    """
    failing: dict[str, float] = {}
    longest: dict[str, float] = {}
    for one in sorted(seen, key=lambda one: one.ended):
        if not since <= one.ended <= until:
            continue
        if one.answer in AWAY:
            failing.setdefault(one.source, one.began)
        elif one.source in failing:
            lasted = one.ended - failing.pop(one.source)
            longest[one.source] = max(longest.get(one.source, 0.0), lasted)
    for source, began in failing.items():
        longest[source] = max(longest.get(source, 0.0), until - began)
    return [Outage(*one) for one in sorted(longest.items())]


def longest_pause(moments: Collection[float], since: float, until: float) -> float:
    """Return the longest time between two moments that follow each other."""
    inside = sorted(one for one in moments if since <= one <= until)
    edges = [since, *inside, until]
    return max(after - before for before, after in itertools.pairwise(edges))


def counts(seen: Iterable[Seen]) -> Mapping[str, int]:
    """Return how often each answer was given."""
    return dict(Counter(f"{one.source.split()[0]} {one.answer}" for one in seen))
