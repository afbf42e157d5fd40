"""WatchInvalidations: what changed, told in order to every open stream.

There may be a thousand streams, and none of them holds a thread or touches the store: one thread,
the hub's, reads it for all of them, so that neither database connections nor reads grow with the
watchers. In each turn it reads one snapshot, sends the new changes to the streams, and only then
answers the pings that had arrived before the turn began. That order is the promise of a pong:
nothing up to its head, read after its ping had arrived, is missing before it.
"""

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid, Overloaded, ServiceError, StreamEnded
from keybearer_service.domain.model import Installation, Invalidation, SubjectKind
from keybearer_service.domain.verdict import Caller, TokenRecord
from keybearer_service.storage import Reader, Store, StoreError
from keybearer_service.usecases.access import question_reach_of
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.validation.usage import UsageRecorder
from keybearer_service.validation.validator import Lookup, Validator, judge_caller_again
from keybearer_service.watch.messages import Hello, Incoming, Outgoing, Ping, Pong, Reset, Subscribe
from keybearer_service.watch.usage_reports import UsageIngest, UsageReport

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_WATCHERS = 1000
"""Open streams in all; beyond, RESOURCE_EXHAUSTED."""
MAX_QUEUED = 1000
"""Messages that wait for a slow watcher; beyond, its stream is cut and it resumes by revision."""
MAX_USAGE_ITEMS = 500
"""In one message: section 4 of the wire contract."""
MAX_AGE_S = 900.0
AGE_SPREAD = 0.2
"""Streams end after 15 min ± 20 %: watchers spread over servers, and do not all move at once."""
POLL_S = 0.01
"""How long a commit of another process may go unnoticed, and a ping unanswered. Commits of this
process wake the hub."""
SILENCE_S = 5.0
"""The credential of a stream that does not ping is judged this often all the same."""
_PAGE = 500


