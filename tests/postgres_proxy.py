"""A proxy in front of PostgreSQL that cuts, freezes, delays and alters what goes through it.

As a hostile one it makes of PostgreSQL what other databases with its protocol are like: writes that
lose against others at their first statement, snapshots that are lost in the middle, and no
notifications. It says that it is YugabyteDB, knows the words of that one, and refuses what that one
does not have.
"""

import enum
import random
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

from keybearer_service.net.database_url import DatabaseUrl

_COMMIT = b"COMMIT\0"
_TAG = b"COMMIT\0"
_FIRST_OF_A_WRITE = b"UPDATE commits SET"
_VERSION = re.compile(rb"S(....)server_version\0([^\0]*)\0", re.DOTALL)
_MISSING = (b"LISTEN", b"NOTIFY", b"REFERENCING", b"pg_control_system", b"pg_walfile_name")
"""What YugabyteDB does not have, or has switched off."""
_CHANGE_OF_SCHEMA = re.compile(rb"(CREATE|ALTER|DROP) (TABLE|INDEX|FUNCTION|TRIGGER|UNIQUE|OR)")
YUGABYTE = {
    "yb_get_effective_transaction_isolation_level()": "'read committed'::text",
    "yb_is_database_colocated()": "true",
}
"""What a database that is set up well answers."""
_SHARE_OF_CONFLICTS = 0.2
_SHARE_OF_LOST_SNAPSHOTS = 0.05
FAILING_READ = """
CREATE FUNCTION lose_snapshot() RETURNS text LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = '40001'; END$$
"""
"""What a hostile proxy needs in its database."""


class Cut(enum.Enum):
    """Where a connection is cut off around a COMMIT."""

    BEFORE = "before the server has it"
    MIDDLE = "while it is being sent"
    AFTER = "before the client has the answer"


