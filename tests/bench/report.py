"""`make bench`: what an answered question costs the server, at every entry point.

The measure is processor time: rates waver with whatever else runs on the machine, and processor
time hardly does. All entry points are asked in turn, several rounds in one run, right after a
grpcio server that does nothing (the yardstick), each server in a process of its own on one core,
the generator on the others. Every reply is checked.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import machine, plot, seed
from bench.entry_points import BATCH, SMALL_BATCH, Asker, EntryPoint
from bench.servers import Target, bare_server, keybearer_server

CHECKERS = 32
"""Threads that check at the same time, where many do."""
BARE = "bare grpcio, an empty handler"
_WARM_UP_S = 1.0


@dataclass
class Figures:
    """What the rounds of one entry point saw."""

    target: Target
    entry_point: EntryPoint
    cpu_us: list[float] = field(default_factory=list)
    """Processor microseconds of the server for each question, a figure a round."""
    rates: list[float] = field(default_factory=list)
    """Questions a second."""
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    replies: int = 0
    wrong: int = 0

    def run(self, seconds: float) -> None:
        """Ask for a while."""
        before = self.target.cpu_seconds()
        report = self.entry_point.ask(seconds)
        spent = self.target.cpu_seconds() - before
        self.cpu_us.append(spent / (report.replies * self.entry_point.questions) * 1e6)
        self.rates.append(report.rate * self.entry_point.questions)
        self.p50_ms.append(report.percentile(0.5))
        self.p99_ms.append(report.percentile(0.99))
        self.replies += report.replies
        self.wrong += report.wrong

    @property
    def cpu(self) -> float:
        """The median of the rounds, in microseconds."""
        return statistics.median(self.cpu_us)

    def row(self, bare: "Figures") -> list[str]:
        """Return the cells of a table."""
        ratio = statistics.median(
            yardstick / ours for yardstick, ours in zip(bare.cpu_us, self.cpu_us, strict=True)
        )
        return [
            self.entry_point.name,
            f"{self.cpu:.1f} ({min(self.cpu_us):.1f} to {max(self.cpu_us):.1f})",
            f"{ratio:.2f}",
            f"{statistics.median(self.rates):,.0f}",
            f"{statistics.median(self.p50_ms):.2f}",
            f"{statistics.median(self.p99_ms):.2f}",
        ]


HEADINGS = (
    "entry point",
    "CPU µs a question",
    "questions for the CPU of a bare call",
    "questions/s",
    "p50 ms",
    "p99 ms",
)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rule = ["---"] * len(headings)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))


def measure(all_figures: Sequence[Figures], rounds: int, seconds: float) -> None:
    """Ask every entry point in turn, in another order each round."""
    for figures in all_figures:
        figures.entry_point.ask(_WARM_UP_S)
    for number in range(rounds):
        order = all_figures if number % 2 == 0 else all_figures[::-1]
        for figures in order:
            figures.run(seconds)


def entry_points(options: argparse.Namespace) -> list[Figures]:
    """Measure every entry point at the greatest number of keys."""
    keys = options.keys[-1]
    data_dir, caller, tokens = seed.installation(options.root, keys)
    with ExitStack() as stack:
        bare = stack.enter_context(bare_server())
        ours = stack.enter_context(keybearer_server(data_dir, http=True))
        asker = Asker(ours, caller, tokens, options.connections)
        bare_asker = Asker(bare, caller, tokens, options.connections)
        found = [
            Figures(bare, bare_asker.validate(BARE)),
            *(
                Figures(ours, one)
                for one in (
                    asker.validate(),
                    asker.ext_authz(),
                    asker.forward_auth(),
                    asker.introspection(),
                    asker.batches(SMALL_BATCH),
                    asker.batches(BATCH),
                    *(
                        stack.enter_context(asker.checks(threads, gathered=gathered))
                        for threads in (1, CHECKERS)
                        for gathered in (False, True)
                    ),
                    *(
                        asker.tasks(count, gathered=gathered)
                        for count in (1, CHECKERS)
                        for gathered in (False, True)
                    ),
                )
            ),
        ]
        measure(found, options.rounds, options.seconds)
        print(
            f"\n{keys:,} keys, {options.connections} connections, {options.rounds} rounds of "
            f"{options.seconds:g} s each; the server started in {ours.start_s:.2f} s and holds "
            f"{ours.memory_mib():.0f} MiB, the bare one {bare.memory_mib():.0f} MiB\n"
            f"{machine.interpreter()}\n"
        )
        print(table(HEADINGS, [one.row(found[0]) for one in found]))
    return found


def growth(options: argparse.Namespace) -> list[Figures]:
    """Measure how cost grows with the number of keys, all sizes in turn."""
    found: list[Figures] = []
    sizes = []
    rows = []
    with ExitStack() as stack:
        bare = stack.enter_context(bare_server())
        for keys in options.keys:
            data_dir, caller, tokens = seed.installation(options.root, keys)
            ours = stack.enter_context(keybearer_server(data_dir))
            asker = Asker(ours, caller, tokens, options.connections)
            sizes.append((keys, ours))
            found += [Figures(ours, asker.validate()), Figures(ours, asker.batches(BATCH))]
        yardstick = Figures(bare, Asker(bare, caller, tokens, options.connections).validate(BARE))
        measure([yardstick, *found], options.rounds, options.seconds)
        for (keys, ours), single, batch in zip(sizes, found[::2], found[1::2], strict=True):
            rows.append(
                [
                    f"{keys:,}",
                    f"{single.cpu:.0f}",
                    f"{batch.cpu:.1f}",
                    f"{ours.start_s:.2f}",
                    f"{ours.start_cpu_s:.2f}",
                    f"{ours.memory_mib():.0f}",
                ]
            )
    headings = (
        "keys",
        "CPU µs a ValidateToken",
        "CPU µs a token in batches of 100",
        "start s",
        "CPU s of the start",
        "MiB",
    )
    print(f"\n{machine.interpreter()}\n\n{table(headings, rows)}")
    return [yardstick, *found]


def paths(options: argparse.Namespace) -> list[Figures]:
    """Measure the hot methods on the hot loop and on the ordinary path, each with its own data."""
    data_dir, caller, tokens = seed.installation(options.root, options.keys[0])
    with ExitStack() as stack:
        bare = stack.enter_context(bare_server())
        found = [Figures(bare, Asker(bare, caller, tokens, options.connections).validate(BARE))]
        for name, flag in (("ordinary path", "--no-hot-loop"), ("hot loop", "--hot-loop")):
            copy = stack.enter_context(tempfile.TemporaryDirectory()) + "/data"
            shutil.copytree(data_dir, copy)
            ours = stack.enter_context(keybearer_server(Path(copy), flag))
            asker = Asker(ours, caller, tokens, options.connections)
            found += [
                Figures(ours, one._replace(name=f"{one.name}, {name}"))
                for one in (asker.validate(), asker.ext_authz(), asker.batches(SMALL_BATCH))
            ]
        measure(found, options.rounds, options.seconds)
        print(f"\n{table(HEADINGS, [one.row(found[0]) for one in found])}")
    return found


def workers(options: argparse.Namespace) -> list[Figures]:
    """Measure two workers beside one, where every process may use every core."""
    data_dir, caller, tokens = seed.installation(options.root, options.keys[-1])
    both: dict[int, Figures] = {}
    for count in (1, 2, 1, 2):
        with keybearer_server(data_dir, workers=count, pinned=False) as ours:
            figures = Figures(ours, Asker(ours, caller, tokens, 32).validate())
            figures.entry_point.ask(_WARM_UP_S)
            figures.run(options.seconds)
        known = both.setdefault(count, figures)
        if known is not figures:
            known.rates += figures.rates
            known.wrong += figures.wrong
    one, two = (statistics.mean(both[count].rates) for count in (1, 2))
    print(
        f"\nworkers, 32 connections, not pinned: one {one:,.0f}/s, two {two:,.0f}/s, "
        f"{two / one:.2f} times"
    )
    return list(both.values())


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--plot", type=Path, help="write a plot of the entry points, as SVG")
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()) / "keybearer-bench"
    )
    parser.add_argument("--only", choices=("entry-points", "paths", "growth", "workers"))
    options = parser.parse_args()
    for keys in options.keys:
        seed.installation(options.root, keys)
    os.sched_setaffinity(0, machine.GENERATOR)
    about = [machine.interpreter(), machine.machine(), machine.libraries(), machine.pinning()]
    print("\n".join(about))
    figures: list[Figures] = []
    if options.only in (None, "entry-points"):
        found = entry_points(options)
        figures += found
        if options.plot is not None:
            bars = [(one.entry_point.name, one.cpu) for one in found]
            options.plot.write_text(
                plot.bars("CPU µs of the server for each question", bars), "utf-8"
            )
    if options.only in (None, "paths"):
        figures += paths(options)
    if options.only in (None, "growth"):
        figures += growth(options)
    if options.only in (None, "workers"):
        figures += workers(options)
    wrong = sum(one.wrong for one in figures)
    print(f"\n{sum(one.replies for one in figures):,} replies, {wrong} of them wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