class _ChangedError(Exception):
    """Something was committed since the last turn."""


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
        """Take who watches, and the way to them."""
        self.caller = call.identity
        self.scope = question_reach_of(self.caller)
        self.rule = call.rule
        self.sink = sink
        self.ends_at = hub.clock.monotonic() + age
        self.judged_at = hub.clock.monotonic()
        self.position: int | None = None
        """While the stream is behind: the last revision that was told. The hub's own."""
        self.waiting: list[int] = []
        """Pings that arrived while it was behind. The hub's own."""
        self._hub = hub
        self._has_subscribed = False

    def take(self, message: Incoming) -> None:
        """Take a message of the watcher's. It is only noted: the thread is the transport's.

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
        """Be forgotten: the stream is over."""
        self._hub.leave(self)

    def sees(self, change: Invalidation) -> bool:
        """Tell whether a change is any business of the watcher."""
        return change.kind is SubjectKind.EVERYTHING or self.scope.covers(change.account_id)


@dataclass(slots=True)
class _Turn:
    """What arrived since the last turn of the hub."""

    subscriptions: list[tuple[Watcher, Subscribe]]
    pings: list[tuple[Watcher, Ping]]
    credentials: list[tuple[str, Future[Caller]]]


class WatchHub:
    """Reads the change table for all streams."""

    def __init__(
        self,
        store: Store,
        validator: Validator,
        usage: UsageRecorder,
        clock: Clock,
        entropy: Entropy,
        *,
        max_watchers: int = MAX_WATCHERS,
    ) -> None:
        """Take what streams are served from. `start` begins to serve them."""
        self.clock = clock
        self._store = store
        self._validator = validator
        self._entropy = entropy
        self._max_watchers = max_watchers
        self._uses = UsageIngest(store, usage, clock)
        self._lock = threading.Lock()
        self._open: set[Watcher] = set()
        self._subscriptions: deque[tuple[Watcher, Subscribe]] = deque()
        self._pings: deque[tuple[Watcher, Ping]] = deque()
        self._left: deque[Watcher] = deque()
        self._credentials: deque[tuple[str, Future[Caller]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        # The hub's thread alone touches these.
        self._live: set[Watcher] = set()
        self._behind: set[Watcher] = set()
        self._told: tuple[str, int] | None = None
        self._looked_after = clock.monotonic()
        self._in_trouble = False

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._open)

    @property
    def told_revision(self) -> int:
        """Up to which revision the streams were told; 0 when there are none."""
        return self._told[1] if self._told and self._open else 0

    def start(self) -> None:
        """Begin to read."""
        self._uses.start()
        self._thread.start()

    def close(self) -> None:
        """End all streams, so that a server that stops need not wait for them."""
        with self._lock:
            self._closing = True
            streams = list(self._open)
        for watcher in streams:
            watcher.sink.end(StreamEnded("the server stops"))
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        for _, caller in _drained(self._credentials):
            caller.set_exception(StreamEnded("the server stops"))
        self._uses.stop()

    def wake(self) -> None:
        """Say that something was committed."""
        self._wake.set()

    def authenticate(self, token: str) -> Caller:
        """Answer who opens a stream; as `Validator.authenticate`, without a database connection.

        Raises:
            CredentialsExpired, CredentialsInvalid, StoreError, StoreUnavailable: As there.
        """
        caller: Future[Caller] = Future()
        with self._lock:
            if self._closing:
                raise StreamEnded("the server stops")
            self._credentials.append((token, caller))
        self._wake.set()
        return caller.result()

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
            if len(self._open) >= self._max_watchers:
                raise Overloaded("too many watch streams; try again later")
            self._open.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Forget a stream that has ended."""
        with self._lock:
            self._open.discard(watcher)
        self._left.append(watcher)
        if not self._open:
            # The hub is about to rest, and is not to keep the call meanwhile.
            self._wake.set()

    def subscribe(self, watcher: Watcher, message: Subscribe) -> None:
        """Start to tell a watcher of changes."""
        self._subscriptions.append((watcher, message))
        self._wake.set()

    def ping(self, watcher: Watcher, message: Ping) -> None:
        """Answer a ping, in the next turn.

        It does not wake the hub: one turn for all the pings of POLL_S costs little, and a pong that
        comes a little later only takes as much from its watcher's lease.
        """
        self._pings.append((watcher, message))

    def report(self, watcher: Watcher, message: UsageReport) -> None:
        """Count what a watcher answered from its cache.

        Raises:
            FieldInvalid: Too many items.
        """
        if message.size > MAX_USAGE_ITEMS:
            raise FieldInvalid("usage.items", f"at most {MAX_USAGE_ITEMS}")
        self._uses.put(watcher.caller, message)

    # --- the hub's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            # Without streams nobody is to be told anything, and whatever comes wakes the hub.
            self._wake.wait(POLL_S if self._open else None)
            self._wake.clear()
            # Pings first: one whose subscription comes between the two lines is of the next turn.
            pings = _drained(self._pings)
            turn = _Turn(_drained(self._subscriptions), pings, _drained(self._credentials))
            try:
                self._serve(turn)
                self._log_state_change(None)
            except Exception as error:  # noqa: BLE001 - the hub outlives what it cannot foresee
                self._log_state_change(error)
                # No store, no pong; and nobody waits in vain.
                for watcher, _ in turn.subscriptions:
                    watcher.sink.end(error)
                for _, caller in turn.credentials:
                    if not caller.done():
                        caller.set_exception(error)

    def _serve(self, turn: _Turn) -> None:
        for token, caller in turn.credentials:
            try:
                caller.set_result(self._validator.authenticate(token))
            except Exception as error:  # noqa: BLE001 - the thread that asked raises it
                caller.set_exception(error)
        for watcher in _drained(self._left):
            self._live.discard(watcher)
            self._behind.discard(watcher)
        if turn.subscriptions or self._behind or not self._answer_unchanged(turn.pings):
            self._answer_in_snapshot(turn)

    def _answer_unchanged(self, pings: Sequence[tuple[Watcher, Ping]]) -> bool:
        """Answer pings when nothing was committed since the last turn; tell whether that is so.

        Most turns are like this, and a transaction would cost more than all else in them. Each
        statement tells the revision of its own snapshot: as long as it is the one that was told,
        what is read is of one moment, and no stream has missed anything.
        """
        if self._told is None:
            return False
        head = self._told[1]

        def lookup(key_id: str) -> TokenRecord | None:
            record, revision = self._store.lookup(key_id)
            if revision != head:
                raise _ChangedError
            return record

        try:
            if pings:
                self._judge(lookup, {watcher for watcher, _ in pings})
            else:
                lookup("")
            self._sweep(lookup)
        except _ChangedError:
            return False
        self._answer(pings, head)
        return True

    def _answer_in_snapshot(self, turn: _Turn) -> None:
        with self._store.read() as reader:
            installation = reader.installation()
            self._tell(reader, installation)
            for watcher, subscription in turn.subscriptions:
                if watcher in self._open:
                    self._begin(reader, installation, watcher, subscription)
            for watcher in list(self._behind):
                self._catch_up(reader, installation.revision, watcher)
            self._judge(reader.lookup, {watcher for watcher, _ in turn.pings})
            self._answer(turn.pings, installation.revision)
            self._sweep(reader.lookup)

    def _answer(self, pings: Iterable[tuple[Watcher, Ping]], head: int) -> None:
        for watcher, ping in pings:
            if watcher in self._live:
                watcher.sink.send(Pong(ping.sent_at, head))
            elif watcher in self._behind:
                watcher.waiting.append(ping.sent_at)
            self._drop_if_stuck(watcher)

    def _tell(self, reader: Reader, installation: Installation) -> None:
        """Tell the live streams what is new."""
        epoch, head = installation.epoch, installation.revision
        changes: list[Invalidation] | None = []
        if self._told is not None and self._live:
            changes = _between(reader, self._told[1], head) if self._told[0] == epoch else None
        # Not before they were read: what a store that failed has not told is told later.
        self._told = (epoch, head)
        if changes is None:
            # So late that the change table begins later: they are to start afresh.
            self._end_all(self._live, StreamEnded("the stream fell behind"))
            return
        for watcher in list(self._live) if changes else ():
            for change in changes:
                if watcher.sees(change):
                    watcher.sink.send(change)
            self._drop_if_stuck(watcher)

    def _drop_if_stuck(self, watcher: Watcher) -> None:
        """Cut off a watcher that does not read; it may resume by revision."""
        queued = watcher.sink.queued + len(watcher.waiting)
        if queued > MAX_QUEUED:
            log.warning("watcher_dropped", key_id=watcher.caller.key_id, queued=queued)
            self._live.discard(watcher)
            self._behind.discard(watcher)
            watcher.sink.cancel()

    def _begin(
        self, reader: Reader, installation: Installation, watcher: Watcher, wanted: Subscribe
    ) -> None:
        epoch, head = installation.epoch, installation.revision
        self._live.add(watcher)
        if not wanted.epoch:
            watcher.sink.send(Hello(epoch, head))
        elif wanted.epoch == epoch and reader.oldest_change() - 1 <= wanted.from_revision <= head:
            watcher.sink.send(Hello(epoch, head))
            if wanted.from_revision < head:
                self._live.discard(watcher)
                self._behind.add(watcher)
                watcher.position = wanted.from_revision
        else:
            watcher.sink.send(Reset(epoch, head))

    def _catch_up(self, reader: Reader, head: int, watcher: Watcher) -> None:
        """Tell a stream that resumed the next part of what it missed, as fast as it reads."""
        if watcher.position is None or watcher.sink.queued > MAX_QUEUED - _PAGE:
            return
        until = min(watcher.position + _PAGE, head)
        changes = _between(reader, watcher.position, until)
        if changes is None:
            self._end_all({watcher}, StreamEnded("the stream fell behind"))
            return
        for change in changes:
            if watcher.sees(change):
                watcher.sink.send(change)
        watcher.position = until
        if until == head:
            self._behind.discard(watcher)
            self._live.add(watcher)
            for sent_at in watcher.waiting:
                watcher.sink.send(Pong(sent_at, head))
            watcher.waiting.clear()
        else:
            self._wake.set()

    def _judge(self, lookup: Lookup, watchers: Iterable[Watcher]) -> None:
        """Judge the credentials of watchers again, and end the streams of those who may not."""
        monotonic, now = self.clock.monotonic(), self.clock.now()
        verdicts: dict[tuple[str, int], ServiceError | None] = {}
        for watcher in watchers:
            watcher.judged_at = monotonic
            caller = watcher.caller
            secret = (caller.key_id, caller.match.secret_version)
            if secret not in verdicts:
                try:
                    judge_caller_again(lookup, caller, watcher.rule, now)
                    verdicts[secret] = None
                except ServiceError as error:
                    verdicts[secret] = error
            denial = verdicts[secret]
            if denial is not None:
                self._end_all({watcher}, denial)

    def _sweep(self, lookup: Lookup) -> None:
        """Judge those who have been silent, and end the streams that are old; once a second."""
        now = self.clock.monotonic()
        if now - self._looked_after < 1:
            return
        self._looked_after = now
        with self._lock:
            streams = list(self._open)
        self._judge(lookup, [one for one in streams if now - one.judged_at >= SILENCE_S])
        old = [one for one in streams if now >= one.ends_at]
        self._end_all(old, StreamEnded("the stream is old enough; resume"))

    def _end_all(self, watchers: Iterable[Watcher], error: ServiceError) -> None:
        for watcher in list(watchers):
            self._live.discard(watcher)
            self._behind.discard(watcher)
            watcher.sink.end(error)

    def _log_state_change(self, error: Exception | None) -> None:
        """Log trouble when it begins and when it ends, not at every turn."""
        if error is not None and not self._in_trouble:
            foreseen = isinstance(error, StoreError)
            log.error(
                "watch_hub_stands", cause=type(error).__name__, exc_info=None if foreseen else error
            )
        elif error is None and self._in_trouble:
            log.warning("watch_hub_runs_again")
        self._in_trouble = error is not None


def _drained(inbox: deque[T]) -> list[T]:
    """Take what is there by now; others go on adding."""
    return [inbox.popleft() for _ in range(len(inbox))]


def _between(reader: Reader, after: int, until: int) -> list[Invalidation] | None:
    """Read the changes in (after, until]; None when some of them are no longer there."""
    changes: list[Invalidation] = []
    while after < until:
        page = reader.changes_after(after, min(_PAGE, until - after))
        if not page or page[0].revision != after + 1 or page[-1].revision != after + len(page):
            return None
        changes.extend(page)
        after = page[-1].revision
    return changes
