"""`python -m reliability.attackers`: everything that a stranger can do to a server, all at once.

A process of its own, at nice 19, so that it takes what the servers leave. It reads a JSON object
from its standard input: `grpc` (an address), `http` (ports; the last one is plain text), `ca` (a
file, where the others serve TLS), `token` (of an administrator), `victim` and `victim_id` (another
key), `silent` (how many connections of each kind it holds on each port) and `seed`. It attacks
until its standard input ends, and prints what it has done.
"""

import json
import os
import random
import resource
import socket
import ssl
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from h2.exceptions import H2Error

from reliability.cancelling import Stage, cancel_calls
from reliability.hostile import VALIDATE, HostileConnection
from reliability.served import Method, every_method

HOST = "127.0.0.1"
TIMEOUT_S = 10.0
EMPTY_MESSAGE = b"\0\0\0\0\0"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nhost: keybearer\r\n"
HALF_A_FORM = (
    b"POST /oauth2/introspect HTTP/1.1\r\nhost: keybearer\r\ncontent-length: 99\r\n"
    b"content-type: application/x-www-form-urlencoded\r\n\r\ntoken="
)
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303")
"""The first bytes of a TLS handshake whose client then stalls."""
BY_SILENCE = (b"", PREFACE[:10], PREFACE + SETTINGS, HALF_A_HEAD, HALF_A_FORM, CLIENT_HELLO)
METHODS_OF_GARBAGE = (
    VALIDATE,
    "/keybearer.v1.TokenService/WhoAmI",
    "/keybearer.v1.ApiKeyService/ListApiKeys",
    "/envoy.service.auth.v3.Authorization/Check",
)


@dataclass
class Target:
    """A server to attack."""

    grpc: str
    http: list[int]
    tls: ssl.SSLContext | None
    methods: list[Method]
    token: str
    victim: str
    silent: int
    seed: int

    def connect(self, port: int) -> socket.socket:
        """Connect to a port and no further: no TLS."""
        return socket.create_connection((HOST, port), timeout=TIMEOUT_S)

    def request(self, port: int, head: bytes) -> None:
        """Make a whole request over HTTP, and read a part of its answer."""
        with self.connect(port) as plain:
            tls = self.tls if port != self.http[-1] else None  # metrics are plain text
            one = plain if tls is None else tls.wrap_socket(plain, server_hostname="localhost")
            with one:
                one.sendall(head)
                one.recv(4096)

    def speak(self) -> HostileConnection:
        """Open a connection to the gRPC port that is one."""
        return HostileConnection(self.grpc, tls=self.tls, within_s=TIMEOUT_S)

    @property
    def ports(self) -> list[int]:
        return [int(self.grpc.rpartition(":")[2]), *self.http]


def garbage_tokens(target: Target, rng: random.Random, connection: HostileConnection) -> str:
    """Call with tokens that open nothing, and report such tokens as leaked."""
    begun = [
        connection.begin_call(rng.choice(METHODS_OF_GARBAGE), _garbage(target, rng))
        for _ in range(20)
    ]
    for call in begun:
        connection.send_some(call, EMPTY_MESSAGE, is_last=True)
    revoking = connection.begin_call("/keybearer.v1.TokenService/RevokeToken")
    token = _garbage(target, rng).encode()
    message = b"\x0a" + bytes([len(token)]) + token
    connection.send_some(revoking, b"\0" + len(message).to_bytes(4) + message, is_last=True)
    connection.wait_for_end([*begun, revoking])
    return "garbage tokens, by 20"


def cancelled_calls(target: Target, rng: random.Random, connection: HostileConnection) -> str:
    """Begin calls of a method and take them back, with or without a credential."""
    method, stage = rng.choice(target.methods), rng.choice(list(Stage))
    cancel_calls(connection, method, stage, rng.choice(["", target.token]), 20)
    return "cancelled calls, by 20"


def oversized_metadata(target: Target, rng: random.Random, connection: HostileConnection) -> str:
    """Send metadata beyond the limit, plain and Huffman-coded."""
    extra = [(f"x-padding-{number}", "x" * 1000) for number in range(rng.choice([9, 200]))]
    connection.begin_call(rng.choice(METHODS_OF_GARBAGE), target.token, extra=extra)
    connection.wait_until_taken_in()
    return "oversized metadata"


