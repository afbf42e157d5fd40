"""One verifier's connection to the service, and the stream of changes on it.

What is said is laid down in section 4 of the wire contract; what it means for the answers that are
kept, in `answers`. Here are no threads: grpc drains what is sent, and `caching` reads what comes.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import grpc

from keybearer._cache.verdict_cache import EVERYTHING, Answers, OutOfOrderError, Used
from keybearer._client.channel import Endpoint
from keybearer.errors import VerifierUnavailableError
from keybearer.models import stamp_of
from keybearer.v1 import token_service_pb2 as pb

PING_EVERY: Final = 0.5
"""Seconds between pings, section 4 of the wire contract."""
MAX_UNANSWERED: Final = 6
"""Pings without a pong after which the connection is given up for a fresh one."""
USAGE_EVERY: Final = 10.0
"""Seconds between two reports of answers given from here."""
MAX_USAGE_ITEMS: Final = 500
_VALIDATE = "/keybearer.v1.TokenService/ValidateToken"
_WATCH = "/keybearer.v1.TokenService/WatchInvalidations"


class Link:
    """The connection of one verifier, for its questions and its stream alike.

    One connection for both: when it is back, the stream is back, so that a service that restarts
    is not asked about everything before anything may be answered from memory.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: tuple[Any, Any] | None = None
        self._closed = False

    def stubs(self) -> tuple[Any, Any]:
        """Answer what asks about a token, and what opens the stream.

        Raises:
            VerifierUnavailableError: The verifier was closed.
        """
        with self._lock:
            if self._closed:
                raise VerifierUnavailableError("the verifier was closed")
            if self._stubs is None:
                # Else every channel to the same place would share one connection, dead or alive.
                channel = self._channel = self._endpoint.open(
                    [("grpc.use_local_subchannel_pool", 1)]
                )
                self._stubs = (
                    channel.unary_unary(
                        _VALIDATE,
                        request_serializer=pb.ValidateTokenRequest.SerializeToString,
                        response_deserializer=pb.ValidateTokenResponse.FromString,
                    ),
                    channel.stream_stream(
                        _WATCH,
                        request_serializer=pb.WatchInvalidationsRequest.SerializeToString,
                        response_deserializer=pb.WatchInvalidationsResponse.FromString,
                    ),
                )
            return self._stubs

    def renew(self) -> None:
        """Give up the connection; the next call opens a fresh one."""
        with self._lock:
            channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Close it for good."""
        with self._lock:
            self._closed = True
        self.renew()


class Stream:
    """What one stream of changes sends: an iterator that grpc drains on a thread of its own."""

    def __init__(self, answers: Answers, clock: Callable[[], int]) -> None:
        self.call: Any = None
        self.is_dead = False
        """Set when too many pings went unanswered."""
        self.answered = 0
        """Pongs received."""
        self._answers = answers
        self._clock = clock
        self._unanswered: deque[int] = deque()
        self._pending: deque[pb.WatchInvalidationsRequest] = deque()
        self._wake = threading.Event()
        self._last_ping: int | None = None
        """The one that ends the stream; nothing follows it."""
        self._finishing = False
        self._closed = False
        self.finished = threading.Event()
        """Set when, after `finish`, the server has read everything."""
        epoch, revision = answers.position
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
                # A machine that slept sends one ping, not one for every half second of its sleep.
                self._next_ping = now + PING_EVERY
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
        """Feed what the server says to the answers.

        Raises:
            OutOfOrderError: It cannot be right.
        """
        answers = self._answers
        match response.WhichOneof("message"):
            case "invalidation":
                told = response.invalidation
                answers.invalidate(_subject(told), told.revision, self._clock())
            case "pong":
                pong = response.pong
                while self._unanswered and self._unanswered[0] < pong.sent_at:
                    self._unanswered.popleft()
                if not self._unanswered or self._unanswered.popleft() != pong.sent_at:
                    raise OutOfOrderError("a pong to a ping that was not sent")
                answers.pong(pong.sent_at, pong.head_revision)
                self.answered += 1
                if pong.sent_at == self._last_ping:
                    self.finished.set()
            case "hello":
                answers.hello(response.hello.epoch, response.hello.head_revision)
            case "reset":
                answers.reset(response.reset.epoch, response.reset.head_revision)
            case _:
                raise OutOfOrderError("a message this version does not know")

    def finish(self) -> None:
        """Report what was not reported yet, and send nothing more.

        What was sent is lost when the stream is cancelled before the server has read it, so a last
        ping follows: its pong says that it has.
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
        items = _usage_items(self._answers.take_usage(), self._clock())
        for start in range(0, len(items), MAX_USAGE_ITEMS):
            usage = pb.WatchInvalidationsRequest.Usage(items=items[start : start + MAX_USAGE_ITEMS])
            self._pending.append(pb.WatchInvalidationsRequest(usage=usage))


def _subject(told: pb.WatchInvalidationsResponse.Invalidation) -> tuple[str, str]:
    match told.WhichOneof("subject"):
        case "key_id":
            return "key_id", told.key_id
        case "owner_id":
            return "owner_id", told.owner_id
        case "account_id":
            return "account_id", told.account_id
    # Also a kind of change this version does not know.
    return EVERYTHING


def _usage_items(used: list[Used], now: int) -> list[pb.WatchInvalidationsRequest.UsageItem]:
    wall = datetime.now(UTC)
    return [
        pb.WatchInvalidationsRequest.UsageItem(
            key_id=one.key_id,
            secret_version=one.secret_version,
            last_used_time=stamp_of(wall - timedelta(microseconds=(now - one.used_at) // 1000)),
            count=one.uses,
        )
        for one in used
    ]
