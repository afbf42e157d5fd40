"""Which verdicts may be reused, and until when: the rules of the lease, without I/O.

A verdict is kept under a MAC of its token. It is reused only while two conditions hold when a check
begins: the stream of changes is fresh (the lease), and the verdict is young. It is kept only if no
change that was announced since can have made it wrong. The wire contract, section 4, has the rules.

Times are nanoseconds of one clock that never steps and that continues while the machine sleeps.
"""

import hashlib
import random
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple

from keybearer._wire.limits import LEASE_SECONDS, MAX_CACHE_SECONDS, MAX_NEGATIVE_CACHE_SECONDS
from keybearer.models import Identity, Outcome, Verdict

SECOND: Final = 1_000_000_000
LEASE: Final = LEASE_SECONDS * SECOND
"""How long after a ping was sent its pong vouches for the cache. No setting makes it longer."""
MAX_CACHE_FOR: Final = MAX_CACHE_SECONDS * SECOND
MAX_NEGATIVE_CACHE_FOR: Final = MAX_NEGATIVE_CACHE_SECONDS * SECOND
SPREAD: Final = 0.2
"""The share of its lifetime by which a verdict may expire early. It spreads the validations of
hundreds of clients that all learnt their verdicts when a service started."""
MAX_SUBJECTS: Final = 10_000
"""Keys, owners and accounts whose last change is remembered."""
MAX_UNREPORTED: Final = 10_000
"""Uses of evicted verdicts that wait for a report. Further ones are not counted."""

_NEVER = -1
_MEMORY_KEY_LENGTH = 32
_MAC_LENGTH = 16
_SECOND_CHANCES = 8
_NEGATIVE = frozenset({Outcome.NOT_FOUND, Outcome.REVOKED, Outcome.EXPIRED, Outcome.DISABLED})

Subject = tuple[str, str]
"""What a change concerns: `key_id`, `owner_id` or `account_id`, and the id."""
EVERYTHING: Final[Subject] = ("everything", "")


class OutOfOrderError(Exception):
    """The messages of the server contradict each other, so nothing that is kept can be trusted."""


class Pending(NamedTuple):
    """A validation that was sent: what is needed to decide whether its verdict may be kept."""

    mac: bytes
    sent_at: int
    generation: int


class Use(NamedTuple):
    """How often the verdict about one secret was reused."""

    key_id: str
    secret_version: int
    used_at: int
    """The last time."""
    uses: int


@dataclass(slots=True)
class Counts:
    """What happened so far. No lock is taken, so many threads make the counts a bit low."""

    hits: int = 0
    """Checks that reused a verdict."""
    misses: int = 0
    """Checks that sent a validation, or waited for one that was under way."""
    stored: int = 0
    rejected_stale: int = 0
    """Verdicts that were not kept, because something had changed since they were read."""
    invalidations: int = 0
    """Changes that were announced."""
    resets: int = 0
    """How often the cache was emptied."""


class _Entry:
    """One verdict."""

    __slots__ = (
        "good_until",
        "reported",
        "revision",
        "used_at",
        "uses",
        "uses_when_spared",
        "verdict",
    )

    def __init__(self, verdict: Verdict, good_until: int) -> None:
        self.verdict = verdict
        self.good_until = good_until
        self.revision = verdict.revision
        self.uses = 0
        self.reported = 0
        """The part of `uses` that was reported. `uses` is never reset: a check on another thread
        may be about to write it."""
        self.used_at = 0
        self.uses_when_spared = 0
        """The value of `uses` when eviction last spared this entry."""


