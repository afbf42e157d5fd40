"""Servers to be measured, each in a process of its own, and what a run costs them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import machine

_TICKS = os.sysconf("SC_CLK_TCK")


class Target(NamedTuple):
    """A server to be measured."""

    port: int
    pid: int
    http_port: int = 0
    start_s: float = 0.0
    """From the start of the process until it serves."""
    start_cpu_s: float = 0.0
    """The processor time of that."""

    def cpu_seconds(self) -> float:
        """Return the processor time of all its threads and processes, user and system."""
        return sum(
            (int(fields[11]) + int(fields[12])) / _TICKS for fields in map(_stat, self._processes())
        )

    def memory_mib(self) -> float:
        """Return the memory of all its processes, without the mapped pages of files.

        The system takes mapped pages back when somebody needs the memory.
        """
        return sum(map(_own_kib, self._processes())) / 1024

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _own_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))


@contextmanager
def bare_server() -> Iterator[Target]:
    """Run the yardstick."""
    with _process([sys.executable, str(Path(__file__).with_name("bare.py"))]) as process:
        assert process.stdout is not None
        yield Target(int(process.stdout.readline()), process.pid)


@contextmanager
def keybearer_server(
    data_dir: Path,
    *flags: str,
    workers: int = 1,
    http: bool = False,
    pinned: bool = True,
) -> Iterator[Target]:
    """Run the service as `serve` does, on the core of the servers unless it is not pinned."""
    command = [sys.executable, "-m", "keybearer_service", "serve", "--data-dir", str(data_dir)]
    command += ["--listen", "127.0.0.1:0", "--workers", str(workers), *flags]
    if http:
        command += ["--http-listen", "127.0.0.1:0"]
    started = time.perf_counter()
    with _process(command, pinned=pinned) as process:
        assert process.stderr is not None
        ready = []
        http_port = 0
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "serving":
                ready.append(event["port"])
            elif event["event"] == "serving_http":
                http_port = event["port"]
            if len(ready) == workers and bool(http_port) == http:
                break
        else:
            raise RuntimeError("the server did not start")
        ready_after = time.perf_counter() - started
        target = Target(ready[0], process.pid, http_port, ready_after)
        yield target._replace(start_cpu_s=target.cpu_seconds())


@contextmanager
def _process(command: Sequence[str], *, pinned: bool = True) -> Iterator[subprocess.Popen[str]]:
    mine = os.sched_getaffinity(0)
    path = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    # A child inherits it, with all its threads.
    os.sched_setaffinity(0, machine.SERVERS if pinned else machine.SERVERS | machine.GENERATOR)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        )
    finally:
        os.sched_setaffinity(0, mine)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)
