"""Commands over very many rows: how long they take, and `backup` beside changes.

    python tests/bench/commands.py DIRECTORY [--keys 1000000]

The installation, with an audit event for each key, is made once in the directory and kept for the
next run.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.lists import served
from bench.moving import logged_installation
from harness import Stubs
from reliability.processes import SERVER, environment

EVERY_S = 0.02
"""Between two changes beside a backup: 50 a second."""


def run(*words: str) -> str:
    """Run a command of the server; return what it printed."""
    return subprocess.run(
        [sys.executable, *SERVER, *words],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def command(*words: str) -> float:
    """Run a command of the server; return how many seconds it took."""
    began = time.monotonic()
    run(*words)
    return time.monotonic() - began


@contextmanager
def changes(stubs: Stubs, key_id: str) -> Iterator[list[float]]:
    """Change a key again and again until the end of the block; yield how long each change took."""
    over, took = threading.Event(), list[float]()

    def change() -> None:
        due = time.monotonic()
        while not over.is_set():
            began = time.monotonic()
            stubs.update_key(key_id, {"description": f"changed {len(took)} times"})
            took.append(time.monotonic() - began)
            due += EVERY_S
            over.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def wal_bytes(path: Path) -> int:
    """Return the size of the write-ahead log."""
    return sum(file.stat().st_size for file in path.glob("*.db-wal"))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--keys", type=int, default=1_000_000)
    options = parser.parse_args()
    path = logged_installation(options.directory, options.keys)
    where = ("--data-dir", str(path))
    token = run("admin-token", "--email", "admin@example.com", *where).strip()
    copies = options.directory / "copies"
    with served(path) as service:
        print(f"start: {service.start_s:.2f} s", flush=True)
        stubs = service.stubs(token)
        key_id = stubs.list_keys(page_size=1).api_keys[0].id
        for round_number in range(3):
            shutil.rmtree(copies, ignore_errors=True)
            copies.mkdir()
            quiet = command("backup", str(copies / "quiet.db"), *where)
            before = wal_bytes(path)
            with changes(stubs, key_id) as took:
                busy = command("backup", str(copies / "busy.db"), *where)
            took.sort()
            print(
                f"backup, round {round_number + 1}: quiet {quiet:.1f} s, beside"
                f" {len(took) / busy:.0f} changes a second {busy:.1f} s, {busy / quiet:.2f} times;"
                f" a change p99 {took[len(took) * 99 // 100] * 1000:.0f} ms; write-ahead log"
                f" {before / 2**20:.0f} to {wal_bytes(path) / 2**20:.0f} MiB",
                flush=True,
            )
    print(f"audit verify: {command('audit', 'verify', *where):.1f} s", flush=True)
    print(f"check: {command('check', *where):.1f} s", flush=True)
    size = sum(file.stat().st_size for file in path.glob("*.db*"))
    print(f"size of the database: {size / 2**20:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
