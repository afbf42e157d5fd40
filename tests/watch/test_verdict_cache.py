"""The rules of the verdict cache, one by one, and then at random against a model."""

import random
import threading
from concurrent import futures
from dataclasses import replace
from datetime import timedelta
from typing import Self

import pytest

from keybearer._cache.verdict_cache import (
    EVERYTHING,
    LEASE,
    MAX_SUBJECTS,
    SECOND,
    OutOfOrderError,
    Pending,
    VerdictCache,
)
from keybearer.access import Role
from keybearer.models import Identity, Outcome, Verdict

TOKEN = "kbear1_a"
MINUTE = timedelta(seconds=60)


def identity(key: str = "k", owner: str = "o", account: str = "a") -> Identity:
    """Return an identity."""
    return Identity(
        key_id=key,
        account_id=account,
        owner_id=owner,
        effective_role=Role.DEVELOPER,
        granted_role=Role.DEVELOPER,
        secret_version=1,
    )


def valid(revision: int, who: Identity | None = None, cache_for: timedelta = MINUTE) -> Verdict:
    """Return a VALID verdict."""
    return Verdict(
        outcome=Outcome.VALID, identity=who or identity(), cache_for=cache_for, revision=revision
    )


def invalid(revision: int, outcome: Outcome = Outcome.NOT_FOUND) -> Verdict:
    """Return a denial."""
    return Verdict(outcome=outcome, cache_for=timedelta(seconds=1), revision=revision)


def fresh(
    max_entries: int = 100, max_negative: int = 10, kind: type[VerdictCache] = VerdictCache
) -> VerdictCache:
    """Return a cache with a stream at revision 10 and a lease from a ping at 0."""
    cache = kind("", max_entries=max_entries, max_negative=max_negative, draw=lambda: 0.0)
    cache.hello("epoch", 10)
    cache.pong(0, 10)
    return cache


def keep(cache: VerdictCache, verdict: Verdict, token: str = TOKEN, now: int = 0) -> bool:
    """Validate and store at one moment."""
    return cache.store(cache.begin(token, now), verdict)


# --- the history ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [valid(10), invalid(10)], ids=["valid", "negative"])
def test_an_answer_of_another_history_is_not_kept(verdict: Verdict) -> None:
    """A server that lags behind a failover knows nothing of what was changed since."""
    cache = fresh()
    assert keep(cache, replace(verdict, epoch="epoch"))
    cache.reset("after the failover", 10)
    assert not keep(cache, replace(verdict, epoch="epoch"))
    assert cache.counts.rejected_stale == 1
    assert keep(cache, replace(verdict, epoch="after the failover"))


def test_an_answer_without_a_history_is_kept_from_the_server_of_the_stream_alone() -> None:
    """An older server does not name it; over another connection it may be another server's."""
    cache = fresh()
    cache.hello("epoch", 10, connection=2)
    question = cache.begin(TOKEN, 0)
    assert not cache.store(question, valid(10), connection=1)
    assert cache.store(question, valid(10), connection=2)
    cache.reset("epoch", 10, connection=3)
    assert not cache.store(cache.begin(TOKEN, 0), valid(10), connection=2)


# --- the lease ------------------------------------------------------------------------------------


def test_an_answer_is_used_up_to_the_end_of_the_lease_and_not_after() -> None:
    """The lease ends 2 s after the ping was sent, to the nanosecond."""
    cache = fresh()
    assert keep(cache, valid(10))
    assert cache.find(TOKEN, LEASE) is not None
    assert cache.find(TOKEN, LEASE + 1) is None


def test_a_pong_prolongs_the_lease_from_its_ping_on() -> None:
    """A pong prolongs the lease from the time of its ping."""
    cache = fresh()
    keep(cache, valid(10))
    cache.pong(SECOND, 10)
    assert cache.find(TOKEN, SECOND + LEASE) is not None
    assert cache.find(TOKEN, SECOND + LEASE + 1) is None


def test_an_old_pong_does_not_shorten_the_lease() -> None:
    """An older pong does not shorten the lease."""
    cache = fresh()
    keep(cache, valid(10))
    cache.pong(SECOND, 10)
    cache.pong(0, 10)
    assert cache.find(TOKEN, SECOND + LEASE) is not None


