"""Lookups that go together: each answer is its own, and of a read that began after its call."""

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from keybearer_service.domain.model import Moment
from keybearer_service.domain.verdict import TokenRecord
from keybearer_service.storage import StoreDamagedError, StoreLockedError
from keybearer_service.storage.postgres_gathering import (
    AT_A_TIME,
    MOST_TOGETHER,
    Answer,
    Gathering,
)

PATIENCE_S = 60.0
FIRST_MOMENT = Moment("epoch", 1)
FIRST = [f"first {number}" for number in range(AT_A_TIME)]


class Database:
    """Answers with the revision of the moment at which a read begins; reads can be held up."""

    def __init__(self) -> None:
        self.revision = 1
        self.alone: list[str] = []
        self.together: list[Sequence[str]] = []
        self._held: dict[str, threading.Event] = {}
        self.begun = threading.Semaphore(0)
        self.error: Exception | None = None

    def read_one(self, key_id: str) -> Answer:
        self.alone.append(key_id)
        return None, self._read(key_id)

    def read_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        self.together.append(key_ids)
        return {}, self._read(key_ids[0])

    def hold(self, key_id: str) -> None:
        """Hold the read up that asks for this key, or first for it."""
        self._held[key_id] = threading.Event()

    def let_go(self, *key_ids: str) -> None:
        """Let held reads end; without names all of them."""
        for key_id in key_ids or self._held:
            self._held[key_id].set()

    def _read(self, key_id: str) -> Moment:
        moment, error = Moment("epoch", self.revision), self.error
        self.begun.release()
        if key_id in self._held:
            assert self._held[key_id].wait(PATIENCE_S)
        if error is not None:
            raise error
        return moment


class Busy:
    """A gathering all of whose statements are on their way."""

    def __init__(self, threads: ThreadPoolExecutor, error: Exception | None = None) -> None:
        self.database = Database()
        self.database.error = error
        self.gathering = Gathering(self.database.read_one, self.database.read_many)
        self._threads = threads
        for key_id in FIRST:
            self.database.hold(key_id)
        self.first = [self.call(key_id) for key_id in FIRST]
        for _ in self.first:
            assert self.database.begun.acquire(timeout=PATIENCE_S)

    def call(self, key_id: str) -> "Future[Answer]":
        """Look a key up on another thread."""
        return self._threads.submit(self.gathering.lookup, key_id)

    def wait_for(self, count: int) -> None:
        """Wait until so many calls wait."""
        pause = threading.Event()
        tries = itertools.count()
        while self.gathering.waiting < count:
            assert next(tries) < PATIENCE_S * 1000, "none waits that should"
            pause.wait(0.001)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Enough threads for every call."""
    with ThreadPoolExecutor(2 * MOST_TOGETHER) as executor:
        yield executor


def test_a_lookup_goes_alone_and_at_once_while_there_is_room() -> None:
    """Nothing waits when there is nobody to wait with."""
    database = Database()
    gathering = Gathering(database.read_one, database.read_many)
    assert [gathering.lookup(name) for name in ("a", "b")] == [(None, FIRST_MOMENT)] * 2
    assert (database.alone, database.together) == (["a", "b"], [])


def test_what_waits_goes_together(threads: ThreadPoolExecutor) -> None:
    """In one read, a key that several ask about once."""
    busy = Busy(threads)
    calls = [busy.call(name) for name in ("a", "b", "b", "c")]
    busy.wait_for(4)
    busy.database.let_go()
    assert [call.result(PATIENCE_S) for call in calls] == [(None, FIRST_MOMENT)] * 4
    assert [sorted(one) for one in busy.database.together] == [["a", "b", "c"]]


def test_an_answer_is_of_a_read_that_began_after_its_call(threads: ThreadPoolExecutor) -> None:
    """A key that was revoked before the call is not answered by a read from before that."""
    busy = Busy(threads)
    busy.database.hold("early")
    early = busy.call("early")
    busy.wait_for(1)
    busy.database.let_go(FIRST[0])
    assert busy.database.begun.acquire(timeout=PATIENCE_S)
    busy.database.revision = 2  # acknowledged, while the read of the early one is on its way
    late = busy.call("late")
    busy.wait_for(1)
    busy.database.let_go("early")
    assert early.result(PATIENCE_S)[1].revision == 1
    assert late.result(PATIENCE_S)[1].revision == 2
    busy.database.let_go()


def test_groups_are_bounded(threads: ThreadPoolExecutor) -> None:
    """What is too much for one read waits for the next."""
    busy = Busy(threads)
    calls = [busy.call(f"key {number}") for number in range(MOST_TOGETHER + 1)]
    busy.wait_for(MOST_TOGETHER + 1)
    busy.database.let_go()
    for call in calls:
        call.result(PATIENCE_S)
    assert sorted(map(len, busy.database.together)) == [1, MOST_TOGETHER]


@pytest.mark.parametrize("is_away_at_first", [True, False])
def test_an_outage_is_told_to_everybody_who_waits(
    threads: ThreadPoolExecutor, *, is_away_at_first: bool
) -> None:
    """Nobody waits for one time limit after the other."""
    away = StoreLockedError("away")
    busy = Busy(threads, away if is_away_at_first else None)
    calls = [busy.call(name) for name in ("a", "b")]
    busy.wait_for(2)
    busy.database.error = away
    busy.database.let_go()
    for call in calls:
        with pytest.raises(StoreLockedError, match="away"):
            call.result(PATIENCE_S)
    assert busy.gathering.waiting == 0
    assert len(busy.database.together) == (not is_away_at_first)
    busy.database.error = None
    assert busy.gathering.lookup("next") == (None, FIRST_MOMENT)


def test_a_key_that_cannot_be_read_harms_no_other(threads: ThreadPoolExecutor) -> None:
    """Each of its group is read alone then."""
    busy = Busy(threads)
    database = busy.database

    def read_many(_key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        raise StoreDamagedError("a row cannot be read")

    busy.gathering = Gathering(database.read_one, read_many)
    for key_id in FIRST:
        busy.call(key_id)
    for _ in FIRST:
        assert database.begun.acquire(timeout=PATIENCE_S)
    calls = [busy.call(name) for name in ("a", "b")]
    busy.wait_for(2)
    database.let_go()
    assert [call.result(PATIENCE_S) for call in calls] == [(None, FIRST_MOMENT)] * 2
    assert {"a", "b"} <= set(database.alone)