class VerdictCache:
    """The verdicts about the keys of one account, or of all accounts.

    `find` takes no lock. Every other method takes one. All may be called from any thread.

    Args:
        account_id: The account restriction of all validations.
        max_entries: How many positive verdicts are kept.
        max_negative: How many negative verdicts are kept. They have a limit of their own, so that
            guessing does not evict the positive ones.
        draw: Returns a number from 0 to 1, for SPREAD.
    """

    def __init__(
        self,
        account_id: str,
        *,
        max_entries: int,
        max_negative: int,
        draw: Callable[[], float] = random.random,
    ) -> None:
        # The restriction is part of the key, so the verdict of another restriction never matches.
        memory_key = hashlib.blake2b(
            account_id.encode(), key=secrets.token_bytes(_MEMORY_KEY_LENGTH)
        ).digest()
        self._mac: Callable[[], hashlib.blake2b] = hashlib.blake2b(
            key=memory_key, digest_size=_MAC_LENGTH
        ).copy
        self._draw = draw
        self._max_entries = max_entries
        self._max_negative = max_negative
        self.counts = Counts()
        self.last_invalidation_at: int | None = None
        self.forget_all()

    def forget_all(self) -> None:
        """Return to the initial state, with a new lock. For the child of a fork."""
        self._lock = threading.Lock()
        self._positive: OrderedDict[bytes, _Entry] = OrderedDict()
        self._negative: OrderedDict[bytes, _Entry] = OrderedDict()
        self._by_subject: dict[Subject, set[bytes]] = {}
        self._changed: OrderedDict[Subject, int] = OrderedDict()
        self._unreported: list[Use] = []
        self._lease_until = _NEVER
        self._pinged_at: int | None = None
        self._epoch = ""
        self._connection = 0
        self._seen = 0
        self._floor = 0
        self._generation = 0
        self._started = False

    # --- the hot path -----------------------------------------------------------------------------

    def mac(self, token: str) -> bytes:
        """Return the MAC under which the verdict about a token is kept.

        Raises:
            UnicodeEncodeError: The text has surrogates, so it is no token.
        """
        mac = self._mac()
        mac.update(token.encode())
        return mac.digest()

    def find(self, token: str, began: int) -> Verdict | None:
        """Return the verdict about a token, or None when it has to be validated.

        Args:
            token: Any text.
            began: When the check began.

        Raises:
            UnicodeEncodeError: The text has surrogates, so it is no token.
        """
        # Read the lease first, then the entry. In the other order, this thread could stop between
        # the two, while a change evicts the entry and a pong prolongs the lease. It would then use
        # an evicted verdict under a lease that vouches for the cache without it.
        lease_until = self._lease_until
        mac = self._mac()
        mac.update(token.encode())
        key = mac.digest()
        entry = self._positive.get(key) or self._negative.get(key)
        if entry is None or began > lease_until or began > entry.good_until:
            self.counts.misses += 1
            return None
        entry.uses += 1
        entry.used_at = began
        self.counts.hits += 1
        return entry.verdict

    # --- validations ------------------------------------------------------------------------------

    def begin(self, token: str, now: int) -> Pending:
        """Note that a validation is about to be sent, and return what `store` needs."""
        with self._lock:
            return Pending(self.mac(token), now, self._generation)

    def store(self, pending: Pending, verdict: Verdict, connection: int = 0) -> bool:
        """Keep a verdict if it can be relied on, and return whether it is kept.

        Args:
            pending: What `begin` returned.
            verdict: The answer.
            connection: The number of the connection that it came over.
        """
        with self._lock:
            if not self._may_keep(pending, verdict, connection):
                self.counts.rejected_stale += 1
                return False
            if verdict.valid:
                self._keep(pending, verdict)
            else:
                limit = min(_nanos(verdict.cache_for), MAX_NEGATIVE_CACHE_FOR)
                self._negative[pending.mac] = _Entry(verdict, pending.sent_at + limit)
                self._negative.move_to_end(pending.mac)
                if len(self._negative) > self._max_negative:
                    self._negative.popitem(last=False)
            self.counts.stored += 1
            return True

    def _may_keep(self, pending: Pending, verdict: Verdict, connection: int) -> bool:
        if not self._started or pending.generation != self._generation:
            return False
        # A server that lags behind a failover answers from a history that has ended, whose
        # revisions say nothing about those of the stream. An older one does not name its history;
        # it is that of the stream if the same server has sent both.
        if verdict.epoch != self._epoch and (verdict.epoch or connection != self._connection):
            return False
        if verdict.revision < self._floor or verdict.cache_for <= timedelta():
            return False
        if verdict.valid and verdict.identity is not None:
            return all(
                verdict.revision >= self._changed.get(subject, 0)
                for subject in _subjects(verdict.identity)
            )
        # Any change may be the one that makes the token valid, so the verdict must not have been
        # read before a change that was announced.
        return verdict.outcome in _NEGATIVE and verdict.revision >= self._seen

    def _keep(self, pending: Pending, verdict: Verdict) -> None:
        self._evict(pending.mac)
        while len(self._positive) >= self._max_entries:
            self._make_room()
        limit = min(_nanos(verdict.cache_for), MAX_CACHE_FOR)
        limit -= int(limit * SPREAD * self._draw())
        self._positive[pending.mac] = _Entry(verdict, pending.sent_at + limit)
        self._negative.pop(pending.mac, None)
        if verdict.identity is not None:
            for subject in _subjects(verdict.identity):
                self._by_subject.setdefault(subject, set()).add(pending.mac)

    def _make_room(self) -> None:
        """Evict the oldest entry, sparing a few that were used since they were last spared."""
        for _ in range(_SECOND_CHANCES):
            mac, entry = next(iter(self._positive.items()))
            if entry.uses == entry.uses_when_spared:
                break
            entry.uses_when_spared = entry.uses
            self._positive.move_to_end(mac)
        self._evict(next(iter(self._positive)))

    # --- the stream of changes --------------------------------------------------------------------

    @property
    def position(self) -> tuple[str, int]:
        """Where the next stream continues: epoch and revision. An empty epoch means from now on."""
        with self._lock:
            return self._epoch, self._seen

    def hello(self, epoch: str, head: int, connection: int = 0) -> None:
        """Note that a stream started at the requested position.

        Args:
            epoch: The history that the stream tells of.
            head: The newest revision.
            connection: The number of the connection that the stream was opened over.
        """
        with self._lock:
            self._connection = connection
            if not self._epoch or epoch != self._epoch or head < self._seen:
                self._start_over(epoch, head)

    def reset(self, epoch: str, head: int, connection: int = 0) -> None:
        """Note that a stream started at the head; earlier changes are not known. As `hello`."""
        with self._lock:
            self._connection = connection
            self._start_over(epoch, head)

    def invalidate(self, subject: Subject, revision: int, now: int) -> None:
        """Evict every verdict that a change makes stale.

        Args:
            subject: What the change concerns.
            revision: The revision of the change.
            now: The current time.

        Raises:
            OutOfOrderError: A later revision was announced before.
        """
        with self._lock:
            if not self._started or revision <= self._seen:
                raise OutOfOrderError(f"a change of revision {revision} after {self._seen}")
            self._seen = revision
            self.counts.invalidations += 1
            self.last_invalidation_at = now
            self._negative.clear()
            if subject == EVERYTHING:
                self._floor = revision
                stale: Iterable[bytes] = list(self._positive)
            else:
                self._changed[subject] = revision
                self._changed.move_to_end(subject)
                if len(self._changed) > MAX_SUBJECTS:
                    # A change that is no longer remembered for its subject holds for all subjects.
                    self._floor = max(self._floor, self._changed.popitem(last=False)[1])
                stale = list(self._by_subject.get(subject, ()))
            for mac in stale:
                if self._positive[mac].revision < revision:
                    self._evict(mac)

    def pong(self, sent_at: int, head: int) -> None:
        """Prolong the lease: every change up to `head` was announced.

        Args:
            sent_at: When the ping was sent. The server read `head` after that.
            head: The revision of the store.

        Raises:
            OutOfOrderError: A later revision was announced before.
        """
        with self._lock:
            if not self._started or head < self._seen:
                raise OutOfOrderError(f"a pong of revision {head} after {self._seen}")
            self._seen = head
            self._pinged_at = sent_at
            # This comes last: `find` relies on it.
            self._lease_until = max(self._lease_until, sent_at + LEASE)

    def start_over(self) -> None:
        """Empty the cache and end the lease. The next stream begins at the head."""
        with self._lock:
            self._start_over("", 0)
            self._started = False

    def _start_over(self, epoch: str, head: int) -> None:
        self._lease_until = _NEVER
        self._pinged_at = None
        for mac in list(self._positive):
            self._evict(mac)
        self._negative.clear()
        self._changed.clear()
        self._epoch, self._seen, self._floor = epoch, head, head
        self._generation += 1
        self._started = True
        self.counts.resets += 1

    # --- usage and state --------------------------------------------------------------------------

    def take_usage(self) -> list[Use]:
        """Return the uses since the last call, one item for each secret."""
        with self._lock:
            taken, self._unreported = self._unreported, []
            for entry in self._positive.values():
                self._collect(entry, taken)
            return taken

    def lease_age(self, now: int) -> int | None:
        """Return the age of the ping that was answered last, or None when none was answered."""
        pinged_at = self._pinged_at
        return None if pinged_at is None else now - pinged_at

    def holds(self, now: int) -> bool:
        """Return whether the lease holds."""
        return now <= self._lease_until

    def __len__(self) -> int:
        """Return how many verdicts are kept."""
        return len(self._positive) + len(self._negative)

    @property
    def subjects(self) -> int:
        """How many keys, owners and accounts have verdicts that are kept."""
        return len(self._by_subject)

    def _evict(self, mac: bytes) -> None:
        entry = self._positive.pop(mac, None)
        if entry is None or entry.verdict.identity is None:
            return
        for subject in _subjects(entry.verdict.identity):
            macs = self._by_subject[subject]
            macs.discard(mac)
            if not macs:
                del self._by_subject[subject]
        if len(self._unreported) < MAX_UNREPORTED:
            self._collect(entry, self._unreported)

    @staticmethod
    def _collect(entry: _Entry, into: list[Use]) -> None:
        uses, identity = entry.uses, entry.verdict.identity
        if uses > entry.reported and identity is not None:
            into.append(
                Use(identity.key_id, identity.secret_version, entry.used_at, uses - entry.reported)
            )
            entry.reported = uses


def _subjects(identity: Identity) -> tuple[Subject, Subject, Subject]:
    return (
        ("key_id", identity.key_id),
        ("owner_id", identity.owner_id),
        ("account_id", identity.account_id),
    )


def _nanos(length: timedelta) -> int:
    return length // timedelta(microseconds=1) * 1000