def test_without_a_pong_nothing_is_used() -> None:
    """A hello gives no lease."""
    cache = VerdictCache("", max_entries=10, max_negative=10)
    cache.hello("epoch", 10)
    assert keep(cache, valid(10))
    assert cache.find(TOKEN, 0) is None


def test_a_reset_ends_the_lease() -> None:
    """A reset ends the lease."""
    cache = fresh()
    cache.reset("other", 3)
    assert keep(cache, valid(3))
    assert cache.find(TOKEN, 0) is None


def test_an_answer_is_used_as_long_as_it_says_counted_from_its_question() -> None:
    """The lifetime of a verdict counts from its request."""
    cache = fresh()
    question = cache.begin(TOKEN, 0)
    assert cache.store(question, valid(10, cache_for=timedelta(seconds=1)))
    assert cache.find(TOKEN, SECOND) is not None
    assert cache.find(TOKEN, SECOND + 1) is None


@pytest.mark.parametrize("cache_for", [timedelta(), timedelta(seconds=-1)])
def test_an_answer_that_is_not_to_be_reused_is_not_kept(cache_for: timedelta) -> None:
    """A verdict without `cache_for` is not kept."""
    assert not keep(fresh(), valid(10, cache_for=cache_for))


def test_no_answer_is_used_for_longer_than_a_minute_or_a_second() -> None:
    """A positive verdict lives for at most a minute, a negative one for a second."""
    cache = fresh()
    day = timedelta(days=1)
    keep(cache, valid(10, cache_for=day), "kbear1_p")
    cache.store(
        cache.begin("kbear1_n", 0),
        Verdict(outcome=Outcome.NOT_FOUND, cache_for=day, revision=10),
    )
    cache.pong(59 * SECOND, 10)
    assert cache.find("kbear1_p", 60 * SECOND) is not None
    assert cache.find("kbear1_p", 60 * SECOND + 1) is None
    assert cache.find("kbear1_n", SECOND) is not None
    assert cache.find("kbear1_n", SECOND + 1) is None


def test_answers_learnt_at_one_moment_are_not_all_asked_again_at_one_moment() -> None:
    """Verdicts expire up to a fifth of their lifetime early, each at its own time."""
    cache = VerdictCache("", max_entries=1000, max_negative=10)
    cache.hello("epoch", 10)
    for number in range(1000):
        keep(cache, valid(10, identity(key=f"k{number}")), f"kbear1_{number}")

    def still_good(moment: int) -> int:
        cache.pong(moment, 10)
        return sum(cache.find(f"kbear1_{number}", moment) is not None for number in range(1000))

    assert still_good(48 * SECOND) == 1000
    assert 0 < still_good(59 * SECOND) < still_good(49 * SECOND) < 1000
    assert still_good(60 * SECOND + 1) == 0


# --- what is kept under what ----------------------------------------------------------------------


def test_no_other_token_finds_an_answer() -> None:
    """Another token finds nothing."""
    cache = fresh()
    keep(cache, valid(10))
    for other in (TOKEN + "a", TOKEN[:-1], TOKEN[:-1] + "b", TOKEN.upper(), "", " " + TOKEN):
        assert cache.find(other, 0) is None


def test_what_is_kept_cannot_be_found_elsewhere() -> None:
    """The MAC differs between verifiers and between account restrictions."""
    assert fresh().mac(TOKEN) != fresh().mac(TOKEN)
    assert TOKEN.encode() not in fresh().mac(TOKEN)


# --- the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject", [("key_id", "k"), ("owner_id", "o"), ("account_id", "a"), EVERYTHING]
)
def test_a_change_forgets_what_is_older_and_refuses_what_was_read_before(
    subject: tuple[str, str],
) -> None:
    """A change of key, owner or account evicts older verdicts and rejects those on their way."""
    cache = fresh()
    on_its_way = cache.begin(TOKEN, 0)
    keep(cache, valid(10))
    cache.invalidate(subject, 11, 0)
    assert cache.find(TOKEN, 0) is None
    assert not cache.store(on_its_way, valid(10))
    assert cache.store(on_its_way, valid(11))
    assert cache.find(TOKEN, 0) is not None


