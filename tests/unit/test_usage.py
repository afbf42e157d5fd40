"""Counting uses: in memory, behind everybody's back, without ever failing anybody."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from fakes import START, at
from keybearer.access import AccessRule
from keybearer.models import Presented
from keybearer_service.domain.clock import DAY, MINUTE, SECOND, Micros
from keybearer_service.domain.model import SecretId, Use
from keybearer_service.domain.verdict import Caller, Match
from keybearer_service.storage import StoreFullError, StoreLockedError, StoreReadOnlyError
from keybearer_service.storage.sqlite import SqliteStore
from keybearer_service.validation.callers import SharedCallers
from keybearer_service.validation.usage import UsageRecorder
from samples import EVERYWHERE, add_keys, fill, sample_id, sample_key

KEY = sample_id("key")
WAIT_S = 10.0


class WatchedStore:
    """A store that tells when uses were written, and refuses them when told to."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.refusal: Exception | None = None
        self.claim_refusal: Exception | None = None
        self.batches: list[Sequence[Use]] = []
        self.written = threading.Event()
        self.refused = threading.Event()

    def add_uses(self, uses: Sequence[Use]) -> None:
        if self.refusal is not None:
            self.refused.set()
            raise self.refusal
        self._store.add_uses(uses)
        self.batches.append(uses)
        self.written.set()

    def claim_uses(self, secrets: Sequence[SecretId], now: Micros) -> bool:
        if self.claim_refusal is not None:
            raise self.claim_refusal
        return self._store.claim_uses(secrets, now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WatchedStore]:
    """A store with one key."""
    opened = SqliteStore.create(tmp_path / "store.db")
    fill(opened)
    yield WatchedStore(opened)
    opened.close()


@pytest.fixture
def recorder(store: WatchedStore) -> Iterator[UsageRecorder]:
    """A recorder that writes when it is told or woken, and not of itself."""
    made = UsageRecorder(store, flush_interval_s=3600)
    yield made
    store.refusal = None
    made.stop()


def match(store: WatchedStore, key: str = "key", *, is_current: bool = True) -> Match:
    """Match a key as a validation does."""
    record, _ = store.lookup(sample_id(key))
    assert record is not None
    return Match(record, record.secret_version, None, is_current=is_current)


def counted(store: WatchedStore, key: str = "key") -> tuple[int, int | None]:
    """Return the count and the time that are stored."""
    with store.read() as reader:
        found = reader.api_key(EVERYWHERE, sample_id(key))
    assert found is not None
    return found.use_count, found.last_used_time


def test_uses_are_added_up_and_written_together(
    store: WatchedStore, recorder: UsageRecorder
) -> None:
    """Three uses of one secret are one item with the newest time."""
    for moment in (at(2), at(9), at(5)):
        recorder.add(match(store), moment)
    recorder.flush()
    assert counted(store) == (3, at(9))
    assert [len(batch) for batch in store.batches] == [1]


def test_nothing_is_written_twice(store: WatchedStore, recorder: UsageRecorder) -> None:
    """A second flush has nothing left."""
    recorder.add(match(store), START)
    recorder.flush()
    recorder.flush()
    assert counted(store) == (1, START)


def test_uses_of_each_secret_are_apart(store: WatchedStore, recorder: UsageRecorder) -> None:
    """The old secret of a rotation is counted by itself."""
    recorder.add_many(KEY, 1, START, 2)
    recorder.add_many(KEY, 2, START, 3)
    recorder.flush()
    assert [sorted(batch) for batch in store.batches] == [
        [Use(KEY, 1, START, 2), Use(KEY, 2, START, 3)]
    ]


def test_what_the_store_refuses_is_kept_for_later(
    store: WatchedStore, recorder: UsageRecorder
) -> None:
    """A store that is locked for a while costs no count, and nobody hears of it."""
    recorder.add(match(store), START)
    store.refusal = StoreLockedError("locked")
    recorder.flush()
    recorder.add(match(store), at(1))
    store.refusal = None
    recorder.flush()
    assert counted(store) == (2, at(1))


def test_memory_is_bounded(store: WatchedStore) -> None:
    """Beyond the limit new secrets are not counted, while known ones are."""
    recorder = UsageRecorder(store, max_pending=1)
    recorder.add_many(KEY, 1, START, 1)
    recorder.add_many("other", 1, START, 1)
    recorder.add_many(KEY, 1, START, 1)
    recorder.flush()
    assert [list(batch) for batch in store.batches] == [[Use(KEY, 1, START, 2)]]


def test_what_is_noted_and_not_counted_yet_is_bounded_too(store: WatchedStore) -> None:
    """Should nobody come to count, the newest uses are kept."""
    recorder = UsageRecorder(store, max_notes=2)
    for moment in (START, at(1), at(2)):
        recorder.add(match(store), moment)
    recorder.flush()
    assert counted(store) == (2, at(2))


def test_what_waits_to_be_written_is_told_by_secrets(
    store: WatchedStore, recorder: UsageRecorder
) -> None:
    """Two uses of one secret are one, whether counted already or only noted."""
    recorder.add(match(store), START)
    assert recorder.pending == 1
    recorder.add(match(store), START)
    recorder.add_many("other", 1, START, 1)
    assert recorder.pending == 2
    recorder.flush()
    assert recorder.pending == 0


