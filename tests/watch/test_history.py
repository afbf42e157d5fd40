"""Create, validate, revoke, rotate, disable, enable at once: one order explains every result.

The verdicts of the server itself must fit exactly. Those of caching verifiers may lag by SLACK.
"""

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import Stubs
from keybearer import CachingVerifier, KeybearerClient, Presented
from keybearer._cache.verdict_cache import Pending
from keybearer.models import Verdict
from reliability.clusters import SERVED, served
from reliability.processes import ServerProcess
from watch.linearizable import NEVER, Operation, is_linearizable
from watch.measurements import note

SLACK_S = 0.5
"""How far a connected verifier may lag; far above what was measured, far below the lease."""
VERIFIERS = 3
CHANGES = 10
READERS = 4
READS = 12


class Player:
    """Produces histories, each of one key; every call goes to a server at random."""

    def __init__(self, servers: Sequence[ServerProcess], token: str) -> None:
        self._stack = ExitStack()
        self._admins = [server.stubs(token) for server in servers]
        validator = self._admins[0].create_key(role="ROLE_VALIDATOR").token
        self.verifiers = [
            self._stack.enter_context(
                CachingVerifier(KeybearerClient(server.address, token=validator, tls=False))
            )
            for server in itertools.islice(itertools.cycle(servers), VERIFIERS)
        ]
        assert all(verifier.wait_for_lease(20) for verifier in self.verifiers)
        self._late = self._stack.enter_context(futures.ThreadPoolExecutor(32))

    def close(self) -> None:
        self._stack.close()

    def plant(self) -> None:
        """Plant the bug: keep every verdict, up to 300 ms late, without checking revisions."""
        chance = random.Random(0)
        for verifier in self.verifiers:
            cache = verifier._engine.verdicts  # noqa: SLF001 - for the planted bug
            store = cache.store

            def store_late(
                pending: Pending, verdict: Verdict, connection: int = 0, store: Any = store
            ) -> bool:
                pause = chance.uniform(0, 0.3)
                self._late.submit(_later, pause, store, pending, verdict, connection)
                return False

            cache._may_keep = lambda *_: True  # type: ignore[method-assign]  # noqa: SLF001 - as above
            cache.store = store_late  # type: ignore[method-assign]

    def play(self, seed: int) -> tuple[list[Operation], list[Operation]]:
        """Run operations on one key, and return those of the server and those of the verifiers."""
        chance = random.Random(seed)
        changes: list[Operation] = []
        tokens: list[str] = []
        key_id = ""

        def change(kind: str, send: Any) -> Any:
            began = time.monotonic()
            answer = send()
            changes.append(Operation(began, time.monotonic(), kind))
            return answer

        created = change("create", chance.choice(self._admins).create_key)
        key_id = created.api_key.id
        tokens.append(created.token)
        with futures.ThreadPoolExecutor(READERS) as pool:
            readers = [
                pool.submit(self._read, chance.randrange(2**32), tokens, number)
                for number in range(READERS)
            ]
            for _ in range(CHANGES):
                time.sleep(chance.uniform(0, 0.25))
                kind = chance.choice(["disable", "enable", "disable", "enable", "rotate"])
                admin = chance.choice(self._admins)
                answer = change(kind, partial(_change, admin, kind, key_id))
                if kind == "rotate":
                    tokens.append(answer.token)
            change("revoke", partial(chance.choice(self._admins).revoke, key_id))
            time.sleep(SLACK_S)
            reads = [reader.result() for reader in readers]
            last = self._read(chance.randrange(2**32), tokens, 1, pause=0.01)
        strict = [one for number, part in enumerate(reads) if number == 0 for one in part]
        lagging = [one for number, part in enumerate(reads) if number for one in part]
        return changes + strict, changes + lagging + last

    def _read(
        self, seed: int, tokens: list[str], reader: int, pause: float = 0.22
    ) -> list[Operation]:
        """Check tokens at intervals: reader 0 at the server, the others with a verifier."""
        chance = random.Random(seed)
        found = []
        for _ in range(READS):
            time.sleep(chance.uniform(0, pause))
            secret = chance.choice([len(tokens), len(tokens), chance.randrange(len(tokens)) + 1])
            token = tokens[secret - 1]
            began = time.monotonic()
            if reader == 0:
                allowed = chance.choice(self._admins).outcome(token) == "VALID"
            else:
                allowed = self.verifiers[reader - 1].verify(Presented(token)).valid
            found.append(Operation(began, time.monotonic(), "verify", secret, allowed))
        return found