@pytest.mark.parametrize(
    "subject", [("key_id", "x"), ("owner_id", "x"), ("account_id", "x"), ("key_id", "o")]
)
def test_a_change_of_something_else_forgets_nothing(subject: tuple[str, str]) -> None:
    """A change of another kind of subject with the same id evicts nothing."""
    cache = fresh()
    keep(cache, valid(10))
    cache.invalidate(subject, 11, 0)
    assert cache.find(TOKEN, 0) is not None


def test_an_answer_younger_than_the_change_stays() -> None:
    """A verdict of a later revision than the change stays."""
    cache = fresh()
    keep(cache, valid(11))
    cache.invalidate(("key_id", "k"), 11, 0)
    assert cache.find(TOKEN, 0) is not None


def test_an_answer_read_before_the_stream_began_is_not_kept() -> None:
    """A verdict from before the head of the hello is not kept."""
    assert not keep(fresh(), valid(9))


def test_an_answer_asked_before_a_reset_is_not_kept() -> None:
    """A verdict that was requested before a reset is not kept."""
    cache = fresh()
    question = cache.begin(TOKEN, 0)
    cache.reset("other", 5)
    assert not cache.store(question, valid(1000))


def test_an_answer_asked_before_the_first_hello_is_not_kept() -> None:
    """A verdict that was requested before the first hello is not kept."""
    cache = VerdictCache("", max_entries=10, max_negative=10)
    question = cache.begin(TOKEN, 0)
    cache.hello("epoch", 10)
    assert not cache.store(question, valid(10))


def test_a_stream_that_resumes_keeps_what_is_known() -> None:
    """A hello of the same epoch keeps the cache."""
    cache = fresh()
    keep(cache, valid(10))
    assert cache.position == ("epoch", 10)
    cache.hello("epoch", 12)
    assert cache.find(TOKEN, 0) is not None
    cache.invalidate(("key_id", "k"), 11, 0)
    assert cache.find(TOKEN, 0) is None


@pytest.mark.parametrize(("epoch", "head"), [("other", 12), ("epoch", 9)])
def test_a_hello_that_cannot_be_a_resumption_forgets_everything(epoch: str, head: int) -> None:
    """A hello of another epoch or an older head empties the cache."""
    cache = fresh()
    keep(cache, valid(10))
    cache.hello(epoch, head)
    assert cache.find(TOKEN, 0) is None


@pytest.mark.parametrize("revision", [11, 10, 1])
def test_changes_that_do_not_rise_are_not_believed(revision: int) -> None:
    """A repeated or older revision raises OutOfOrderError."""
    cache = fresh()
    cache.invalidate(("key_id", "x"), 11, 0)
    with pytest.raises(OutOfOrderError):
        cache.invalidate(("key_id", "k"), revision, 0)


def test_a_change_before_a_pongs_head_is_not_believed_after_it() -> None:
    """A change at or below the head of a pong raises OutOfOrderError."""
    cache = fresh()
    cache.pong(1, 20)
    with pytest.raises(OutOfOrderError):
        cache.invalidate(("key_id", "k"), 15, 0)


def test_a_pong_behind_a_change_is_not_believed() -> None:
    """A pong with a head below a change raises OutOfOrderError."""
    cache = fresh()
    cache.invalidate(("key_id", "x"), 11, 0)
    with pytest.raises(OutOfOrderError):
        cache.pong(1, 10)


def test_nothing_is_believed_before_hello() -> None:
    """Changes and pongs before the hello raise OutOfOrderError."""
    cache = VerdictCache("", max_entries=10, max_negative=10)
    with pytest.raises(OutOfOrderError):
        cache.pong(1, 1)
    with pytest.raises(OutOfOrderError):
        cache.invalidate(("key_id", "k"), 1, 0)


def test_starting_over_forgets_everything_and_begins_from_now() -> None:
    """`start_over` empties the cache and resets the position."""
    cache = fresh()
    question = cache.begin(TOKEN, 0)
    keep(cache, valid(10))
    cache.start_over()
    assert cache.position[0] == ""
    assert cache.find(TOKEN, 0) is None
    assert not cache.store(question, valid(1000))
    assert not keep(cache, valid(1000)), "not before the next hello"