class Proxy:
    """Stands on a Unix socket of its own, between clients and the server of a URL."""

    def __init__(
        self,
        url: DatabaseUrl,
        *,
        drops_options: bool = False,
        hostile: random.Random | None = None,
        chance: random.Random | None = None,
        yugabyte: Mapping[str, str] = YUGABYTE,
        delay_s: float = 0,
        on_sent: Callable[[bytes], None] = lambda _data: None,
    ) -> None:
        """Prepare a proxy; `with` begins to take connections.

        Args:
            url: The database behind it.
            drops_options: Whether a connection begins without the options that its client wants.
            hostile: What decides which writes fail; None for none.
            yugabyte: What a hostile one answers about itself, by what it is asked.
            chance: What decides how much of a COMMIT that is cut in the middle is sent.
            delay_s: How much longer each round trip takes, in seconds.
            on_sent: Is shown what clients have sent, once the server has it.
        """
        self._target = socket_of(url)
        self._directory = tempfile.TemporaryDirectory(prefix="pg-proxy-")
        head = url.text.partition("?")[0]
        self.url = DatabaseUrl(text=f"{head}?host={quote(self._directory.name, safe='')}")
        self._drops_options = drops_options
        self._hostile = hostile
        self._yugabyte = yugabyte
        self._chance = chance or random.Random(1)
        self._delay_s = delay_s
        self.round_trips: list[int] = []
        """Of each write that has ended, how often its client has waited for the server."""
        self._on_sent = on_sent
        self._cut: Cut | None = None
        self._then_refuse = False
        self._refuses = False
        self._tag: bytes | None = None
        self._running = threading.Event()
        self._running.set()
        self._answered: set[socket.socket] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._directory.name) / ".s.PGSQL.5432"))
        self._listener.listen(100)

    def __enter__(self) -> Self:
        """Begin to take connections."""
        self.open()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End."""
        self.close()

    def open(self) -> None:
        """Begin to take connections."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End."""
        self._running.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        self._directory.cleanup()

    def cut_at_commit(self, cut: Cut, *, then_refuse: bool = False) -> None:
        """Cut the connection of the next COMMIT, and then perhaps refuse every new one."""
        self._cut, self._then_refuse = cut, then_refuse

    def lead_to(self, url: DatabaseUrl) -> None:
        """Have new connections go to another server; those that are open stay."""
        self._target = socket_of(url)

    def accept_again(self) -> None:
        """Accept connections again."""
        self._refuses = False

    def answer_commits_with(self, tag: bytes) -> None:
        """Have COMMIT answered with another tag from now on."""
        self._tag = tag

    def freeze(self) -> None:
        """Pass nothing on from now on, and close nothing."""
        self._running.clear()

    def thaw(self) -> None:
        """Pass on again what comes, over new connections."""
        self.cut_all()
        self._running.set()

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            with self._lock:
                self._pairs.append((client, server))
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
            threading.Thread(target=self._to_client, args=(client, server), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        waits = 0
        hostile = None if self._hostile is None else _Hostile(self._hostile, self._yugabyte)
        with suppress(OSError):
            batches = batches_of(client)
            [start] = next(batches, [b""])
            server.sendall(_without_options(start) if self._drops_options else start)
            for batch in batches:
                self._running.wait()
                if client in self._answered:
                    self._answered.discard(client)
                    waits += 1
                    time.sleep(self._delay_s)
                sent = b"".join(batch)
                if _FIRST_OF_A_WRITE in sent:
                    waits = 1
                if _COMMIT in sent:
                    self.round_trips.append(waits)
                if self._cut in (Cut.BEFORE, Cut.MIDDLE) and _COMMIT in sent:
                    server.sendall(self._before_cut(batch))
                    break
                if hostile is not None:
                    sent = b"".join(map(hostile.altered, batch))
                server.sendall(sent)
                self._on_sent(sent)
        _close(client, server)

    def _before_cut(self, batch: list[bytes]) -> bytes:
        """Return what the server still gets of messages with a COMMIT, and cut no more."""
        sent = b"".join(batch)
        is_begun = self._cut is Cut.MIDDLE
        until = self._chance.randint(sent.index(_COMMIT), len(sent)) if is_begun else 0
        self._cut = None
        self._refuses = self._then_refuse
        return sent[:until]

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self._running.wait()
                if _TAG in data and self._cut is Cut.AFTER:
                    self._cut = None
                    self._refuses = self._then_refuse
                    break
                if self._hostile is not None:
                    data = _VERSION.sub(_as_yugabyte, data)
                if self._tag is not None and _TAG in data:
                    data = _with_tag(data, self._tag)
                self._answered.add(client)
                client.sendall(data)
        _close(client, server)


def socket_of(url: DatabaseUrl) -> str:
    """Return the path of a server's socket."""
    return str(Path(parse_qs(urlsplit(url.text).query)["host"][0]) / ".s.PGSQL.5432")


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def batches_of(client: socket.socket) -> Iterator[list[bytes]]:
    """Yield the messages of a client as they come together, the first of which has no type."""
    waiting = b""
    head = 0
    while data := client.recv(65536):
        waiting += data
        batch = []
        start = 0
        while len(waiting) >= start + head + 4:
            length = head + int.from_bytes(waiting[start + head : start + head + 4], "big")
            if len(waiting) < start + length:
                break
            batch.append(waiting[start : start + length])
            start += length
            head = 1
        waiting = waiting[start:]
        if batch:
            yield batch


class _Hostile:
    """What a hostile database makes of the messages of one connection."""

    def __init__(self, chance: random.Random, answers: Mapping[str, str]) -> None:
        self._chance = chance
        self._answers = answers
        self._is_in_snapshot = False
        self._has_lost = False

    def altered(self, message: bytes) -> bytes:
        """Return what PostgreSQL is sent for a message."""
        kind, body = message[:1], message[5:]
        if kind not in (b"P", b"Q"):
            return message
        name, sql, rest = (b"", *body.split(b"\0", 1)) if kind == b"Q" else body.split(b"\0", 2)
        sql = self._altered(sql)
        body = b"\0".join((sql, rest) if kind == b"Q" else (name, sql, rest))
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    def _altered(self, sql: bytes) -> bytes:
        if any(word in sql for word in _MISSING):
            return _failing("0A000")
        if _CHANGE_OF_SCHEMA.match(sql):
            if b";" in _BODY.sub(b"", sql):
                return _failing("0A000")  # each is a transaction of its own there
            return _SHARDING.sub(b"", sql)
        if b"yb_" in sql:
            return self._in_words_of_postgres(sql)
        if sql.startswith(_FIRST_OF_A_WRITE) and self._chance.random() < _SHARE_OF_CONFLICTS:
            return _failing("40001")
        if sql.startswith(b"BEGIN"):
            # The one after a snapshot that was lost is kept, or long reads never ended.
            self._is_in_snapshot = sql.endswith(b"READ ONLY") and not self._has_lost
            self._has_lost = False
        elif sql.startswith((b"ROLLBACK", b"SET LOCAL statement_timeout = 0")):
            self._is_in_snapshot = False  # or in that of a command, which is to be run again
        elif (
            self._is_in_snapshot
            and sql.startswith(b"SELECT")
            and self._chance.random() < _SHARE_OF_LOST_SNAPSHOTS
        ):
            self._has_lost = True
            places = sorted(set(re.findall(rb"\$\d+", sql)))
            given = b", ".join(one + b"::text" for one in places)
            return b"SELECT lose_snapshot() FROM (SELECT " + given + b") AS given"
        # The first statement of a write then fails whenever another one was faster.
        return sql.replace(b"ISOLATION LEVEL READ COMMITTED", b"ISOLATION LEVEL SERIALIZABLE")

    def _in_words_of_postgres(self, sql: bytes) -> bytes:
        """Return a statement whose settings and functions are such as PostgreSQL has."""
        for asked, answer in self._answers.items():
            sql = sql.replace(asked.encode(), answer.encode())
        return re.sub(rb"\byb_", b"keybearer.yb_", sql)


_BODY = re.compile(rb"\$\$.*?\$\$", re.DOTALL)
_SHARDING = re.compile(rb" HASH(?=\))| WITH \(colocation = false\)\Z")


def _as_yugabyte(version: re.Match[bytes]) -> bytes:
    text = version[2].split(b" ")[0] + b"-YB-2025.2.0.0-b1"
    body = b"server_version\0" + text + b"\0"
    return b"S" + (len(body) + 4).to_bytes(4, "big") + body


def _failing(state: str) -> bytes:
    return f"DO $$BEGIN RAISE EXCEPTION 'hostile' USING ERRCODE = '{state}'; END$$".encode()


def _without_options(message: bytes) -> bytes:
    """Return a start-up message without its options, as a pooler passes it on."""
    fields = message[8:].rstrip(b"\0").split(b"\0")
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    kept = b"".join(name + b"\0" + value + b"\0" for name, value in pairs if name != b"options")
    body = message[4:8] + kept + b"\0"
    return (len(body) + 4).to_bytes(4, "big") + body


def _with_tag(data: bytes, tag: bytes) -> bytes:
    """Return messages in which COMMIT is said to have been something else."""
    old = b"C" + (4 + len(_TAG)).to_bytes(4, "big") + _TAG
    new = b"C" + (5 + len(tag)).to_bytes(4, "big") + tag + b"\0"
    return data.replace(old, new)