def test_many_uses_are_written_in_batches(store: WatchedStore) -> None:
    """No mutation waits long behind them, and none is lost."""
    recorder = UsageRecorder(store, batch=3)
    keys = [sample_key(f"k{n}x") for n in range(8)]
    add_keys(store, *keys)
    for key in keys:
        recorder.add_many(key.id, 1, START, 1)
    recorder.flush()
    assert [len(batch) for batch in store.batches] == [3, 3, 2]


def test_the_first_use_of_a_young_secret_is_written_at_once(
    store: WatchedStore, recorder: UsageRecorder
) -> None:
    """It must forbid a replay, so it does not wait for the interval."""
    recorder.start()
    recorder.add(match(store), at(10 * MINUTE - 1))
    assert store.written.wait(WAIT_S)
    record, _ = store.lookup(KEY)
    assert record is not None
    assert record.secret_used


@pytest.mark.parametrize("case", ["old", "known", "overlap"])
def test_other_uses_wait_for_the_interval(
    store: WatchedStore, recorder: UsageRecorder, case: str
) -> None:
    """An old secret, a use that is known, and the old one of a rotation wake nobody."""
    add_keys(store, sample_key("used", secret_used=True))
    key = "used" if case == "known" else "key"
    now = at(11 * MINUTE if case == "old" else SECOND)
    recorder.start()
    recorder.add(match(store, key, is_current=case != "overlap"), now)
    assert not store.written.wait(0.2)
    assert recorder.pending == 1


def test_the_interval_writes_what_was_counted(store: WatchedStore) -> None:
    """Without any wake-up the writer comes round."""
    recorder = UsageRecorder(store, flush_interval_s=0.01)
    recorder.start()
    recorder.add_many(KEY, 1, at(DAY), 4)
    assert store.written.wait(WAIT_S)
    recorder.stop()
    assert counted(store) == (4, at(DAY))


def test_stopping_writes_what_is_left(store: WatchedStore, recorder: UsageRecorder) -> None:
    """A shutdown loses no count."""
    recorder.start()
    recorder.add_many(KEY, 1, at(DAY), 4)
    recorder.stop()
    assert counted(store) == (4, at(DAY))


def test_stopping_writes_also_when_no_writer_was_started(
    store: WatchedStore, recorder: UsageRecorder
) -> None:
    """As for a local command, or a writer that has just looked for the last time."""
    recorder.add_many(KEY, 1, at(DAY), 4)
    recorder.stop()
    assert counted(store) == (4, at(DAY))


def test_the_writer_outlives_what_it_cannot_foresee(store: WatchedStore) -> None:
    """An error of another kind ends neither the thread nor a caller."""
    recorder = UsageRecorder(store, flush_interval_s=0.01)
    store.refusal = RuntimeError("unforeseen")
    recorder.start()
    recorder.add_many(KEY, 1, START, 1)
    assert store.refused.wait(WAIT_S)
    store.refusal = None
    recorder.add_many(KEY, 1, START, 1)
    assert store.written.wait(WAIT_S)
    recorder.stop()


@pytest.mark.parametrize("error", [StoreFullError("full"), StoreReadOnlyError("read-only")])
def test_a_store_without_room_stops_no_first_use(
    store: WatchedStore, recorder: UsageRecorder, error: Exception
) -> None:
    """Nothing can be issued in it either; the use counts, and is written once there is room."""
    store.claim_refusal = error
    store.refusal = error
    recorder.start()
    assert recorder.add(match(store), START)
    assert store.refused.wait(WAIT_S)
    store.refusal = None
    assert store.written.wait(WAIT_S)
    assert counted(store) == (1, START)


def test_a_busy_store_stops_a_first_use(store: WatchedStore, recorder: UsageRecorder) -> None:
    """It may be issuing this very secret again: nothing is answered, and nothing is counted."""
    store.claim_refusal = StoreLockedError("busy")
    with pytest.raises(StoreLockedError):
        recorder.add(match(store), START)
    recorder.flush()
    assert counted(store) == (0, None)
    assert recorder.add(match(store), at(12 * MINUTE))  # no longer young


def test_the_uses_of_a_batch_are_claimed_at_once_and_count_all_or_none(
    store: WatchedStore, recorder: UsageRecorder
) -> None:
    """One secret that was issued again meanwhile has the whole batch judged again."""
    add_keys(store, sample_key("other"))
    matches = [match(store), match(store, "other")]
    stale = matches[1]._replace(secret_version=7)
    assert not recorder.add_all([matches[0], stale], START)
    recorder.flush()
    assert counted(store) == (0, None)
    assert recorder.add_all(matches, START)
    recorder.flush()
    assert counted(store) == counted(store, "other") == (1, START)


def test_callers_that_share_a_thread_are_counted_on_their_own() -> None:
    """A claim may wait for the store, and the thread that all of them share must not."""
    seen: list[str] = []

    class Known:
        def authenticate(self, _presented: Presented) -> Caller:
            raise AssertionError

        def identify(self, _presented: Presented) -> Caller:
            seen.append(threading.current_thread().name)
            return cast("Caller", object())

        def count(self, _caller: Caller) -> bool:
            seen.append(threading.current_thread().name)
            return len(seen) > 2  # the first time it was issued again meanwhile

    class Call:
        rule = AccessRule()
        caller: Caller | None = None

    with ThreadPoolExecutor(1, thread_name_prefix="shared") as shared:
        callers = SharedCallers(Known(), lambda work: shared.submit(work).result())
        with suppress(AttributeError):  # the caller is none that a rule could judge
            callers.admit(Call(), Presented("token"))
    here = threading.current_thread().name
    assert seen == ["shared_0", here, "shared_0", here]