def test_a_denial_is_forgotten_at_any_change() -> None:
    """Every change evicts all negative verdicts: it may make a token valid."""
    cache = fresh()
    question = cache.begin(TOKEN, 0)
    assert keep(cache, invalid(10))
    found = cache.find(TOKEN, 0)
    assert found is not None
    assert found.outcome is Outcome.NOT_FOUND
    cache.invalidate(("key_id", "something"), 11, 0)
    assert cache.find(TOKEN, 0) is None
    assert not cache.store(question, invalid(10)), "read before the change"


@pytest.mark.parametrize(
    "outcome", [Outcome.UNSPECIFIED, Outcome.ROLE_INSUFFICIENT, Outcome.SCOPE_INSUFFICIENT]
)
def test_what_is_no_answer_about_a_token_is_not_kept(outcome: Outcome) -> None:
    """Unknown outcomes and verdicts about a role or scope are not kept."""
    assert not keep(fresh(), invalid(10, outcome))


# --- bounds ---------------------------------------------------------------------------------------


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    """The cache is bounded, and the oldest unused verdict is evicted first."""
    cache = fresh(max_entries=10)
    keep(cache, valid(10, identity(key="hot")), "kbear1_hot")
    for number in range(1000):
        assert cache.find("kbear1_hot", 0) is not None
        keep(cache, valid(10, identity(key=f"k{number}")), f"kbear1_{number}")
    assert len(cache) == 10
    assert cache.subjects == 10 + 2, "ten keys, one owner, one account"
    assert cache.find("kbear1_999", 0) is not None


def test_guessing_does_not_push_out_good_answers() -> None:
    """Negative verdicts never evict positive ones."""
    cache = fresh(max_entries=10, max_negative=5)
    keep(cache, valid(10))
    for number in range(1000):
        keep(cache, invalid(10), f"kbear1_{number}")
    assert len(cache) == 6
    assert cache.find(TOKEN, 0) is not None


def test_changes_that_are_no_longer_remembered_one_by_one_hold_for_all() -> None:
    """A verdict from before a change that is no longer remembered is not kept."""
    cache = fresh()
    for number in range(MAX_SUBJECTS + 5):
        cache.invalidate(("key_id", f"k{number}"), 11 + number, 0)
    assert not keep(cache, valid(14))
    assert keep(cache, valid(15))


# --- usage ----------------------------------------------------------------------------------------


def test_uses_are_reported_once_also_of_answers_that_are_gone() -> None:
    """Uses are reported once, also those of evicted verdicts."""
    cache = fresh()
    keep(cache, valid(10))
    for _ in range(3):
        cache.find(TOKEN, 7)
    (used,) = cache.take_usage()
    assert (used.key_id, used.secret_version, used.used_at, used.uses) == ("k", 1, 7, 3)
    assert cache.take_usage() == []
    cache.find(TOKEN, 8)
    cache.invalidate(("key_id", "k"), 11, 0)
    assert [one.uses for one in cache.take_usage()] == [1]


# --- at random ------------------------------------------------------------------------------------


class Unguarded(VerdictCache):
    """Planted: keeps every verdict."""

    def _may_keep(self, *_: object) -> bool:
        return self._started


