"""A node of keybearer on a machine of its own."""

import shutil
from pathlib import Path
from typing import Final

from failover.machines import PLACE, Machine
from reliability.processes import SERVER, ServerProcess, answer

_PORT: Final = 50051
_OPTIONS: Final = ("--insecure-database",)


def initialise(url: str) -> str:
    """Make an installation in the database; return the token of its administrator."""
    made = answer(
        *("init", "--data-dir", str(PLACE / "first"), "--database", url, *_OPTIONS),
        *("--account", "operator", "--admin-email", "admin@example.com"),
    )
    return str(made["token"])


class Node(ServerProcess):
    """A process that serves."""

    def __init__(self, machine: Machine, url: str, *, bug: str = "") -> None:
        """Start it.

        Args:
            machine: Where it runs.
            url: The database, in which there is an installation.
            bug: What is planted in it, by the names in `bugs`; empty for nothing.
        """
        self.machine = machine
        data_dir = machine.directory / "data"
        data_dir.mkdir(mode=0o700)
        shutil.copytree(PLACE / "first" / "peppers", data_dir / "peppers")
        super().__init__(
            data_dir,
            wrapper=machine.wrapper,
            flags=(
                *("--listen", self.address, "--insecure"),
                *("--database", url, *_OPTIONS),
            ),
            entry=("-m", "failover.bugs", bug) if bug else SERVER,
        )

    @property
    def address(self) -> str:
        return f"{self.machine.address}:{_PORT}"

    def keep_log(self, directory: Path) -> None:
        """Write what it has logged to a file."""
        (directory / f"{self.machine.name}.log").write_text(self.text)
