"""WatchInvalidations: sends every change, in order, to every open stream.

There may be a thousand streams, and none of them holds a thread or reads the store: one thread,
the hub's, reads it for all of them, so that neither database connections nor reads grow with the
watchers. A turn of the hub has a fixed order: take what has arrived, read what changed, send it,
judge the watchers that pinged, answer their pings. That order is the promise of a pong: its head
was read after its ping had arrived, and every change up to it was sent before it. Over a database
that a standby may replace, the head is read after a proof that began after the ping had arrived.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from keybearer._wire.limits import MAX_USAGE_ITEMS
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid, Overloaded, ServiceError, StreamEnded
from keybearer_service.domain.model import Invalidation, SubjectKind
from keybearer_service.domain.verdict import Caller
from keybearer_service.storage import News, Store, StoreError
from keybearer_service.usecases.access import question_reach_of
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.validation.usage import UsageRecorder
from keybearer_service.validation.validator import judge_caller_again
from keybearer_service.watch.feed import PAGE, ChangeFeed, GapError, WentBackError
from keybearer_service.watch.messages import Hello, Incoming, Outgoing, Ping, Pong, Reset, Subscribe
from keybearer_service.watch.usage_reports import UsageIngest, UsageReport

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_WATCHERS = 1000
"""Open streams of one server; beyond, RESOURCE_EXHAUSTED."""
SHARE_OF_A_KEY = 0.5
SHARE_OF_AN_ACCOUNT = 0.8
"""Of all open streams: what one key and one account may take, so that the others get in."""
MAX_QUEUED = 1000
"""Messages that wait for a slow watcher; beyond, its stream is cut off and it may resume."""
MAX_AGE_S = 900.0
AGE_SPREAD = 0.2
"""Streams end after 15 min ± 20 %, so that watchers spread over servers, and not all at once."""
GATHER_S = 0.01
"""How long a ping waits for others, so that one turn answers them all."""
SWEEP_S = 1.0
"""How often the hub looks for streams that are silent or old."""
SILENCE_S = 5.0
"""The credential of a stream that does not ping is judged this often all the same."""


class Proofs(Protocol):
    """Proves that the real database is read; a `ServerStore` does."""

    @property
    def proofs_begun(self) -> int:
        """How many proofs have begun."""
        ...

    def is_proven_since(self, begun: int) -> bool:
        """Return whether a proof has succeeded that began after that many."""
        ...


class WatcherSink(Protocol):
    """The way to one watcher. May be used by any thread, and none of it waits."""

    @property
    def queued(self) -> int:
        """How many messages wait to be sent."""
        ...

    def send(self, item: Outgoing) -> None:
        """Send a message, after those before it."""
        ...

    def end(self, error: Exception) -> None:
        """End the stream with an error, after what is to be sent before."""
        ...

    def cancel(self) -> None:
        """Cut the stream off, also while it is stuck in a send."""
        ...


class Watcher:
    """One open stream. Made by `WatchHub.open`."""

    def __init__(self, hub: "WatchHub", call: CallContext, sink: WatcherSink, age: float) -> None:
        self.caller = call.identity
        self.scope = question_reach_of(self.caller)
        self.rule = call.rule
        self.peer = call.peer
        """The address of the watcher: the context that its credential is judged in."""
        self.sink = sink
        self.ends_at = hub.clock.monotonic() + age
        self.judged_at = hub.clock.monotonic()
        self.position = 0
        """While the stream is behind: the last revision that was sent. Used by the hub alone."""
        self.waiting: list[int] = []
        """Pings that arrived while it was behind. Used by the hub alone."""
        self._hub = hub
        self._has_subscribed = False

    def take(self, message: Incoming) -> None:
        """Note a message of the watcher; the hub's thread serves it.

        Raises:
            FieldInvalid: It is out of place, or has too many items.
        """
        if self._has_subscribed == isinstance(message, Subscribe):
            raise FieldInvalid("subscribe", "must be the first message, and only the first")
        self._has_subscribed = True
        match message:
            case Subscribe():
                self._hub.subscribe(self, message)
            case Ping():
                self._hub.ping(self, message)
            case UsageReport():
                self._hub.report(self, message)

    def leave(self) -> None:
        """Leave the hub: the stream is over."""
        self._hub.leave(self)

    def sees(self, change: Invalidation) -> bool:
        """Return whether the watcher may see a change."""
        return change.kind is SubjectKind.EVERYTHING or self.scope.covers(change.account_id)


@dataclass(slots=True)
class _Turn:
    """What arrived since the last turn of the hub."""

    subscriptions: list[tuple[Watcher, Subscribe]]
    pings: list[tuple[Watcher, Ping]]
    jobs: "list[_Job]"


class _Job:
    """Work that the hub's thread does for another one, which waits for it."""

    def __init__(self, work: Callable[[], Caller]) -> None:
        self._work = work
        self._is_done = threading.Event()
        self._caller: Caller | None = None
        self._error: Exception | None = None

    def do(self) -> None:
        """Do the work, on the hub's thread."""
        try:
            self._caller = self._work()
        except Exception as error:  # noqa: BLE001 - the thread that waits raises it
            self._error = error
        self._is_done.set()

    def fail(self, error: Exception) -> None:
        """Have the thread that waits raise an error."""
        self._error = error
        self._is_done.set()

    def result(self) -> Caller:
        """Wait; return or raise what the work did.

        An error that stayed here would be held by its own traceback, and the call with it: while
        it lives, its stream counts among the 100 of its connection.
        """
        self._is_done.wait()
        if self._caller is None:
            raise self._taken_error()
        return self._caller

    def _taken_error(self) -> Exception:
        error, self._error = self._error, None
        return error or StreamEnded("the server stops")


