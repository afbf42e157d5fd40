"""A pooler in transaction mode: its clients share one session of the server, a transaction each."""

import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from keybearer_service.net.database_url import DatabaseUrl
from postgres_proxy import batches_of, socket_of

_PROTOCOL = (196608).to_bytes(4, "big")
_READY = b"Z\0\0\0\x05"
_ENDS = (b"Q", b"S")
"""Messages after which a client waits for the server."""


class Pooler:
    """Stands on a Unix socket of its own, between clients and the server of a URL."""

    def __init__(self, url: DatabaseUrl) -> None:
        """Open the one session; `with` begins to take clients."""
        self._directory = tempfile.TemporaryDirectory(prefix="pg-pooler-")
        head = url.text.partition("?")[0]
        self.url = DatabaseUrl(text=f"{head}?host={quote(self._directory.name, safe='')}")
        user, _, database = head.removeprefix("postgresql://").partition("@/")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(socket_of(url))
        fields = f"user\0{user}\0database\0{database}\0\0".encode()
        self._server.sendall((len(fields) + 8).to_bytes(4, "big") + _PROTOCOL + fields)
        self._greeting = self._answer()
        self._has_session = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._directory.name) / ".s.PGSQL.5432"))
        self._listener.listen(100)
        self._clients: list[socket.socket] = []

    def __enter__(self) -> Self:
        """Begin to take clients."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """End."""
        for one in (self._listener, self._server, *self._clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._directory.cleanup()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            batches = batches_of(client)
            next(batches)
            client.sendall(self._greeting)
            waiting: list[bytes] = []
            for batch in batches:
                waiting += batch
                if any(one[:1] in _ENDS for one in waiting):
                    client.sendall(self._exchange(waiting))
                    waiting = []

    def _exchange(self, messages: list[bytes]) -> bytes:
        """Have the server carry out messages, with nobody else in between."""
        with self._has_session:
            self._server.sendall(b"".join(messages))
            return self._answer()

    def _answer(self) -> bytes:
        answer = b""
        while _READY not in answer:
            answer += self._server.recv(65536)
        return answer
