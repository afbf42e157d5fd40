"""Bugs to plant in nodes, and `python -m failover.bugs NAME COMMAND…`: the command with one.

A node with one of the first three keeps its connections to the old primary, as it does where a
name or an address goes on leading there: by itself it would soon ask another host.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from keybearer_service import cli
from keybearer_service.storage.postgres import PostgresStore
from keybearer_service.storage.postgres_nodes import Membership
from storage import postgres_bugs

_WATCHING: Final = "watch"
"""What the name of the thread begins with that sends pongs."""


def _replace(owner: object, name: str, value: Any) -> None:
    setattr(owner, name, value)


def _stay() -> None:
    _replace(Membership, "_look_elsewhere", lambda _self: None)


def prove_nothing() -> None:
    """Believe whatever answers."""
    postgres_bugs.prove_nothing()
    _stay()


def prove_it_of_another_server() -> None:
    """Make the proof over a connection of its own, and read wherever others lead."""
    postgres_bugs.believe_another_server()
    _replace(PostgresStore, "_drop_idle", lambda _self: None)


def send_pongs_without_a_proof() -> None:
    """Prolong leases by what the old primary says, and give no verdict by it."""
    postgres_bugs.send_pongs_on_older_proofs()
    _stay()
    assert_proven = Membership.assert_proven

    def assert_for_others(self: Any, connection: Any = None) -> None:
        if not threading.current_thread().name.startswith(_WATCHING):
            assert_proven(self, connection)

    _replace(Membership, "assert_proven", assert_for_others)


BUGS: Final[Mapping[str, Callable[[], None]]] = {
    "no-proof": prove_nothing,
    "another-server": prove_it_of_another_server,
    "pong-without-proof": send_pongs_without_a_proof,
    "same-epoch": postgres_bugs.keep_the_epoch,
}


if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    cli.main()