def _change(admin: Stubs, kind: str, key_id: str) -> Any:
    if kind == "rotate":
        return admin.rotate(key_id)
    return admin.disable_key(key_id) if kind == "disable" else admin.enable_key(key_id)


def _later(pause: float, work: Any, *arguments: Any) -> None:
    time.sleep(pause)
    work(*arguments)


@pytest.fixture(params=SERVED)
def player(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Player]:
    """A service in processes of its own, and verifiers of it."""
    with (
        served(request.param, tmp_path) as (servers, token),
        closing(Player(servers, token)) as player,
    ):
        yield player


def _unexplained(player: Player, histories: int, at_once: int, seed: int) -> tuple[int, int]:
    """Return how many histories have no order: those of the server, those of the verifiers."""
    with futures.ThreadPoolExecutor(at_once) as pool:
        played = list(pool.map(player.play, range(seed, seed + histories)))
    return (
        sum(not is_linearizable(strict) for strict, _ in played),
        sum(not is_linearizable(lagging, SLACK_S) for _, lagging in played),
    )


def test_every_history_has_an_explanation_and_a_planted_bug_has_none(
    player: Player, seed: int
) -> None:
    """Every one of 24 histories has an order, and with a planted bug some have none."""
    assert _unexplained(player, 24, 12, seed) == (0, 0)
    player.plant()
    server, verifiers = _unexplained(player, 24, 12, seed)
    note(f"history checker, planted: {verifiers} of 24 histories without an explanation")
    assert server == 0
    assert verifiers > 0


@pytest.mark.slow
def test_every_history_has_an_explanation_2000_times(player: Player, seed: int) -> None:
    """Every one of 2,000 histories has an order."""
    found = _unexplained(player, 2000, 16, seed)
    note(f"history checker: {found} unexplained (server, verifiers) in 2,000 histories")
    assert found == (0, 0)


# --- the checker itself ---------------------------------------------------------------------------


def _history(*steps: tuple[float, float, str] | tuple[float, float, str, int, bool]) -> Any:
    return [Operation(*step) for step in steps]


@pytest.mark.parametrize(
    ("history", "slack", "explained"),
    [
        (_history((0, 1, "create"), (2, 3, "verify", 1, True)), 0, True),
        (_history((0, 1, "create"), (2, 3, "verify", 1, False)), 0, False),
        (_history((0, 4, "create"), (2, 3, "verify", 1, False)), 0, True),
        (_history((0, 1, "create"), (2, 3, "revoke"), (4, 5, "verify", 1, True)), 0, False),
        (_history((0, 1, "create"), (2, 3, "revoke"), (4, 5, "verify", 1, True)), 1.5, True),
        (_history((0, 1, "create"), (2, NEVER, "revoke"), (4, 5, "verify", 1, True)), 0, True),
        (_history((0, 1, "create"), (2, NEVER, "revoke"), (4, 5, "verify", 1, False)), 0, True),
        (_history((0, 1, "create"), (2, 3, "rotate"), (4, 5, "verify", 1, False)), 0, True),
        (_history((0, 1, "create"), (2, 3, "rotate"), (4, 5, "verify", 2, True)), 0, True),
        (_history((0, 1, "create"), (2, 3, "rotate"), (4, 5, "verify", 1, True)), 0, False),
        (
            _history(
                (0, 1, "create"),
                (2, 3, "disable"),
                (4, 5, "verify", 1, False),
                (6, 7, "enable"),
                (8, 9, "verify", 1, True),
            ),
            0,
            True,
        ),
        (
            _history(
                (0, 1, "create"),
                (2, 9, "disable"),
                (3, 4, "verify", 1, False),
                (5, 6, "verify", 1, True),
            ),
            0,
            False,
        ),
    ],
)
def test_the_checker_tells_right_from_wrong(history: Any, slack: float, explained: bool) -> None:  # noqa: FBT001 - a column of the table
    """The checker decides a table of small histories."""
    assert is_linearizable(history, slack) is explained
