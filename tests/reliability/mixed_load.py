"""`python -m reliability.mixed_load`: calls of the hot methods, good and bad, many at once.

A process of its own. It reads a JSON object from its standard input (see `World`), makes its calls
and prints what it saw as another one. Every answer is checked against the tokens that were asked
about. Calls are taken back at every stage, have no time, are too large, stop in their middle, or
carry a wrong credential; connections are cut; and keys are revoked meanwhile.
"""

import json
import random
import selectors
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from bench.generator import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RESET,
    SETTINGS,
    WINDOW,
    WINDOW_BYTES,
    frame,
    literal,
    message,
)
from harness import Stubs
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.ext_authz.v3 import ext_authz_pb2 as envoy

VALIDATE = "/keybearer.v1.TokenService/ValidateToken"
BATCH = "/keybearer.v1.TokenService/BatchValidateTokens"
CHECK = "/envoy.service.auth.v3.Authorization/Check"
IN_FLIGHT = 3
RECONNECT_S = 0.2
ANSWERED_WITHIN_S = 30.0
_CANCEL = struct.pack(">I", 8)
_RESET_BY_PEER = struct.pack("ii", 1, 0)
_STARVED = b"ping_timeout"
"""Why a connection is ended when this process gets no turn on a busy machine."""
_HUGE = b"\0" + struct.pack(">I", 10_000_000) + b"x" * 100


@dataclass
class World:
    """What to do, and to whom."""

    address: str
    admin: str
    """A token that may revoke keys."""
    caller: str
    """A token that may validate."""
    keys: list[tuple[str, str]]
    """Tokens that stay valid, each with the id of its key."""
    victims: list[tuple[str, str]]
    """Tokens whose keys are revoked, one after the other."""
    calls: int
    connections: int
    seed: int
    good_only: bool = False
    """Whether to leave out everything that is hostile."""
    revoke_every_s: float = 0.25


