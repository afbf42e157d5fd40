"""Nodes over one database: who is there, what the clocks say, and which peppers are where."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import postgres_server
from keybearer_service.domain.clock import SECOND, Micros, SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.model import Pepper
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import StoreLockedError, StoreUnusableError
from postgres_proxy import Proxy
from samples import add_keys, fill, sample_id, sample_key

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from keybearer_service.storage.postgres import PostgresStore

PATIENCE_S = 60.0
KEY = sample_id("key")


class SetClock(SystemClock):
    """The clock of the machine, set differently."""

    def __init__(self) -> None:
        self.ahead = 0
        """Microseconds."""
        self.passed_s = 0.0

    def now(self) -> Micros:
        return Micros(super().now() + self.ahead)

    def monotonic(self) -> float:
        return super().monotonic() + self.passed_s


@contextmanager
def opened(url: DatabaseUrl, clock: SystemClock | None = None) -> Iterator[PostgresStore]:
    """Open a store, and close it after the block."""
    store = PostgresStore(url, clock=clock or SystemClock(), entropy=SystemEntropy())
    try:
        yield store
    finally:
        store.close()


def holds_none(_pepper: Pepper) -> bool:
    """Have no pepper."""
    return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the beats of a node bring about."""
    pause = threading.Event()
    for _ in range(int(PATIENCE_S / 0.05)):
        if condition():
            return
        pause.wait(0.05)
    pytest.fail("it never came about")


def is_refused(work: Callable[[], Any]) -> bool:
    """Return whether the store answers nothing."""
    try:
        work()
    except StoreLockedError:
        return True
    return False


def test_nodes_know_of_each_other_until_they_leave(url: DatabaseUrl) -> None:
    """By their names; one that only opened the store is none."""
    with opened(url) as first, opened(url):
        first.join("first", holds_none)
        with opened(url) as second:
            second.join("second", holds_none)
            assert sorted(one.name for one in first.nodes()) == ["first", "second"]
        assert [one.name for one in first.nodes()] == ["first"]


def test_a_node_that_died_is_none_after_a_while(url: DatabaseUrl) -> None:
    """Its row stays, and counts no more."""
    with opened(url) as store:
        store.join("lives", holds_none)
        postgres_server.execute(
            url.text, "INSERT INTO nodes VALUES ('x', 'died', now() - interval '11 seconds', '')"
        )
        assert [one.name for one in store.nodes()] == ["lives"]


@pytest.mark.parametrize(
    ("ahead_s", "says"), [(50, r"(4\d|50)\.\d s ahead of"), (-50, r"(4\d|50)\.\d s behind")]
)
def test_a_node_whose_clock_is_off_does_not_join(url: DatabaseUrl, ahead_s: int, says: str) -> None:
    """It is told which way, and by how much at least."""
    clock = SetClock()
    clock.ahead = ahead_s * SECOND
    with opened(url, clock) as store, pytest.raises(StoreUnusableError, match=says):
        store.join("node", holds_none)


def test_a_clock_that_is_a_little_off_is_no_harm(url: DatabaseUrl) -> None:
    """It is shown."""
    clock = SetClock()
    clock.ahead = -SECOND // 2
    with opened(url, clock) as store:
        fill(store)
        store.join("node", holds_none)
        assert 0 < store.clock_offset_s <= 0.5
        assert store.lookup(KEY)[0] is not None


def test_a_node_whose_clock_steps_answers_nothing_until_it_is_right(url: DatabaseUrl) -> None:
    """Neither reads nor writes: a wrong clock lets expired keys in."""
    clock = SetClock()
    with opened(url, clock) as store:
        fill(store)
        store.join("node", holds_none)
        clock.ahead = 3600 * SECOND
        until(lambda: is_refused(lambda: store.lookup(KEY)))
        with pytest.raises(StoreLockedError, match="clock"):
            store.lookup_many([KEY])
        with pytest.raises(StoreLockedError, match="clock"):
            store.changes_since(0, 1)
        with pytest.raises(StoreLockedError, match="clock"):
            add_keys(store, sample_key("never"))
        clock.ahead = 0
        until(lambda: not is_refused(lambda: store.lookup(KEY)))


def test_a_node_that_cannot_compare_its_clock_answers_nothing_after_a_while(
    url: DatabaseUrl,
) -> None:
    """Whoever cannot tell the time judges nothing."""
    clock = SetClock()
    with Proxy(url) as proxy, opened(proxy.url, clock) as store:
        fill(store)
        store.join("node", holds_none)
        proxy.freeze()
        clock.passed_s += 11
        until(lambda: is_refused(lambda: store.lookup(KEY)))
        with pytest.raises(StoreLockedError, match="could not be read for a while"):
            store.lookup(KEY)
        proxy.thaw()
        until(lambda: not is_refused(lambda: store.lookup(KEY)))


def test_a_node_tells_which_announced_peppers_it_has(url: DatabaseUrl) -> None:
    """As soon as it has them; active ones are not its news."""
    has: set[str] = set()
    with opened(url) as store:
        fill(store)
        with store.write() as tx:
            for name in ("one", "two"):
                tx.insert_pepper(
                    Pepper(id=name, check=b"c", create_time=Micros(1), is_announced=True)
                )
        store.join("node", lambda pepper: pepper.check == b"c" and pepper.id in has)
        assert [one.peppers for one in store.nodes()] == [frozenset()]
        has.add("two")
        until(lambda: [one.peppers for one in store.nodes()] == [{"two"}])
        with store.write() as tx:
            tx.activate_pepper("two")
        until(lambda: [one.peppers for one in store.nodes()] == [frozenset()])
