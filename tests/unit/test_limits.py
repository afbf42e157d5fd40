"""Bounds on how often: buckets for peers, quotas a minute."""

import pytest

from fakes import FakeClock
from keybearer_service.domain.clock import MINUTE, SECOND
from keybearer_service.domain.errors import Overloaded
from keybearer_service.domain.rate_limits import PeerLimiter
from keybearer_service.telemetry.log_quotas import MinuteQuota


def admitted(limiter: PeerLimiter, peer: str, calls: int) -> int:
    """Count how many of the calls are admitted."""
    count = 0
    for _ in range(calls):
        try:
            limiter.admit(peer)
        except Overloaded:
            continue
        count += 1
    return count


def test_a_peer_has_twenty_calls_a_second(clock: FakeClock) -> None:
    """A burst of one second's worth, and then as many as time gives back."""
    limiter = PeerLimiter(clock)
    assert admitted(limiter, "peer", 30) == 20
    clock.advance(SECOND // 2)
    assert admitted(limiter, "peer", 30) == 10
    clock.advance(100 * SECOND)
    assert admitted(limiter, "peer", 30) == 20


def test_one_peer_does_not_use_up_anothers_calls(clock: FakeClock) -> None:
    """Each has a bucket of its own."""
    limiter = PeerLimiter(clock)
    assert admitted(limiter, "loud", 1000) == 20
    assert admitted(limiter, "quiet", 30) == 20


def test_everybody_together_has_a_hundred_calls_a_second(clock: FakeClock) -> None:
    """Many peers do not add up to more."""
    limiter = PeerLimiter(clock)
    assert sum(admitted(limiter, f"peer{n}", 20) for n in range(10)) == 100
    clock.advance(SECOND)
    assert admitted(limiter, "peer0", 5) == 5


def test_an_overloaded_caller_is_told_when_to_try_again(clock: FakeClock) -> None:
    """The error carries the seconds."""
    limiter = PeerLimiter(clock, per_peer=1, in_all=1)
    limiter.admit("peer")
    with pytest.raises(Overloaded) as caught:
        limiter.admit("peer")
    assert caught.value.retry_after


def test_a_limiter_forgets_quiet_peers(clock: FakeClock) -> None:
    """Memory does not grow with the number of peers there ever were."""
    limiter = PeerLimiter(clock, in_all=1000, max_peers=10)
    for n in range(100):
        limiter.admit(f"peer{n}")
        clock.advance(SECOND)
    assert limiter.peers <= 10


def test_a_quota_admits_so_many_a_minute(clock: FakeClock) -> None:
    """The rest is counted, and handed out when the minute is over."""
    quota = MinuteQuota(clock, 10)
    assert [quota.admit("a") for _ in range(13)] == [True] * 10 + [False] * 3
    assert quota.collect() == {}
    clock.advance(MINUTE)
    assert quota.collect() == {"a": 3}
    assert quota.collect() == {}


def test_a_quota_begins_afresh_with_every_minute(clock: FakeClock) -> None:
    """Also when nothing was collected in between, because nothing was left to tell."""
    quota = MinuteQuota(clock, 1)
    assert quota.admit("a")
    clock.advance(MINUTE)
    assert quota.admit("a")


def test_a_count_that_was_not_told_is_never_lost(clock: FakeClock) -> None:
    """A new minute does not forget what the old one left untold."""
    quota = MinuteQuota(clock, 1)
    quota.admit("a")
    quota.admit("a")
    clock.advance(MINUTE)
    quota.admit("a")
    told = quota.collect(everything=True)
    assert told == {"a": 2}


def test_a_running_minute_is_told_at_the_end(clock: FakeClock) -> None:
    """With `everything`, as at a shutdown."""
    quota = MinuteQuota(clock, 1)
    quota.admit("a")
    quota.admit("a")
    assert quota.collect(everything=True) == {"a": 1}


def test_quotas_are_apart(clock: FakeClock) -> None:
    """One key's refusals do not hide another's."""
    quota = MinuteQuota(clock, 1)
    assert quota.admit("a")
    assert quota.admit("b")
    assert not quota.admit("a")