def garbage_requests(target: Target, rng: random.Random) -> str:
    """Ask the HTTP ports with tokens that open nothing, for pages that do not exist, in no HTTP."""
    token = _garbage(target, rng).encode()
    head = rng.choice(
        [
            b"GET /v1/auth HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + token + b"\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET /" + token + b" HTTP/1.1\r\nhost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nhost: a\r\nx-padding: " + b"x" * 20_000 + b"\r\n\r\n",
            rng.randbytes(200),
        ]
    )
    target.request(rng.choice(target.http), head)
    return "garbage requests"


def resets(target: Target, rng: random.Random) -> str:
    """Connect, send something or nothing, and reset the connection."""
    with target.connect(rng.choice(target.ports)) as one:
        one.sendall(rng.choice(BY_SILENCE))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return "resets"


CALLING = (garbage_tokens, cancelled_calls, oversized_metadata)
"""Attacks on a connection to the gRPC port, which they keep for as long as it lasts."""
CONNECTING = (garbage_requests, resets)
"""Attacks with a new connection each."""


class Attackers:
    """The threads of all attacks on one target."""

    def __init__(self, target: Target) -> None:
        self.done: Counter[str] = Counter()
        self._target = target
        silences = [(port, sent) for port in target.ports for sent in BY_SILENCE]
        work = [
            *(partial(self._call, attack, seed) for seed, attack in enumerate(CALLING)),
            *(partial(self._connect, attack, seed) for seed, attack in enumerate(CONNECTING)),
            partial(self._hold, silences),
        ]
        self._threads = [threading.Thread(target=one, daemon=True) for one in work]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _call(
        self, attack: Callable[[Target, random.Random, HostileConnection], str], seed: int
    ) -> None:
        rng = random.Random(self._target.seed + seed)
        while True:
            with self._refusals(attack.__name__), self._target.speak() as connection:
                while True:
                    self.done[attack(self._target, rng, connection)] += 1

    def _connect(self, attack: Callable[[Target, random.Random], str], seed: int) -> None:
        rng = random.Random(self._target.seed + 50 + seed)
        while True:
            with self._refusals(attack.__name__):
                self.done[attack(self._target, rng)] += 1

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        """Count what the server does to a connection, and go on."""
        try:
            yield
        except (OSError, H2Error) as error:
            self.done[f"{name}: {type(error).__name__}"] += 1
            time.sleep(0.01)

    def _hold(self, silences: list[tuple[int, bytes]]) -> None:
        """Hold silent and half-open connections, and open one again that the server closed."""
        held: list[list[socket.socket]] = [[] for _ in silences]
        while True:
            time.sleep(0.1)
            for (port, sent), mine in zip(silences, held, strict=True):
                mine[:] = [one for one in mine if _is_open(one)]
                for _ in range(min(20, self._target.silent - len(mine))):
                    self._add(mine, port, sent)

    def _add(self, mine: list[socket.socket], port: int, sent: bytes) -> None:
        try:
            one = self._target.connect(port)
            mine.append(one)
            one.sendall(sent)
            one.setblocking(False)
            self.done["silent connections"] += 1
        except OSError as error:
            self.done[f"silent connections: {type(error).__name__}"] += 1


def _is_open(one: socket.socket) -> bool:
    try:
        while one.recv(4096):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    one.close()
    return False


def _garbage(target: Target, rng: random.Random) -> str:
    place = rng.randrange(len(target.victim))
    changed = target.victim[:place] + rng.choice("0123456789abcXYZ") + target.victim[place + 1 :]
    return rng.choice([changed, rng.randbytes(rng.randrange(1, 60)).hex(), target.victim[:9]])


def main() -> None:
    """Attack until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.nice(19)
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    tls = None
    if told["ca"]:
        tls = ssl.create_default_context(cafile=told["ca"])
        tls.set_alpn_protocols(["h2"])
    attackers = Attackers(
        Target(
            grpc=told["grpc"],
            http=told["http"],
            tls=tls,
            methods=list(every_method(told["victim"], told["victim_id"])),
            token=told["token"],
            victim=told["victim"],
            silent=told["silent"],
            seed=told["seed"],
        )
    )
    attackers.start()
    sys.stdin.read()
    json.dump(dict(attackers.done), sys.stdout)


if __name__ == "__main__":
    main()
