"""A proxy in front of PostgreSQL that cuts, freezes and alters what goes through it.

As a hostile one it makes of PostgreSQL what other databases with its protocol are like: writes that
lose against others at their first statement, and no notifications.
"""

import enum
import random
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, quote, urlsplit

from keybearer_service.net.database_url import DatabaseUrl

_COMMIT = b"COMMIT\0"
_TAG = b"COMMIT\0"


_FIRST_OF_A_WRITE = b"UPDATE commits SET"
_CONFLICT = b"SERROR\0VERROR\0C40001\0Mrestart transaction\0\0"
_NO_LISTEN = b"SERROR\0VERROR\0C0A000\0MLISTEN is not supported\0\0"
_IDLE = b"Z\0\0\0\x05I"
_SHARE_OF_CONFLICTS = 0.2


class Cut(enum.Enum):
    """Where a connection is cut off around a COMMIT."""

    BEFORE = "before the server has it"
    AFTER = "before the client has the answer"


class Proxy:
    """Stands on a Unix socket of its own, between clients and the server of a URL."""

    def __init__(
        self,
        url: DatabaseUrl,
        *,
        drops_options: bool = False,
        hostile: random.Random | None = None,
        on_sent: Callable[[bytes], None] = lambda _data: None,
    ) -> None:
        """Prepare a proxy; `with` begins to take connections.

        Args:
            url: The database behind it.
            drops_options: Whether a connection begins without the options that its client wants.
            hostile: What decides which writes fail; None for none.
            on_sent: Is shown what clients have sent, once the server has it.
        """
        self._target = socket_of(url)
        self._directory = tempfile.TemporaryDirectory(prefix="pg-proxy-")
        head = url.text.partition("?")[0]
        self.url = DatabaseUrl(text=f"{head}?host={quote(self._directory.name, safe='')}")
        self._drops_options = drops_options
        self._hostile = hostile
        self._on_sent = on_sent
        self._cut: Cut | None = None
        self._then_refuse = False
        self._refuses = False
        self._tag: bytes | None = None
        self._running = threading.Event()
        self._running.set()
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
        with suppress(OSError):
            first = True
            while data := client.recv(65536):
                self._running.wait()
                if first and self._drops_options:
                    data = _without_options(data)
                first = False
                if _COMMIT in data and self._cut is Cut.BEFORE:
                    self._cut = None
                    self._refuses = self._then_refuse
                    break
                if self._hostile is not None:
                    refusal = _refusal(data, self._hostile)
                    if refusal:
                        client.sendall(refusal)
                        continue
                server.sendall(data)
                self._on_sent(data)
        _close(client, server)

    def _to_client(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self._running.wait()
                if _TAG in data and self._cut is Cut.AFTER:
                    self._cut = None
                    self._refuses = self._then_refuse
                    break
                if self._tag is not None and _TAG in data:
                    data = _with_tag(data, self._tag)
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


def _refusal(message: bytes, chance: random.Random) -> bytes:
    """Return what a hostile database answers to a query at once; nothing when it executes it."""
    if message[:1] != b"Q":
        return b""
    if message[5:].startswith(b"LISTEN"):
        return _error(_NO_LISTEN)
    if _FIRST_OF_A_WRITE in message and chance.random() < _SHARE_OF_CONFLICTS:
        return _error(_CONFLICT)
    return b""


def _error(fields: bytes) -> bytes:
    return b"E" + (len(fields) + 4).to_bytes(4, "big") + fields + _IDLE


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
