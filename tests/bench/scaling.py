"""What a validation costs over PostgreSQL, beside a file: `python tests/bench/scaling.py`.

The same installation lies in a file and, moved there, in a database of the tests' server. Each way
of asking is measured over both in turn: the processor time of keybearer and that of the database,
for each token. Two nodes over the one database too. Nothing is pinned: there are three programs.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import postgres_server
from bench import machine, seed
from bench.entry_points import BATCH, Asker, EntryPoint
from bench.servers import Target, keybearer_server

CALLERS = (1, 8, 32)
WARM_UP_S = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


def database_cpu_s(postmaster: int) -> float:
    """Return the processor time of a PostgreSQL and of every process that it has started."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    ours, *others = (_times(pid) for pid in (postmaster, *map(int, children)))
    # Those that have ended count with the one that started them.
    return (sum(ours) + sum(sum(one[:2]) for one in others)) / _TICKS


def _times(pid: int) -> list[int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return [0] * 4
    return [int(one) for one in fields[11:15]]


@dataclass
class Way:
    """One way of asking, and what was seen of it."""

    name: str
    servers: Sequence[Target]
    asked: Sequence[EntryPoint]
    database_cpu: Callable[[], float]
    rates: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    databases: list[float] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Ask for some seconds, at every server at once."""
        replies = [0] * len(self.asked)

        def ask(number: int, one: EntryPoint) -> None:
            report = one.ask(seconds)
            if report.wrong:
                raise SystemExit(f"{self.name}: {report.wrong} wrong replies")
            replies[number] = report.replies * one.questions

        before = self._cpu()
        threads = [threading.Thread(target=ask, args=one) for one in enumerate(self.asked)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tokens = sum(replies)
        ours, database = (now - then for now, then in zip(self._cpu(), before, strict=True))
        self.rates.append(tokens / seconds)
        self.ours.append(ours / tokens * 1e6)
        self.databases.append(database / tokens * 1e6)

    def _cpu(self) -> tuple[float, float]:
        return sum(one.cpu_seconds() for one in self.servers), self.database_cpu()

    def row(self) -> str:
        """Describe it."""
        rate, ours, database = map(statistics.median, (self.rates, self.ours, self.databases))
        return f"| {self.name} | {rate:,.0f} | {ours:.0f} | {database:.0f} |"


def ways(
    name: str,
    servers: Sequence[Target],
    askers: Callable[[Target, int], Asker],
    database_cpu: Callable[[], float],
) -> Iterator[Way]:
    """Yield every way of asking some servers."""
    for callers in CALLERS:
        share = max(1, callers // len(servers))
        asked = [askers(one, share).validate() for one in servers]
        yield Way(f"{name}, {callers} at a time", servers, asked, database_cpu)
    yield Way(
        f"{name}, batches of {BATCH}",
        servers,
        [askers(one, 1).batches(BATCH) for one in servers],
        database_cpu,
    )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()) / "keybearer-bench"
    )
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    running = postgres_server.server()
    if not isinstance(running, postgres_server.Server):
        raise SystemExit("the processor time of a named server cannot be read")
    data_dir, caller, tokens = seed.installation(options.root, options.keys)
    url = postgres_server.new_database(is_empty=True).text

    def asker(target: Target, callers: int) -> Asker:
        return Asker(target, caller, tokens, callers)

    def database_cpu() -> float:
        return database_cpu_s(running.process.pid)

    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        first, second = Path(directory) / "first", Path(directory) / "second"
        shutil.copytree(data_dir, first)
        subprocess.run(
            [
                *(sys.executable, "-m", "keybearer_service", "move"),
                *("--data-dir", str(first), "--to", url),
            ],
            check=True,
            capture_output=True,
        )
        second.mkdir(mode=0o700)
        shutil.copytree(first / "peppers", second / "peppers")
        at = ("--database", url)
        file = stack.enter_context(keybearer_server(data_dir, pinned=False))
        nodes = [
            stack.enter_context(keybearer_server(one, *at, pinned=False)) for one in (first, second)
        ]
        measured = [
            *ways("SQLite", [file], asker, lambda: 0.0),
            *ways("PostgreSQL, one node", nodes[:1], asker, database_cpu),
            *ways("PostgreSQL, two nodes", nodes, asker, database_cpu),
        ]
        for way in measured:
            way.run(WARM_UP_S)
            way.rates.clear()
            way.ours.clear()
            way.databases.clear()
        for number in range(options.rounds):
            for way in measured if number % 2 == 0 else measured[::-1]:
                way.run(options.seconds)
        print(machine.machine())
        print(machine.interpreter())
        print(f"{options.keys:,} keys, {options.rounds} rounds of {options.seconds:g} s\n")
        print("| | tokens/s | keybearer µs | database µs |\n|---|---:|---:|---:|")
        for way in measured:
            print(way.row())


if __name__ == "__main__":
    main()
