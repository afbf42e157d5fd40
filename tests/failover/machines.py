"""Machines with two networks, each a network namespace of its own.

All of it is made inside namespaces of the process that runs this (see `test_failover.py`), whose
end removes everything: networks, processes and files.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PLACE: Final = Path("/mnt")
"""A file system in memory that is mounted for this process alone."""
_WIDE: Final = "wide"
_INNER: Final = "inner"
_OWN_ADDRESS: Final = "10.77.0.254/24"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def make_networks() -> None:
    """Make the network of callers, in which this process is, and that of the servers alone."""
    _ip("link", "set", "lo", "up")
    for name in (_WIDE, _INNER):
        _ip("link", "add", "name", name, "type", "bridge")
        _ip("link", "set", name, "up")
    _ip("addr", "add", _OWN_ADDRESS, "dev", _WIDE)


class Machine:
    """A machine that others reach over networks."""

    def __init__(self, name: str, number: int, *, is_server: bool) -> None:
        """Make it.

        Args:
            name: Its name.
            number: Of its addresses.
            is_server: Whether it is in the network of the servers too.
        """
        self.name = name
        self.address = f"10.77.0.{number}"
        """Where callers reach it."""
        self.inner_address = f"10.78.0.{number}"
        """Where the other servers reach it."""
        self.directory = PLACE / name
        self.directory.mkdir()
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        self._ports = [_WIDE, _INNER] if is_server else [_WIDE]
        for network in self._ports:
            address = self.address if network == _WIDE else self.inner_address
            outside = f"{name}-{network}"
            _ip(
                "link",
                "add",
                "name",
                outside,
                "type",
                "veth",
                "peer",
                "name",
                network,
                "netns",
                name,
            )
            _ip("link", "set", outside, "master", network)
            _ip("link", "set", outside, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", network)
            _ip("-n", name, "link", "set", network, "up")

    @property
    def wrapper(self) -> Sequence[str]:
        """The words before a command that runs on it, which leave its process id in place."""
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def start(self, log: Path, *command: str) -> "subprocess.Popen[bytes]":
        """Start a program on it, not as root."""
        nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.directory)}
        with log.open("ab") as written:
            return subprocess.Popen(
                [*self.wrapper, *nobody, *command],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
            )

    def send(self, number: signal.Signals, *names: str) -> None:
        """Send a signal to the programs on it of these names; without names to all."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True
        )
        for pid in map(int, listed.stdout.split()):
            try:
                if not names or Path(f"/proc/{pid}/comm").read_text("ascii").strip() in names:
                    os.kill(pid, number)
            except (ProcessLookupError, FileNotFoundError):
                continue  # it has ended

    def unplug(self, *networks: str) -> None:
        """Have nothing come or go any more, without a word, over some networks or all."""
        for network in networks or self._ports:
            _ip("link", "set", f"{self.name}-{network}", "nomaster")

    def plug_in(self) -> None:
        """Be in its networks again."""
        for network in self._ports:
            _ip("link", "set", f"{self.name}-{network}", "master", network)


def separate(one: Machine, other: Machine) -> None:
    """Have two machines reach everybody in the network of callers but each other."""
    _isolate("on", one, other)


def bring_together(one: Machine, other: Machine) -> None:
    """Have them reach each other again."""
    _isolate("off", one, other)


def _isolate(state: str, *machines: Machine) -> None:
    for one in machines:
        subprocess.run(
            ["bridge", "link", "set", "dev", f"{one.name}-{_WIDE}", "isolated", state], check=True
        )


INNER: Final = _INNER