class _Play:
    """Server, stream and checks, played at random, one step at a time.

    The server's truth about a key is a number that every change moves. A check may use another
    number than the truth only if it began no later than LEASE after the change.
    """

    def __init__(self, seed: int, *, guarded: bool) -> None:
        self.chance = random.Random(seed)
        kind = VerdictCache if guarded else Unguarded
        self.cache = kind("", max_entries=6, max_negative=3)
        self.now = self.revision = self.moves = 0
        self.truth = {f"k{number}": (0, 0) for number in range(4)}
        self.untold: list[tuple[int, str]] = []
        self.on_their_way: list[tuple[str, Pending, Verdict | None]] = []
        self.pings: list[int] = []
        self.epoch = "e"
        self.is_restored = False
        self.stale = self.checks = 0
        self.cache.hello(self.epoch, 0)

    def step(self) -> None:
        self.now += self.chance.randrange(SECOND // 20)
        steps = [self.check] * 8 + [self.change, self.ask, self.read, self.take, self.ping]
        steps += [self.tell, self.pong] * 2
        self.chance.choice(steps)()
        if self.chance.random() < 0.005:
            self.restore()

    def change(self) -> None:
        self.revision += 1
        self.moves += 1
        key = self.chance.choice(list(self.truth))
        self.truth[key] = (self.moves, self.now)
        self.untold.append((self.revision, key))

    def ask(self) -> None:
        key = self.chance.choice(list(self.truth))
        self.on_their_way.append((key, self.cache.begin(key, self.now), None))

    def read(self) -> None:
        """The server reads a verdict, which is then on its way for a while."""
        for index, (key, question, verdict) in enumerate(self.on_their_way):
            if verdict is None:
                who = identity(key=key, owner=f"o{self.truth[key][0]}")
                self.on_their_way[index] = (key, question, valid(self.revision, who))
                return

    def take(self) -> None:
        if self.on_their_way:
            index = self.chance.randrange(len(self.on_their_way))
            _, question, verdict = self.on_their_way.pop(index)
            if verdict is not None:
                self.cache.store(question, verdict)

    def ping(self) -> None:
        self.pings.append(self.now)

    def tell(self) -> None:
        if self.is_restored:
            self.is_restored = False
            self.untold.clear()
            self.cache.reset(self.epoch, self.revision)
        elif self.untold:
            revision, key = self.untold.pop(0)
            self.cache.invalidate(("key_id", key), revision, self.now)

    def pong(self) -> None:
        if self.pings:
            while self.untold or self.is_restored:
                self.tell()
            self.cache.pong(self.pings.pop(0), self.revision)

    def restore(self) -> None:
        """Restore: fewer revisions, another epoch, and the stream will be reset."""
        self.revision = max(0, self.revision - 3)
        self.epoch += "x"
        self.moves += 1
        self.truth = dict.fromkeys(self.truth, (self.moves, self.now))
        self.pings.clear()
        self.is_restored = True

    def check(self) -> None:
        key = self.chance.choice(list(self.truth))
        found = self.cache.find(key, self.now)
        if found is not None and found.identity is not None:
            self.checks += 1
            moves, when = self.truth[key]
            is_true = found.identity.owner_id == f"o{moves}"
            self.stale += not is_true and self.now > when + LEASE


def _played(seed: int, *, guarded: bool) -> tuple[int, int]:
    """Play many histories; return how many checks reused a verdict, and how many a stale one."""
    plays = [_Play(seed + number, guarded=guarded) for number in range(100)]
    for play in plays:
        for _ in range(500):
            play.step()
    return sum(play.checks for play in plays), sum(play.stale for play in plays)


def test_random_histories_never_answer_what_is_stale(seed: int) -> None:
    """Random changes, late verdicts, lags and restores never reuse a stale verdict."""
    checks, stale = _played(seed, guarded=True)
    assert stale == 0
    assert checks > 1000


def test_random_histories_without_the_guard_do(seed: int) -> None:
    """The planted bug is found."""
    assert _played(seed, guarded=False)[1] > 0


class HesitatingToken(str):
    """A token whose check pauses once it has read one of lease and entry, before it has both."""

    __slots__ = ("go_on", "reached")

    reached: threading.Event
    go_on: threading.Event

    def __new__(cls, text: str) -> Self:
        token = super().__new__(cls, text)
        token.reached, token.go_on = threading.Event(), threading.Event()
        return token

    def encode(self, *arguments: str) -> bytes:
        self.reached.set()
        self.go_on.wait(10)
        return super().encode(*arguments)


class EntryFirst(VerdictCache):
    """Planted: reads the entry before the lease."""

    def find(self, token: str, began: int) -> Verdict | None:
        entry = self._positive.get(self.mac(str.__str__(token)))
        token.encode()
        fits = entry is not None and began <= self._lease_until and began <= entry.good_until
        return entry.verdict if fits and entry is not None else None


@pytest.mark.parametrize(("kind", "is_found"), [(VerdictCache, False), (EntryFirst, True)])
def test_the_lease_is_read_before_the_answer(kind: type[VerdictCache], *, is_found: bool) -> None:
    """A check that pauses in between does not pair an old verdict with a new lease."""
    cache = fresh(kind=kind)
    keep(cache, valid(10))
    began = 3 * SECOND
    token = HesitatingToken(TOKEN)
    with futures.ThreadPoolExecutor(1) as checker:
        check = checker.submit(cache.find, token, began)
        assert token.reached.wait(10)
        cache.invalidate(("key_id", "k"), 11, 0)
        cache.pong(began, 11)
        token.go_on.set()
        assert (check.result(10) is not None) == is_found
