"""One stream of changes: what the client sends on it, and what the server's messages do.

Section 4 of the wire contract defines the messages; `verdict_cache` has the rules. This module
starts no thread: grpc drains what is sent, and `engine` reads what arrives.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from keybearer._cache.verdict_cache import EVERYTHING, OutOfOrderError, Subject, Use, VerdictCache
from keybearer._client.convert import timestamp_of
from keybearer._wire.limits import MAX_USAGE_ITEMS, PING_SECONDS
from keybearer.v1 import token_service_pb2 as pb

MAX_UNANSWERED: Final = 6
"""Pings without a pong after which the connection is replaced by a new one."""
USAGE_EVERY: Final = 10.0
"""Seconds between two reports of reused verdicts."""


class Stream:
    """The messages of the client on one stream: an iterator that grpc drains on its own thread.

    Args:
        verdicts: The cache that the server's messages keep honest.
        clock: Nanoseconds; see `verdict_cache`.
    """

    def __init__(self, verdicts: VerdictCache, clock: Callable[[], int]) -> None:
        self.call: Any = None
        self.connection = 0
        """The number of the connection that it is opened over."""
        self.is_dead = False
        """Whether too many pings went unanswered."""
        self.answered = 0
        """How many pongs were received."""
        self._verdicts = verdicts
        self._clock = clock
        self._unanswered: deque[int] = deque()
        self._pending: deque[pb.WatchInvalidationsRequest] = deque()
        self._wake = threading.Event()
        self._last_ping: int | None = None
        """The ping that ends the stream; nothing is sent after it."""
        self._finishing = False
        self._closed = False
        self.finished = threading.Event()
        """Set when the server has read everything, after `finish`."""
        epoch, revision = verdicts.position
        subscribe = pb.WatchInvalidationsRequest.Subscribe(epoch=epoch, from_revision=revision)
        self._pending.append(pb.WatchInvalidationsRequest(subscribe=subscribe))
        self._next_ping = 0.0
        self._next_usage = time.monotonic() + USAGE_EVERY * random.uniform(0.5, 1)

    def __iter__(self) -> Iterator[pb.WatchInvalidationsRequest]:
        return self

    def __next__(self) -> pb.WatchInvalidationsRequest:
        while not self._closed:
            if self._pending:
                return self._pending.popleft()
            now = time.monotonic()
            if self._last_ping is not None:
                break
            if self._finishing:
                self._last_ping = self._clock()
                return self._ping(self._last_ping)
            if now >= self._next_usage:
                self._next_usage = now + USAGE_EVERY
                self._report()
            elif now >= self._next_ping:
                # A machine that slept sends one ping, not one for each interval of its sleep.
                self._next_ping = now + PING_SECONDS
                if len(self._unanswered) >= MAX_UNANSWERED:
                    self.is_dead = True
                    if self.call is not None:
                        self.call.cancel()
                    break
                return self._ping(self._clock())
            else:
                self._wake.wait(min(self._next_ping, self._next_usage) - now)
        raise StopIteration

    def take(self, response: pb.WatchInvalidationsResponse) -> None:
        """Apply a message of the server to the cache.

        Raises:
            OutOfOrderError: The message contradicts an earlier one or is unknown.
        """
        verdicts = self._verdicts
        match response.WhichOneof("message"):
            case "invalidation":
                change = response.invalidation
                verdicts.invalidate(_subject_of(change), change.revision, self._clock())
            case "pong":
                pong = response.pong
                while self._unanswered and self._unanswered[0] < pong.sent_at:
                    self._unanswered.popleft()
                if not self._unanswered or self._unanswered.popleft() != pong.sent_at:
                    raise OutOfOrderError("a pong to a ping that was not sent")
                verdicts.pong(pong.sent_at, pong.head_revision)
                self.answered += 1
                if pong.sent_at == self._last_ping:
                    self.finished.set()
            case "hello":
                hello = response.hello
                verdicts.hello(hello.epoch, hello.head_revision, self.connection)
            case "reset":
                reset = response.reset
                verdicts.reset(reset.epoch, reset.head_revision, self.connection)
            case _:
                raise OutOfOrderError("a message this version does not know")

    def finish(self) -> None:
        """Send the last report of usage, and then nothing more.

        The report is lost when the stream is cancelled before the server has read it. A last ping
        follows it, and its pong shows that the server has.
        """
        self._report()
        if self._pending:
            self._finishing = True
        else:
            self.finished.set()
        self._wake.set()

    def close(self) -> None:
        """Send nothing more."""
        self._closed = True
        self._wake.set()

    def _ping(self, sent_at: int) -> pb.WatchInvalidationsRequest:
        self._unanswered.append(sent_at)
        ping = pb.WatchInvalidationsRequest.Ping(sent_at=sent_at)
        return pb.WatchInvalidationsRequest(ping=ping)

    def _report(self) -> None:
        items = _usage_items(self._verdicts.take_usage(), self._clock())
        for start in range(0, len(items), MAX_USAGE_ITEMS):
            usage = pb.WatchInvalidationsRequest.Usage(items=items[start : start + MAX_USAGE_ITEMS])
            self._pending.append(pb.WatchInvalidationsRequest(usage=usage))


def _subject_of(change: pb.WatchInvalidationsResponse.Invalidation) -> Subject:
    match change.WhichOneof("subject"):
        case "key_id":
            return "key_id", change.key_id
        case "owner_id":
            return "owner_id", change.owner_id
        case "account_id":
            return "account_id", change.account_id
    # A kind of change that this version does not know may concern everything.
    return EVERYTHING


def _usage_items(uses: list[Use], now: int) -> list[pb.WatchInvalidationsRequest.UsageItem]:
    wall = datetime.now(UTC)
    return [
        pb.WatchInvalidationsRequest.UsageItem(
            key_id=use.key_id,
            secret_version=use.secret_version,
            last_used_time=timestamp_of(wall - timedelta(microseconds=(now - use.used_at) // 1000)),
            count=use.uses,
        )
        for use in uses
    ]