class WatchHub:
    """Reads the changes for all streams."""

    def __init__(
        self,
        store: Store,
        usage: UsageRecorder,
        clock: Clock,
        entropy: Entropy,
        *,
        max_watchers: int = MAX_WATCHERS,
        proofs: Proofs | None = None,
    ) -> None:
        """Create the hub; `start` begins to serve streams.

        Args:
            store: What is watched.
            usage: Counts the uses that are reported.
            clock: The time.
            entropy: The randomness.
            max_watchers: The most streams that are open at a time.
            proofs: What proves that the real database is read; None where there is no other.
        """
        self._proofs = proofs
        self.clock = clock
        self._store = store
        self._feed = ChangeFeed(store)
        self._entropy = entropy
        self._max_watchers = max_watchers
        self._uses = UsageIngest(store, usage, clock)
        self._lock = threading.Lock()
        self._open: set[Watcher] = set()
        self._held: Counter[str] = Counter()
        """How many streams are open of each key and each account."""
        self._subscriptions: deque[tuple[Watcher, Subscribe]] = deque()
        self._pings: list[tuple[Watcher, Ping, int]] = []
        """With how many proofs had begun when they arrived."""
        self._left: deque[Watcher] = deque()
        self._jobs: deque[_Job] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        # Used by the hub's thread alone.
        self._live: set[Watcher] = set()
        self._behind: set[Watcher] = set()
        self._told: News | None = None
        """The news of the last turn; None without streams."""
        self._swept_at = clock.monotonic()
        self._in_trouble = False

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._open)

    @property
    def told_revision(self) -> int:
        """The revision up to which changes were sent; 0 without streams."""
        told = self._told
        return told.head if told and self._open else 0

    def start(self) -> None:
        """Begin to read."""
        self._uses.start()
        self._thread.start()

    def close(self) -> None:
        """End all streams, so that a server that stops does not wait for them."""
        with self._lock:
            self._closing = True
            streams = list(self._open)
        for watcher in streams:
            watcher.sink.end(StreamEnded("the server stops"))
        self._feed.wake()
        if self._thread.is_alive():
            self._thread.join()
        for job in _drained(self._jobs):
            job.fail(StreamEnded("the server stops"))
        self._uses.stop()

    def run(self, work: Callable[[], Caller]) -> Caller:
        """Return what `work` returns on the hub's thread, which has a connection to the store.

        Raises:
            StreamEnded: The server stops.
            Exception: What `work` raises.
        """
        job = _Job(work)
        with self._lock:
            if self._closing:
                raise StreamEnded("the server stops")
            self._jobs.append(job)
        self._feed.wake()
        return job.result()

    def open(self, call: CallContext, sink: WatcherSink) -> Watcher:
        """Begin a stream.

        Args:
            call: Its caller was authenticated and judged.
            sink: The way to the watcher.

        Raises:
            Overloaded: There are too many.
            StreamEnded: The server stops.
        """
        spread = (self._entropy.key_bytes(1)[0] / 255 * 2 - 1) * AGE_SPREAD
        watcher = Watcher(self, call, sink, MAX_AGE_S * (1 + spread))
        with self._lock:
            if self._closing:
                raise StreamEnded("the server stops")
            self._assert_room(watcher.caller)
            self._open.add(watcher)
            self._held.update((watcher.caller.key_id, watcher.caller.account_id))
        self._feed.wake()
        return watcher

    def _assert_room(self, caller: Caller) -> None:
        if len(self._open) >= self._max_watchers:
            raise Overloaded("too many watch streams; try again later")
        if self._held[caller.key_id] >= self._max_watchers * SHARE_OF_A_KEY:
            raise Overloaded("too many watch streams of this key; try again later")
        if self._held[caller.account_id] >= self._max_watchers * SHARE_OF_AN_ACCOUNT:
            raise Overloaded("too many watch streams of this account; try again later")

    def leave(self, watcher: Watcher) -> None:
        """Forget a stream that has ended."""
        with self._lock:
            if watcher in self._open:
                self._open.discard(watcher)
                # Removes what is no longer held, so that nothing is kept of keys that are gone.
                self._held -= Counter((watcher.caller.key_id, watcher.caller.account_id))
        self._left.append(watcher)
        if not self._open:
            # The hub is about to rest, and must not keep the call until it wakes up.
            self._feed.wake()

    def subscribe(self, watcher: Watcher, message: Subscribe) -> None:
        """Begin to send changes to a watcher, in the next turn."""
        self._subscriptions.append((watcher, message))
        self._feed.wake()

    def ping(self, watcher: Watcher, message: Ping) -> None:
        """Send the pong for a ping within GATHER_S.

        One turn for all the pings of that time costs little, and a pong that comes a little later
        only takes as much from its watcher's lease.
        """
        with self._lock:
            begun = 0 if self._proofs is None else self._proofs.proofs_begun
            self._pings.append((watcher, message, begun))
            is_first = len(self._pings) == 1
        if is_first:
            self._feed.wake()

    def report(self, watcher: Watcher, message: UsageReport) -> None:
        """Count the uses that a watcher reports.

        Raises:
            FieldInvalid: Too many items.
        """
        if message.size > MAX_USAGE_ITEMS:
            raise FieldInvalid("usage.items", f"at most {MAX_USAGE_ITEMS}")
        self._uses.put(watcher.caller, message)

    # --- the hub's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._wait()
            # Pings first: one whose subscription comes between the two is of the next turn.
            pings = self._due_pings()
            turn = _Turn(_drained(self._subscriptions), pings, _drained(self._jobs))
            try:
                self._serve(turn)
                self._log_state_change(None)
            except Exception as error:  # noqa: BLE001 - the hub goes on after an unforeseen error
                self._log_state_change(error)
                # Without the store there is no pong, and nobody is left waiting.
                for watcher, _ in turn.subscriptions:
                    watcher.sink.end(error)

    def _due_pings(self) -> list[tuple[Watcher, Ping]]:
        """Return the pings that can be answered: since they came, the database has been proved."""
        with self._lock:
            pings, self._pings = self._pings, []
            due = []
            for watcher, ping, begun in pings:
                if self._proofs is None or self._proofs.is_proven_since(begun):
                    due.append((watcher, ping))
                else:
                    self._pings.append((watcher, ping, begun))
        return due

    def _wait(self) -> None:
        is_unfinished = self._behind or self._in_trouble
        if not self._pings and not is_unfinished:
            # Without streams there is nobody to send to, and whatever arrives wakes the hub.
            self._feed.wait(SWEEP_S if self._open else None)
        if self._pings or is_unfinished:
            self._feed.wait(GATHER_S)

    def _serve(self, turn: _Turn) -> None:
        for job in turn.jobs:
            job.do()
        for watcher in _drained(self._left):
            self._live.discard(watcher)
            self._behind.discard(watcher)
        if not self._open:
            self._told = None
            return
        news = self._send_changes()
        for watcher, subscription in turn.subscriptions:
            if watcher in self._open:
                self._begin(news, watcher, subscription)
        for watcher in list(self._behind):
            self._catch_up(news, watcher)
        self._judge({watcher for watcher, _ in turn.pings})
        self._answer(turn.pings, news.head)
        self._sweep()

    def _send_changes(self) -> News:
        """Send what is new to the live streams; return the news of this turn."""
        told = self._told if self._live else None
        try:
            news = self._feed.head() if told is None else self._feed.since(told.epoch, told.head)
        except GapError as error:
            # So late that changes were deleted meanwhile, or the history is another one: these
            # watchers have to start afresh.
            if isinstance(error, WentBackError):
                # Verdicts that are kept by now may be wrong: only a new epoch ends them all.
                log.critical("revisions_went_back")
            log.warning("watch_history_broken", streams=len(self._live))
            self._end_all(self._live, StreamEnded("the stream fell behind"))
            news = self._feed.head()
        # Advance only after the read succeeded, so that a failed read is repeated next turn; and
        # before anything is sent, so that nothing is ever sent twice.
        self._told = news._replace(changes=())
        for watcher in list(self._live) if news.changes else ():
            for change in news.changes:
                if watcher.sees(change):
                    watcher.sink.send(change)
            self._drop_if_stuck(watcher)
        return news

    def _answer(self, pings: Iterable[tuple[Watcher, Ping]], head: int) -> None:
        for watcher, ping in pings:
            if watcher in self._live:
                watcher.sink.send(Pong(ping.sent_at, head))
            elif watcher in self._behind:
                watcher.waiting.append(ping.sent_at)
            self._drop_if_stuck(watcher)

    def _drop_if_stuck(self, watcher: Watcher) -> None:
        """Cut off a watcher that does not read; it may resume by revision."""
        queued = watcher.sink.queued + len(watcher.waiting)
        if queued > MAX_QUEUED:
            log.warning("watcher_dropped", key_id=watcher.caller.key_id, queued=queued)
            self._live.discard(watcher)
            self._behind.discard(watcher)
            watcher.sink.cancel()

    def _begin(self, news: News, watcher: Watcher, wanted: Subscribe) -> None:
        if not wanted.epoch:
            watcher.sink.send(Hello(news.epoch, news.head))
        elif wanted.epoch == news.epoch and news.continues(wanted.from_revision):
            watcher.sink.send(Hello(news.epoch, news.head))
            if wanted.from_revision < news.head:
                watcher.position = wanted.from_revision
                self._behind.add(watcher)
                return
        else:
            watcher.sink.send(Reset(news.epoch, news.head))
        self._live.add(watcher)

    def _catch_up(self, news: News, watcher: Watcher) -> None:
        """Send a resumed stream the next part of what it missed, as fast as its watcher reads."""
        if watcher.sink.queued > MAX_QUEUED - PAGE:
            return
        limit = min(PAGE, news.head - watcher.position)
        try:
            missed = self._feed.page(news.epoch, watcher.position, limit).changes
        except GapError:
            self._end_all({watcher}, StreamEnded("the stream fell behind"))
            return
        for change in missed:
            if watcher.sees(change):
                watcher.sink.send(change)
        watcher.position += len(missed)
        if watcher.position == news.head:
            self._behind.discard(watcher)
            self._live.add(watcher)
            for sent_at in watcher.waiting:
                watcher.sink.send(Pong(sent_at, news.head))
            watcher.waiting.clear()
        else:
            self._feed.wake()

    def _judge(self, watchers: AbstractSet[Watcher]) -> None:
        """Judge the credentials of watchers again, and end the streams of those who may not."""
        if not watchers:
            return
        monotonic, now = self.clock.monotonic(), self.clock.now()
        records, _ = self._store.lookup_many(list({one.caller.key_id for one in watchers}))
        verdicts: dict[tuple[str, int], ServiceError | None] = {}
        for watcher in watchers:
            watcher.judged_at = monotonic
            caller = watcher.caller
            secret = (caller.key_id, caller.match.secret_version)
            if secret not in verdicts:
                try:
                    judge_caller_again(
                        records.get(caller.key_id), caller, watcher.rule, now, watcher
                    )
                    verdicts[secret] = None
                except ServiceError as error:
                    verdicts[secret] = error
            denial = verdicts[secret]
            if denial is not None:
                self._end_all({watcher}, denial)

    def _sweep(self) -> None:
        """Once a second, judge the silent watchers and end the streams that are old."""
        now = self.clock.monotonic()
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        with self._lock:
            streams = list(self._open)
        self._judge({one for one in streams if now - one.judged_at >= SILENCE_S})
        old = [one for one in streams if now >= one.ends_at]
        self._end_all(old, StreamEnded("the stream is old enough; resume"))

    def _end_all(self, watchers: Iterable[Watcher], error: ServiceError) -> None:
        for watcher in list(watchers):
            self._live.discard(watcher)
            self._behind.discard(watcher)
            watcher.sink.end(error)

    def _log_state_change(self, error: Exception | None) -> None:
        """Log when trouble begins and when it ends, not in every turn."""
        if error is not None and not self._in_trouble:
            foreseen = isinstance(error, StoreError)
            log.error(
                "watch_hub_stands", cause=type(error).__name__, exc_info=None if foreseen else error
            )
        elif error is None and self._in_trouble:
            log.warning("watch_hub_runs_again")
        self._in_trouble = error is not None


def _drained(inbox: deque[T]) -> list[T]:
    """Remove and return what is there by now; others go on adding."""
    return [inbox.popleft() for _ in range(len(inbox))]
