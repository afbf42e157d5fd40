"""What may be answered again without asking, and until when: the rules of the lease, and no I/O.

An answer is kept under a MAC of its token. It is used only while two things hold at the moment a
check begins: the stream of changes is fresh (the lease), and the answer is young. It is kept only
if nothing that was told since can have made it wrong (the guard). Section 4 of the wire contract.

Times are nanoseconds of one clock that never steps and goes on while the machine sleeps.
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

from keybearer.models import Identity, Outcome, Verdict

SECOND: Final = 1_000_000_000
LEASE: Final = 2 * SECOND
"""How long after a ping was sent its pong vouches for what is kept. No setting makes it longer."""
MAX_CACHE_FOR: Final = 60 * SECOND
MAX_NEGATIVE_CACHE_FOR: Final = 1 * SECOND
"""What the service never exceeds either, section 3 of the wire contract."""
SPREAD: Final = 0.2
"""The share of its time by which an answer may be given up early, so that what hundreds of clients
learnt when a service started is not asked again by all of them a minute later."""
MAX_SUBJECTS: Final = 10_000
"""Keys, owners and accounts of which the last change is remembered."""
MAX_UNREPORTED: Final = 10_000
"""Uses of dropped answers that wait to be reported; beyond, they are not counted."""

_NEVER = -1
_MEMORY_KEY_LENGTH = 32
_MAC_LENGTH = 16
_SECOND_CHANCES = 8
_NEGATIVE = frozenset({Outcome.NOT_FOUND, Outcome.REVOKED, Outcome.EXPIRED, Outcome.DISABLED})

Subject = tuple[str, str]
"""What a change is about: `key_id`, `owner_id` or `account_id`, and the id."""
EVERYTHING: Final[Subject] = ("everything", "")


class OutOfOrderError(Exception):
    """The server said what it cannot have meant; nothing that is kept can be trusted."""


class Question(NamedTuple):
    """When a question was sent, for judging its answer."""

    mac: bytes
    asked_at: int
    generation: int


class Used(NamedTuple):
    """Uses of one secret that were answered from here."""

    key_id: str
    secret_version: int
    used_at: int
    uses: int


@dataclass(slots=True)
class Counts:
    """What happened so far. Counted without a lock, so a little too low under many threads."""

    hits: int = 0
    """Checks answered from here."""
    misses: int = 0
    """Checks that had to ask, or joined one that did."""
    stored: int = 0
    guarded: int = 0
    """Answers not kept because something had changed since they were read."""
    invalidations: int = 0
    """Changes told."""
    resets: int = 0
    """How often everything was forgotten."""


class _Kept:
    """One answer."""

    __slots__ = ("good_until", "reported", "revision", "seen", "used_at", "uses", "verdict")

    def __init__(self, verdict: Verdict, good_until: int) -> None:
        self.verdict = verdict
        self.good_until = good_until
        self.revision = verdict.revision
        self.uses = 0
        self.reported = 0
        """Never set `uses` back: a check on another thread may be about to write it."""
        self.used_at = 0
        self.seen = 0
        """How many uses there were when it was last spared."""


class Answers:
    """The answers about the keys of one account, or of all.

    `find` may be called from any thread and takes no lock. Everything else takes one.

    Args:
        account_id: The account restriction of all the questions.
        max_entries: Positive answers kept.
        max_negative: Negative answers kept, apart, so that guessing does not push out the others.
        draw: Answers a number from 0 to 1, for spreading what was learnt at one moment.
    """

    def __init__(
        self,
        account_id: str,
        *,
        max_entries: int,
        max_negative: int,
        draw: Callable[[], float] = random.random,
    ) -> None:
        # The restriction is part of the key, so an answer to another question never fits.
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
        """Begin anew, as if nothing had been heard or kept, with a lock of one's own."""
        self._lock = threading.Lock()
        self._positive: OrderedDict[bytes, _Kept] = OrderedDict()
        self._negative: OrderedDict[bytes, _Kept] = OrderedDict()
        self._by_subject: dict[Subject, set[bytes]] = {}
        self._changed: OrderedDict[Subject, int] = OrderedDict()
        self._unreported: list[Used] = []
        self._lease_until = _NEVER
        self._pinged_at: int | None = None
        self._epoch = ""
        self._seen = 0
        self._floor = 0
        self._generation = 0
        self._started = False

    # --- the hot path -----------------------------------------------------------------------------

    def mac(self, token: str) -> bytes:
        """Answer what a token is kept under.

        Raises:
            UnicodeEncodeError: It is no token.
        """
        mac = self._mac()
        mac.update(token.encode())
        return mac.digest()

    def find(self, token: str, began: int) -> Verdict | None:
        """Answer what is known of a token by a check that began at `began`; None: ask.

        Raises:
            UnicodeEncodeError: It is no token.
        """
        # The lease first, then the answer. The other way round, this thread could be held up
        # between the two while a change is told and a pong prolongs the lease, and would then use
        # an answer that is forgotten under a lease that vouches for its absence.
        lease_until = self._lease_until
        mac = self._mac()
        mac.update(token.encode())
        key = mac.digest()
        kept = self._positive.get(key) or self._negative.get(key)
        if kept is None or began > lease_until or began > kept.good_until:
            self.counts.misses += 1
            return None
        kept.uses += 1
        kept.used_at = began
        self.counts.hits += 1
        return kept.verdict

    # --- questions --------------------------------------------------------------------------------

    def begin(self, token: str, now: int) -> Question:
        """Note that a question is about to be sent."""
        with self._lock:
            return Question(self.mac(token), now, self._generation)

    def store(self, question: Question, verdict: Verdict) -> bool:
        """Keep an answer if it can be relied on; tell whether it is kept."""
        with self._lock:
            if not self._may_keep(question, verdict):
                self.counts.guarded += 1
                return False
            if verdict.valid:
                self._keep(question, verdict)
            else:
                limit = min(_nanos(verdict.cache_for), MAX_NEGATIVE_CACHE_FOR)
                self._negative[question.mac] = _Kept(verdict, question.asked_at + limit)
                self._negative.move_to_end(question.mac)
                if len(self._negative) > self._max_negative:
                    self._negative.popitem(last=False)
            self.counts.stored += 1
            return True

    def _may_keep(self, question: Question, verdict: Verdict) -> bool:
        if not self._started or question.generation != self._generation:
            return False
        if verdict.revision < self._floor or verdict.cache_for <= timedelta():
            return False
        if verdict.valid and verdict.identity is not None:
            return all(
                verdict.revision >= self._changed.get(subject, 0)
                for subject in _subjects(verdict.identity)
            )
        # Whatever changed may be what the token was waiting for, so it must not have been read
        # before any change that was told.
        return verdict.outcome in _NEGATIVE and verdict.revision >= self._seen

    def _keep(self, question: Question, verdict: Verdict) -> None:
        self._drop(question.mac)
        while len(self._positive) >= self._max_entries:
            self._make_room()
        limit = min(_nanos(verdict.cache_for), MAX_CACHE_FOR)
        limit -= int(limit * SPREAD * self._draw())
        self._positive[question.mac] = _Kept(verdict, question.asked_at + limit)
        self._negative.pop(question.mac, None)
        if verdict.identity is not None:
            for subject in _subjects(verdict.identity):
                self._by_subject.setdefault(subject, set()).add(question.mac)

    def _make_room(self) -> None:
        """Drop the oldest answer, sparing a few that were used since they were last spared."""
        for _ in range(_SECOND_CHANCES):
            mac, kept = next(iter(self._positive.items()))
            if kept.uses == kept.seen:
                break
            kept.seen = kept.uses
            self._positive.move_to_end(mac)
        self._drop(next(iter(self._positive)))

    # --- what the stream tells --------------------------------------------------------------------

    @property
    def position(self) -> tuple[str, int]:
        """Where a new stream is to go on: epoch and revision; an empty epoch: from now."""
        with self._lock:
            return self._epoch, self._seen

    def hello(self, epoch: str, head: int) -> None:
        """A stream has started where it was asked to."""
        with self._lock:
            if not self._epoch or epoch != self._epoch or head < self._seen:
                self._start_over(epoch, head)

    def reset(self, epoch: str, head: int) -> None:
        """A stream has started afresh; what changed before is not known."""
        with self._lock:
            self._start_over(epoch, head)

    def invalidate(self, subject: Subject, revision: int, now: int) -> None:
        """Something has changed: forget what is older.

        Raises:
            OutOfOrderError: Something later was told before.
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
                    # What is no longer remembered one by one holds for all.
                    self._floor = max(self._floor, self._changed.popitem(last=False)[1])
                stale = list(self._by_subject.get(subject, ()))
            for mac in stale:
                if self._positive[mac].revision < revision:
                    self._drop(mac)

    def pong(self, sent_at: int, head: int) -> None:
        """Everything up to `head`, read after the ping of `sent_at`, was told: the lease goes on.

        Raises:
            OutOfOrderError: Something later was told before.
        """
        with self._lock:
            if not self._started or head < self._seen:
                raise OutOfOrderError(f"a pong of revision {head} after {self._seen}")
            self._seen = head
            self._pinged_at = sent_at
            # Last, as `find` relies on it.
            self._lease_until = max(self._lease_until, sent_at + LEASE)

    def start_over(self) -> None:
        """Trust nothing that was told or kept; the next stream is to begin from now."""
        with self._lock:
            self._start_over("", 0)
            self._started = False

    def _start_over(self, epoch: str, head: int) -> None:
        self._lease_until = _NEVER
        self._pinged_at = None
        for mac in list(self._positive):
            self._drop(mac)
        self._negative.clear()
        self._changed.clear()
        self._epoch, self._seen, self._floor = epoch, head, head
        self._generation += 1
        self._started = True
        self.counts.resets += 1

    # --- usage and figures ------------------------------------------------------------------------

    def take_usage(self) -> list[Used]:
        """Answer the uses since the last time, one item a secret."""
        with self._lock:
            taken, self._unreported = self._unreported, []
            for kept in self._positive.values():
                self._collect(kept, taken)
            return taken

    def lease_age(self, now: int) -> int | None:
        """Answer how long ago the ping was sent that the last pong answered; None: no pong yet."""
        pinged_at = self._pinged_at
        return None if pinged_at is None else now - pinged_at

    def holds(self, now: int) -> bool:
        """Tell whether the lease holds."""
        return now <= self._lease_until

    def __len__(self) -> int:
        """Answer how many answers are kept."""
        return len(self._positive) + len(self._negative)

    def _drop(self, mac: bytes) -> None:
        kept = self._positive.pop(mac, None)
        if kept is None or kept.verdict.identity is None:
            return
        for subject in _subjects(kept.verdict.identity):
            macs = self._by_subject[subject]
            macs.discard(mac)
            if not macs:
                del self._by_subject[subject]
        if len(self._unreported) < MAX_UNREPORTED:
            self._collect(kept, self._unreported)

    @staticmethod
    def _collect(kept: _Kept, into: list[Used]) -> None:
        uses, identity = kept.uses, kept.verdict.identity
        if uses > kept.reported and identity is not None:
            into.append(
                Used(identity.key_id, identity.secret_version, kept.used_at, uses - kept.reported)
            )
            kept.reported = uses


def _subjects(identity: Identity) -> tuple[Subject, Subject, Subject]:
    return (
        ("key_id", identity.key_id),
        ("owner_id", identity.owner_id),
        ("account_id", identity.account_id),
    )


def _nanos(length: timedelta) -> int:
    return length // timedelta(microseconds=1) * 1000
