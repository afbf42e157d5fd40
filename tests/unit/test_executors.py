"""The threads that calls run on."""

import threading
from collections.abc import Iterator

import pytest

from keybearer_service.net.bounds import CallBounds
from keybearer_service.rpc.executors import CallExecutor

WAIT_S = 10.0


@pytest.fixture
def pool() -> Iterator[CallExecutor]:
    """A pool of one thread."""
    made = CallExecutor(CallBounds(threads=1, queued=3), "test")
    yield made
    made.shutdown()


def occupy(pool: CallExecutor) -> threading.Event:
    """Have a thread of the pool wait for the event that is answered."""
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        over.wait(WAIT_S)

    pool.submit(work)
    assert begun.wait(WAIT_S)
    return over


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_a_thread_outlives_its_work(pool: CallExecutor, error: type[BaseException]) -> None:
    """What a call raises costs the pool no thread."""

    def fail() -> None:
        raise error

    done = threading.Event()
    pool.submit(fail)
    pool.submit(done.set)
    assert done.wait(WAIT_S)
    assert pool.threads == 1


def test_no_more_threads_than_needed(pool: CallExecutor) -> None:
    """Calls beyond the number of threads wait, and run in the order they came."""
    over, order = occupy(pool), list[int]()
    for number in range(3):
        pool.submit(order.append, number)
    assert pool.queued == 3
    over.set()
    pool.shutdown()
    assert order == [0, 1, 2]


def test_there_is_room_until_the_queue_is_full(pool: CallExecutor) -> None:
    """What is worked on takes no room."""
    over = occupy(pool)
    room = []
    for _ in range(4):
        room.append(pool.has_room)
        pool.submit(int)
    over.set()
    assert room == [True, True, True, False]


def test_stand_ins_take_what_waits(pool: CallExecutor) -> None:
    """A thread that is made up for does not hold up the calls behind it."""
    over, done = occupy(pool), threading.Event()
    pool.submit(done.set)
    pool.make_up_for(1)
    assert done.wait(WAIT_S)
    over.set()


def test_a_pool_that_was_shut_down_takes_nothing(pool: CallExecutor) -> None:
    """Neither what comes later nor what still waits is worked on."""
    over, done = occupy(pool), threading.Event()
    pool.submit(done.set)
    pool.shutdown(wait=False, cancel_futures=True)
    over.set()
    pool.shutdown()
    assert not done.is_set()
    with pytest.raises(RuntimeError):
        pool.submit(done.set)
