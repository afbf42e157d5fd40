"""What a process holds: descriptors, threads, memory."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WITHIN_S = 60.0
_ESTABLISHED = "01"
_NOT_ACCEPTED = "0"
"""The inode of a connection that still waits in the backlog."""


@dataclass(frozen=True)
class VitalSigns:
    """What a process holds at one moment."""

    sockets: int
    files: int
    """Other descriptors. SQLite keeps those of closed connections for the next ones."""
    threads: int
    """Those of Python alone: grpc's core starts and ends its own as it likes."""
    memory_kb: int

    def __str__(self) -> str:
        return (
            f"{self.sockets} sockets, {self.files} other descriptors, {self.threads} threads, "
            f"{self.memory_kb / 1024:.1f} MiB"
        )


def vital_signs(pid: int) -> VitalSigns:
    """Return what a process holds now."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    kinds = [_is_socket(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    return VitalSigns(
        sockets=sum(kinds),
        files=len(kinds) - sum(kinds),
        threads=sum(comm == status["Name"].strip() for comm in _comms(pid)),
        memory_kb=int(status["VmRSS"].split()[0]),
    )


def _comms(pid: int) -> list[str]:
    """Return the names that the system has for the threads of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.append((task / "comm").read_text().strip())
    return found


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except FileNotFoundError:  # closed meanwhile
        return False


def connections_to(port: int) -> int:
    """Return how many open connections somebody has accepted on a port of this machine."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        row[1].endswith(f":{port:04X}") and row[3] == _ESTABLISHED and row[9] != _NOT_ACCEPTED
        for row in rows
    )


def wait_for_rest(pid: int, before: VitalSigns, call: Callable[[], object]) -> VitalSigns:
    """Wait until a process holds no more sockets and threads than before, or for a minute.

    Args:
        pid: Of the process.
        before: What it held.
        call: Makes a call or more: threads that stand in for others leave after their next one.
    """
    deadline = time.monotonic() + WITHIN_S
    while True:
        call()
        now = vital_signs(pid)
        is_back = now.sockets <= before.sockets and now.threads <= before.threads
        if is_back or time.monotonic() > deadline:
            return now
        time.sleep(0.1)