@dataclass
class Seen:
    """What the calls came to."""

    calls: Counter[str] = field(default_factory=Counter)
    """By their kind."""
    answered: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Answers to another question, and verdicts that cannot be."""
    unanswered: int = 0
    """Good calls that ended without an answer on a connection that went on."""
    lost_connections: int = 0
    """Those that the server ended, or that went with it."""
    revoked: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    """Of good single checks."""


Check = Callable[[bytes, float], str]
"""Returns what is wrong with an answer to a call that was sent at a moment; empty for nothing."""


@dataclass
class Call:
    """One call: what is sent, and what may come back."""

    kind: str
    headers: bytes
    body: bytes
    check: Check
    must_answer: bool = False
    resets: str = ""
    """At which stage it is taken back; empty for never."""
    ends: bool = True
    """Whether the message is the end of what is sent."""
    sent: float = 0.0
    data: bytes = b""


class Caller:
    """Makes up calls."""

    def __init__(self, world: World, seen: Seen) -> None:
        self._world = world
        self._seen = seen
        self._random = random.Random(world.seed)
        self._revoked: dict[str, float] = {}
        self._live = dict(world.keys)
        self._tokens = [*world.keys, *world.victims]

    def revoke(self, stop: threading.Event) -> None:
        """Revoke the victims, one after the other."""
        address = self._world.address
        with grpc.insecure_channel(address) as channel:
            admin = Stubs(channel, self._world.admin)
            for token, key_id in self._world.victims:
                if stop.wait(self._world.revoke_every_s):
                    return
                try:
                    admin.revoke(key_id)
                except grpc.RpcError:  # the server is away
                    continue
                self._revoked[token] = time.monotonic()
                self._seen.revoked += 1

    def next(self) -> Call:
        """Return the next call."""
        kind = "validate" if self._world.good_only else self._kind()
        path, raw, check = self._question(kind)
        body = message(raw)
        token, timeout, must_answer = self._world.caller, "", False
        resets, ends = "", True
        if kind in ("validate", "batch", "large batch", "check"):
            must_answer = True
        elif kind == "no time":
            timeout = f"{self._random.randrange(1, 5000)}u"
        elif kind == "stranger":
            token, check = self._stranger(), _nothing
        elif kind == "huge":
            body, check = _HUGE, _nothing
        elif kind == "half":
            body, check = body[: self._random.randrange(len(body))], _nothing
            ends = self._random.random() < 0.5
            resets = "" if ends else "later"
        elif kind == "taken back":
            resets = self._random.choice(("headers", "half", "sent", "later"))
        return Call(
            kind, self._headers(path, token, timeout), body, check, must_answer, resets, ends
        )

    def _kind(self) -> str:
        kinds = {
            "validate": 50,
            "batch": 10,
            "large batch": 2,
            "check": 5,
            "no time": 8,
            "stranger": 5,
            "huge": 2,
            "half": 5,
            "taken back": 13,
        }
        return self._random.choices([*kinds], [*kinds.values()])[0]

    def _question(self, kind: str) -> tuple[str, bytes, Check]:
        if kind in ("batch", "large batch"):
            count = self._random.randint(*((1, 10) if kind == "batch" else (11, 100)))
            tokens = [self._token() for _ in range(count)]
            batch = pb.BatchValidateTokensRequest(
                requests=[pb.ValidateTokenRequest(token=token) for token, _ in tokens]
            )
            return (
                BATCH,
                batch.SerializeToString(),
                lambda reply, sent: self._all(tokens, reply, sent),
            )
        token, key_id = self._token()
        if kind == "check":
            asked = envoy.CheckRequest()
            asked.attributes.request.http.headers["authorization"] = f"Bearer {token}"
            return (
                CHECK,
                asked.SerializeToString(),
                lambda reply, sent: self._admitted(token, key_id, reply, sent),
            )
        one = pb.ValidateTokenRequest(token=token)
        return (
            VALIDATE,
            one.SerializeToString(),
            lambda reply, sent: self._one(
                token, key_id, pb.ValidateTokenResponse.FromString(reply), sent
            ),
        )

    def _token(self) -> tuple[str, str]:
        return self._random.choice(self._tokens)

    def _stranger(self) -> str:
        token = self._token()[0]
        return self._random.choice(("x", token[:-1] + "0", token[::-1]))

    def _all(self, tokens: Sequence[tuple[str, str]], reply: bytes, sent: float) -> str:
        responses = pb.BatchValidateTokensResponse.FromString(reply).responses
        if len(responses) != len(tokens):
            return f"{len(responses)} answers to {len(tokens)} questions"
        return "".join(
            self._one(*token, response, sent)
            for token, response in zip(tokens, responses, strict=True)
        )

    def _one(self, token: str, key_id: str, response: Any, sent: float) -> str:
        if response.key_id != key_id:
            return f"the answer is about {response.key_id!r} and not {key_id!r}"
        return self._wrong_outcome(token, sent, is_valid=response.valid)

    def _admitted(self, token: str, key_id: str, reply: bytes, sent: float) -> str:
        answer = envoy.CheckResponse.FromString(reply)
        is_valid = answer.HasField("ok_response")
        names = {one.header.key: one.header.value for one in answer.ok_response.headers}
        if is_valid and names["x-keybearer-key-id"] != key_id:
            return f"the admission is of {names['x-keybearer-key-id']!r} and not {key_id!r}"
        return self._wrong_outcome(token, sent, is_valid=is_valid)

    def _wrong_outcome(self, token: str, sent: float, *, is_valid: bool) -> str:
        if is_valid and sent > self._revoked.get(token, float("inf")):
            return "a revoked key is valid"
        return "a live key is not valid" if not is_valid and token in self._live else ""

    def _headers(self, path: str, token: str, timeout: str) -> bytes:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", self._world.address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {token}"),
            *([("grpc-timeout", timeout)] if timeout else ()),
        ]
        return b"".join(literal(name.encode(), value.encode()) for name, value in fields)


def _nothing(reply: bytes, _sent: float) -> str:
    return f"{len(reply)} bytes are answered to what asks nothing"


class Connection:
    """One connection with a few open calls."""

    def __init__(self, world: World, caller: Caller, seen: Seen, *, may_cut: bool) -> None:
        self._caller = caller
        self._seen = seen
        self._may_cut = may_cut
        self._random = random.Random(world.seed + 1)
        self._next_stream = 1
        self._buffer = b""
        self._open: dict[int, Call] = {}
        self._later: list[int] = []
        host, _, port = world.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=ANSWERED_WITHIN_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HIHI", 1, 0, 4, WINDOW_BYTES)
        self.socket.sendall(
            PREFACE
            + frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW, 0, 0, struct.pack(">I", WINDOW_BYTES))
        )

    def fill(self) -> None:
        """Begin calls until enough are open."""
        parts: list[bytes] = []
        while len(self._open) < IN_FLIGHT:
            self._begin(self._caller.next(), parts)
        self.socket.sendall(b"".join(parts))

    def read(self) -> None:
        """Take what has come, and begin as many calls as have ended.

        Raises:
            OSError: The connection is lost.
        """
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError
        self._buffer += data
        while len(self._buffer) >= FRAME_HEADER:
            end = FRAME_HEADER + int.from_bytes(self._buffer[:3])
            if len(self._buffer) < end:
                break
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:FRAME_HEADER])
            payload = self._buffer[FRAME_HEADER:end]
            self._buffer = self._buffer[end:]
            self._take(kind, flags, stream, payload)
        if self._may_cut and self._random.random() < 0.0005:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_BY_PEER)
            raise ConnectionAbortedError
        if self._later and self._random.random() < 0.5:
            self._reset(self._later.pop())
        self.fill()

    def is_stuck(self, now: float) -> bool:
        """Return whether a call is open for far too long."""
        return any(now - call.sent > ANSWERED_WITHIN_S for call in self._open.values())

    def _begin(self, call: Call, parts: list[bytes]) -> None:
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._seen.calls[call.kind] += 1
        call.sent = time.monotonic()
        parts.append(frame(HEADERS, END_HEADERS, stream, call.headers))
        if call.resets == "headers":
            parts.append(frame(RESET, 0, stream, _CANCEL))
        elif call.resets == "half":
            parts.append(frame(DATA, 0, stream, call.body[: len(call.body) // 2]))
            parts.append(frame(RESET, 0, stream, _CANCEL))
        else:
            parts.append(frame(DATA, END_STREAM if call.ends else 0, stream, call.body))
            if call.resets == "sent":
                parts.append(frame(RESET, 0, stream, _CANCEL))
            else:
                self._open[stream] = call
        if call.resets == "later":
            self._later.append(stream)

    def _reset(self, stream: int) -> None:
        if self._open.pop(stream, None) is not None:
            self.socket.sendall(frame(RESET, 0, stream, _CANCEL))

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == GOAWAY and payload[4:8] != bytes(4) and payload[8:] != _STARVED:
            self._seen.wrong.append(f"the connection is refused: {payload[8:60]!r}")
        call = self._open.get(stream)
        if call is None:
            return
        if kind == DATA:
            call.data += payload
        if kind == RESET or (kind in (DATA, HEADERS) and flags & END_STREAM):
            del self._open[stream]
            self._end(call)

    def _end(self, call: Call) -> None:
        if call.data:
            self._seen.answered[call.kind] += 1
            try:
                wrong = call.check(call.data[5:], call.sent)
            except DecodeError:
                wrong = "another message than was asked for"
            if wrong:
                self._seen.wrong.append(f"{call.kind}: {wrong}")
            if call.kind == "validate":
                self._seen.latencies_ms.append((time.monotonic() - call.sent) * 1000)
        elif call.must_answer:
            self._seen.unanswered += 1


class Load:
    """All the connections."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.seen = Seen()
        self._caller = Caller(world, self.seen)
        self._selector = selectors.DefaultSelector()
        self._wanted = 0
        self._looked = 0.0

    def run(self) -> None:
        """Make the calls."""
        stop = threading.Event()
        revoking = threading.Thread(target=self._caller.revoke, args=(stop,))
        revoking.start()
        self._wanted = self._world.connections
        while self.seen.calls.total() < self._world.calls:
            self._connect()
            for key, _ in self._selector.select(timeout=0.2):
                try:
                    key.data.read()
                except OSError as error:
                    self._lose(key.data, is_own=isinstance(error, ConnectionAbortedError))
            self._look_for_stuck()
        stop.set()
        revoking.join()

    def _connect(self) -> None:
        while self._wanted:
            try:
                connection = Connection(
                    self._world, self._caller, self.seen, may_cut=not self._world.good_only
                )
                connection.fill()
            except OSError:
                time.sleep(RECONNECT_S)
                return
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._wanted -= 1

    def _lose(self, connection: Connection, *, is_own: bool) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self.seen.lost_connections += not is_own
        self._wanted += 1

    def _look_for_stuck(self) -> None:
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        for key in list(self._selector.get_map().values()):
            if key.data.is_stuck(now):
                self.seen.wrong.append("a call was not ended for far too long")
                self._lose(key.data, is_own=True)


def main() -> None:
    """Make the calls and print what was seen."""
    load = Load(World(**json.loads(sys.stdin.readline())))
    load.run()
    seen = load.seen
    ordered = sorted(seen.latencies_ms) or [0.0]
    json.dump(
        {
            "calls": seen.calls,
            "answered": seen.answered,
            "wrong": seen.wrong[:20],
            "unanswered": seen.unanswered,
            "lost_connections": seen.lost_connections,
            "revoked": seen.revoked,
            "p50_ms": ordered[len(ordered) // 2],
            "p99_ms": ordered[len(ordered) * 99 // 100],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
