"""Bugs to plant in nodes, and `python -m failover.bugs NAME COMMAND…`: the command with one."""

import sys
from collections.abc import Callable, Mapping
from typing import Final

from keybearer_service import cli
from keybearer_service.storage.postgres import PostgresStore
from storage import postgres_bugs


def prove_it_of_another_server() -> None:
    """Make the proof over a connection of its own, and read wherever others lead."""
    postgres_bugs.believe_another_server()
    PostgresStore._drop_idle = lambda _self: None  # type: ignore[method-assign]  # noqa: SLF001


BUGS: Final[Mapping[str, Callable[[], None]]] = {
    "another-server": prove_it_of_another_server,
    "older-proof": postgres_bugs.send_pongs_on_older_proofs,
    "same-epoch": postgres_bugs.keep_the_epoch,
}


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    cli.main()
