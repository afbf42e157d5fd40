"""A store in another process: what a server's store looks like to the other servers on its file.

`python -m storeprocess` opens stores and uses them as it is told over a socket. One thread of the
caller has one connection and is served by one thread there, because a store's snapshots belong to
threads.
"""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from keybearer_service.storage.sqlite import SqliteStore

_AUTHKEY = b"tests"
_stores: dict[int, SqliteStore] = {}
_numbers = itertools.count()


class BlockFailedError(Exception):
    """Stands for whatever the block of a transaction raised in the other process."""


class _Session:
    """Serves one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._open: list[tuple[AbstractContextManager[Any], Any]] = []
        self._last_error: Exception | None = None

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                command, *arguments = self._connection.recv()
                try:
                    answer = getattr(self, command)(*arguments)
                except Exception as error:  # noqa: BLE001 - raised again where it was asked for
                    self._last_error = error
                    self._connection.send((False, error))
                else:
                    self._connection.send((True, answer))

    def open(self, path: Path, keywords: dict[str, Any]) -> int:
        number = next(_numbers)
        _stores[number] = SqliteStore(path, **keywords)
        return number

    def call(self, number: int, name: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(_stores[number], name)(*arguments)

    def begin(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        manager = getattr(_stores[number], name)(*arguments)
        self._open.append((manager, manager.__enter__()))

    def use(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return getattr(self._open[-1][1], name)(*arguments, **keywords)

    def end(self, failure: str) -> None:
        manager, _ = self._open.pop()
        error = {"": None, "own": BlockFailedError(), "last": self._last_error}[failure]
        with suppress(BlockFailedError):  # the block's own exception goes on in the other process
            manager.__exit__(None if error is None else type(error), error, None)


class StoreProcess:
    """The other process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "storeprocess"],
            # This folder first, as in the process that asks.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        self._local = threading.local()

    def ask(self, *command: Any) -> Any:
        """Have something done there; return or raise what came of it."""
        connection: Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = Client(self._address, authkey=_AUTHKEY)
        connection.send(command)
        succeeded, answer = connection.recv()
        if not succeeded:
            self._local.last_error = answer
            raise answer
        return answer

    def raised_last(self, error: BaseException) -> bool:
        """Return whether an exception came from there, as the last one of this thread."""
        return getattr(self._local, "last_error", None) is error

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


class RemoteStore:
    """A store in the other process. Has the methods of a Store that the tests share out."""

    def __init__(self, process: StoreProcess, path: Path, **keywords: Any) -> None:
        self._process = process
        self._number = process.ask("open", path, keywords)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._process.ask("call", self._number, name, arguments)

    @contextmanager
    def _block(self, kind: str, *arguments: Any) -> Iterator[Any]:
        self._process.ask("begin", self._number, kind, arguments)
        try:
            yield _RemoteTransaction(self._process)
        except BaseException as error:
            self._process.ask("end", "last" if self._process.raised_last(error) else "own")
            raise
        self._process.ask("end", "")

    def read(self, caller: Any = None) -> AbstractContextManager[Any]:
        return self._block("read", caller)

    def write(self, foreseen: Any = ()) -> AbstractContextManager[Any]:
        return self._block("write")


class _RemoteTransaction:
    def __init__(self, process: StoreProcess) -> None:
        self._process = process

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments, **keywords: self._process.ask("use", name, arguments, keywords)


class AlternatingStore:
    """A store that is used from two processes in turn."""

    _SHARED_OUT = frozenset(
        {
            "lookup",
            "lookup_many",
            "read",
            "write",
            "claim_uses",
            "add_uses",
            "changes_since",
            "prune",
            "check",
            "check_file",
            "backup",
        }
    )
    """The others say something about one process, and are asked of this one."""

    def __init__(self, process: StoreProcess, path: Path, **keywords: Any) -> None:
        self._here = SqliteStore(path, shared=True, **keywords)
        self._there = RemoteStore(process, path, shared=True, **keywords)
        self._turns = itertools.count()

    def __getattr__(self, name: str) -> Any:
        is_there = name in self._SHARED_OUT and next(self._turns) % 2 == 1
        return getattr(self._there if is_there else self._here, name)

    def close(self) -> None:
        self._there.close()
        self._here.close()


def _serve_forever(listener: Listener) -> None:
    while True:
        session = _Session(listener.accept())
        threading.Thread(target=session.serve, daemon=True).start()


def main() -> None:
    """Serve until standard input ends."""
    with Listener(family="AF_UNIX", authkey=_AUTHKEY) as listener:
        sys.stdout.write(f"{listener.address}\n")
        sys.stdout.flush()
        threading.Thread(target=_serve_forever, args=(listener,), daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    main()
