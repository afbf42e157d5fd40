"""The judge of failovers sees what must not be, and nothing else."""

import pytest

from failover.history import Key, Outage, Seen, judge, missing, outages

REVOKED = Key("revoked", "token", created_at=1.0, revoking_since=9.9, revoked_at=10.0)
LIVE = Key("live", "token", created_at=1.0)


def found(key: Key, began: float, answer: str) -> tuple[int, int]:
    """Return how many late and how many wrong answers are seen in one."""
    judged = judge([REVOKED, LIVE], [Seen("node 1", key.key_id, began, began + 0.1, answer)])
    return len(judged.late), len(judged.wrong)


@pytest.mark.parametrize(
    ("key", "began", "answer", "expected"),
    [
        (REVOKED, 11.9, "VALID", (0, 0)),
        (REVOKED, 12.1, "VALID", (1, 0)),
        (REVOKED, 12.1, "REVOKED", (0, 0)),
        (REVOKED, 9.0, "REVOKED", (0, 1)),
        (LIVE, 12.1, "VALID", (0, 0)),
        (LIVE, 12.1, "UNAVAILABLE", (0, 0)),
        (LIVE, 12.1, "REVOKED", (0, 1)),
        (LIVE, 12.1, "NOT_FOUND", (0, 1)),
        (LIVE, 12.1, "INTERNAL", (0, 1)),
    ],
)
def test_an_answer_is_judged_by_what_was_acknowledged_before_it(
    key: Key, began: float, answer: str, expected: tuple[int, int]
) -> None:
    """Two seconds after a revocation no check may begin that finds the key valid."""
    assert found(key, began, answer) == expected


def test_what_was_acknowledged_and_is_not_stored_is_missing() -> None:
    """A key that is not there, and one that is not revoked."""
    assert list(missing([REVOKED, LIVE], {"revoked": True, "live": False}, "here")) == []
    lost = list(missing([REVOKED, LIVE], {"revoked": False}, "here"))
    assert lost == ["the revocation of revoked, here", "the creation of live, here"]


def test_an_outage_ends_with_the_next_answer() -> None:
    """Two short ones are no long one; one that has not ended lasts until the end."""
    answers = [(0, "VALID"), (1, "UNAVAILABLE"), (4, "VALID"), (8, "UNAVAILABLE"), (9, "VALID")]
    seen = [Seen("node 1", "live", at, at + 0.5, answer) for at, answer in answers]
    seen.append(Seen("cache 1", "live", 15, 15.5, "UNAVAILABLE"))
    assert outages(seen, 0, 20) == [Outage("cache 1", 5.0), Outage("node 1", 3.5)]
