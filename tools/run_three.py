"""`make run-three`: three nodes of keybearer over one PostgreSQL on this machine, until Ctrl-C.

Without `--database` the server is one of its own, in memory, and gone in the end.
"""

import argparse
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import postgres_server
from keybearer_service.net.addresses import Address

NODES: Final = 3
COMMAND: Final = (sys.executable, "-m", "keybearer_service")
START_TIMEOUT_S: Final = 60.0
END_TIMEOUT_S: Final = 30.0
_EMAIL: Final = "admin@localhost"
_LOOK_EVERY_S: Final = 0.05


class Node:
    """A process that serves, and its log."""

    def __init__(self, directory: Path, listen: Address, database: str) -> None:
        self.log = directory.with_suffix(".log")
        words = ("serve", "--data-dir", directory, "--listen", str(listen), "--database", database)
        with self.log.open("wb") as written:
            self.process = subprocess.Popen([*COMMAND, *words], stderr=written)
        self._host = listen.host

    def address(self) -> str:
        """Return where it serves, once it does.

        Raises:
            SystemExit: It does not start.
        """
        pause = threading.Event()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            for line in self.log.read_text("utf-8").splitlines():
                if '"event": "serving"' in line:
                    return str(Address(self._host, json.loads(line)["port"]))
            pause.wait(_LOOK_EVERY_S)
        raise SystemExit(f"a node does not start:\n{self.log.read_text('utf-8')}")

    def end(self) -> None:
        """End it, as Ctrl-C does."""
        self.process.terminate()
        self.process.wait(END_TIMEOUT_S)


def main() -> None:
    """Run the nodes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", default="")
    parser.add_argument("--data-dir", type=Path, default=Path("data/three"))
    parser.add_argument("--listen", type=Address.parse, default=Address.parse("127.0.0.1:50051"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    with ExitStack() as stack:
        place = given.data_dir
        database = given.database
        if not database:
            try:
                server = postgres_server.Server()
            except postgres_server.NoServerError as error:
                raise SystemExit(f"no PostgreSQL: {error}; name one with DATABASE=URL") from None
            stack.callback(server.close)
            postgres_server.execute(server.url("postgres"), "CREATE DATABASE keybearer")
            database = server.url("keybearer")
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keybearer-")))
        directories = [place / f"node{number}" for number in range(1, NODES + 1)]
        token_file = place / "admin-token"
        _initialise(directories, database, token_file)
        nodes = [
            Node(directory, _next(given.listen, number), database)
            for number, directory in enumerate(directories)
        ]
        for node in nodes:
            stack.callback(node.end)
        _show([node.address() for node in nodes], token_file, place)
        pause = threading.Event()
        while all(node.process.poll() is None for node in nodes):
            pause.wait(_LOOK_EVERY_S)
        raise SystemExit(f"a node has ended; the logs are in {place}")


def _initialise(directories: Sequence[Path], database: str, token_file: Path) -> None:
    first, *others = directories
    if not (first / "peppers").exists():
        first.parent.mkdir(parents=True, exist_ok=True)
        words = ("--account", "default", "--admin-email", _EMAIL, "--token-file", token_file)
        made = subprocess.run(
            [*COMMAND, "init", "--data-dir", first, "--database", database, *words], check=False
        )
        if made.returncode:
            raise SystemExit(made.returncode)
    for other in others:
        other.mkdir(mode=0o700, exist_ok=True)
        shutil.copytree(first / "peppers", other / "peppers", dirs_exist_ok=True)


def _next(address: Address, number: int) -> Address:
    return Address(address.host, address.port + number if address.port else 0)


def _show(addresses: Sequence[str], token_file: Path, place: Path) -> None:
    sys.stdout.write(
        f"Three nodes over one database: {', '.join(addresses)}\n"
        f"Their logs are in {place}, and Ctrl-C ends them. In another shell:\n\n"
        f'  export KEYBEARER_TOKEN="$(cat {shlex.quote(str(token_file))})"\n'
    )
    sys.stdout.flush()


def _end(*_: Any) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
