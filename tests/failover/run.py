"""`python -m failover.run KIND`: failovers of one kind, and what callers see of them.

It runs in namespaces of its own, as `test_failover.py` starts it, and writes a report as JSON.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from failover.callers import LIVE, Callers
from failover.history import (
    AWAY,
    Findings,
    Key,
    Outage,
    counts,
    judge,
    longest_pause,
    missing,
    now,
    outages,
)
from failover.machines import INNER, Machine, bring_together, make_networks, separate
from failover.node import Node, initialise
from failover.servers import DATABASE, DatabaseServer, Trio, until
from keybearer.v1 import token_service_pb2

_RECOVERY_S: Final = 30.0
"""How long nodes may take to answer again while the old primary is not back."""
_WATCH_S: Final = 5.0
"""How long a fault is watched after the first change on the new primary: longer than the bound on a
verdict and a lease together."""
_QUIET_S: Final = 1.0
_AT_A_TIME: Final = 100


@dataclass
class Round:
    """What one failover was like. Times are seconds after the fault."""

    kind: str
    old: str
    new: str
    promoted: float
    """When another server took writes."""
    resumed: float
    """When a change was acknowledged there."""
    pause_of_changes: float
    """The longest time without an acknowledged change."""
    outages: list[Outage]
    answered: Mapping[str, int]
    findings: Findings = field(default_factory=Findings)


class World:
    """Three servers, two nodes, and those who call them."""

    def __init__(self, out: Path, *, bug: str = "", **dcs: Any) -> None:
        """Start everything.

        Args:
            out: Where logs are written.
            bug: What is planted in the nodes.
            dcs: Settings of the servers that differ from the documented file.
        """
        make_networks()
        self.out = out
        self.trio = Trio(out, **dcs)
        self.token = initialise(self.trio.url())
        self.nodes = [
            Node(
                Machine(f"node{number}", 10 + number, is_server=False),
                self.trio.url(turned=number == 2),
                bug=bug,
            )
            for number in (1, 2)
        ]
        for node in self.nodes:
            node.wait_until_serving()
        self.callers = Callers([node.address for node in self.nodes], self.token)
        until("enough keys", lambda: len(self.callers.keys.all) > LIVE)

    def close(self) -> None:
        """End everything, and keep the logs."""
        self.callers.stop()
        for node in self.nodes:
            node.keep_log(self.out)
            node.close()

    def is_quiet(self) -> bool:
        """Return whether everybody has had answers, and nothing else, for a while."""
        since = now() - _QUIET_S
        lately = [one for one in self.callers.seen[-5000:] if one.began >= since]
        answered = {one.source.split(" read")[0] for one in lately if one.answer not in AWAY}
        failed = any(one.answer in AWAY for one in lately)
        wanted = {f"{kind} {number}" for kind in ("node", "cache") for number in (1, 2)}
        return not failed and wanted <= answered

    def epoch(self) -> str:
        """Return the history that the nodes are in."""
        request = token_service_pb2.BatchValidateTokensRequest(
            requests=[token_service_pb2.ValidateTokenRequest(token=self.callers.keys.all[0].token)]
        )
        epochs = {stubs.tokens.BatchValidateTokens(request).epoch for stubs in self.callers.stubs}
        return ", ".join(sorted(epochs))

    def stored(self) -> Mapping[str, bool]:
        """Return whether each key in the database is revoked."""
        rows = self.trio.primary().query(
            "SELECT id, revoke_time IS NOT NULL FROM api_keys", DATABASE
        )
        return dict(rows)

    def told(self, node: int, keys: list[Key]) -> Mapping[str, bool]:
        """Return the same as a node says it."""
        found: dict[str, bool] = {}
        for start in range(0, len(keys), _AT_A_TIME):
            part = keys[start : start + _AT_A_TIME]
            request = token_service_pb2.BatchValidateTokensRequest(
                requests=[token_service_pb2.ValidateTokenRequest(token=one.token) for one in part]
            )
            answer = self.callers.stubs[node].tokens.BatchValidateTokens(request)
            for key, one in zip(part, answer.responses, strict=True):
                if one.outcome == token_service_pb2.VALIDATION_OUTCOME_REVOKED:
                    found[key.key_id] = True
                elif one.outcome == token_service_pb2.VALIDATION_OUTCOME_VALID:
                    found[key.key_id] = False
        return found


Lift = Callable[[], None]
"""Ends a fault."""


def kill(world: World, primary: DatabaseServer, turn: int) -> Lift:
    """Kill the primary's machine; every other time its connections are not closed."""
    if turn % 2:
        primary.machine.unplug()
    primary.kill()

    def lift() -> None:
        primary.machine.plug_in()
        primary.start()

    return lift


def freeze(world: World, primary: DatabaseServer, turn: int) -> Lift:
    """Freeze PostgreSQL on the primary: it takes connections, and answers nothing."""
    primary.freeze("postgres")
    return primary.thaw


def freeze_manager(world: World, primary: DatabaseServer, turn: int) -> Lift:
    """Freeze Patroni on the primary: the server goes on, and does not know that it was replaced.

    One of the nodes, at which nobody would notice, still has its connections to it. The other
    one loses them, so that it is at the new primary at once.
    """
    far = world.nodes[turn % 2].machine
    separate(primary.machine, far)
    primary.freeze("patroni")

    def lift() -> None:
        bring_together(primary.machine, far)
        primary.thaw()

    return lift


def cut(world: World, primary: DatabaseServer, turn: int) -> Lift:
    """Cut the primary off from the other servers; the nodes and their callers still reach it."""
    primary.machine.unplug(INNER)
    return primary.machine.plug_in


KINDS: Final[Mapping[str, Callable[[World, DatabaseServer, int], Lift]]] = {
    "killed": kill,
    "frozen": freeze,
    "manager-frozen": freeze_manager,
    "cut": cut,
}


def fail_over(world: World, kind: str, turn: int) -> Round:
    """Have the primary fail, and return what it was like.

    Raises:
        TimeoutError: Something that must happen does not.
    """
    trio, callers = world.trio, world.callers
    until("three servers, one of them the primary", trio.is_whole)
    until("answers for everybody", world.is_quiet)
    epoch = world.epoch()
    callers.seen = []  # those who append have the old one for a moment more, and lose nothing of it
    old = trio.primary()
    others = [one for one in trio.servers if one is not old]
    began = now()
    lift = KINDS[kind](world, old, turn)
    until("another primary", lambda: any(one.takes_writes for one in others))
    [new] = [one for one in others if one.takes_writes]
    promoted = now()
    until("changes on it", lambda: callers.acknowledged[-1] > promoted)
    resumed = next(one for one in callers.acknowledged if one > promoted)
    findings = Findings()
    threading.Event().wait(_WATCH_S)  # what is late would come now
    try:
        until("answers", world.is_quiet, _RECOVERY_S)
    except TimeoutError:
        findings.wrong.append("not everybody has answers as long as the fault lasts")
    lift()
    until("three servers again", trio.is_whole)
    until("answers for everybody", world.is_quiet)
    ended = now()
    seen = callers.seen
    judged = judge(callers.keys.all, seen)
    findings.late += judged.late
    findings.wrong += judged.wrong
    # Copies: changes go on, and are acknowledged after the database was read.
    touched = [replace(one) for one in callers.keys.all if (one.revoked_at or ended) >= began - 1]
    findings.lost += missing(touched, world.stored(), "in the database")
    for number in range(len(world.nodes)):
        findings.lost += missing(touched, world.told(number, touched), f"at node {number + 1}")
    if world.epoch() == epoch or "," in world.epoch():
        findings.wrong.append(f"the epoch before was {epoch}, and now it is {world.epoch()}")
    return Round(
        kind=kind,
        old=old.name,
        new=new.name,
        promoted=promoted - began,
        resumed=resumed - began,
        pause_of_changes=longest_pause(callers.acknowledged, began, ended),
        # Of the one who makes changes only refusals are seen.
        outages=outages([one for one in seen if not one.source.startswith("writer")], began, ended),
        answered=counts(seen),
        findings=findings,
    )


def say(text: str) -> None:
    """Print progress."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def report_warnings(out: Path) -> None:
    """Write what each node warns of at its start over asynchronous standbys, and of how many."""
    with ExitStack() as stack:
        world = World(out, synchronous_mode=False)
        stack.callback(world.close)
        warned = [
            (event["event"], event["count"])
            for node in world.nodes
            for event in node.events
            if event["event"] == "asynchronous_standbys"
        ]
    (out / "warnings.json").write_text(json.dumps(warned))
    say(f"asynchronous: {warned}")


def main() -> None:
    """Run rounds, and report them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted((*KINDS, "asynchronous")))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bug", default="")
    parser.add_argument("--until-found", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.kind == "asynchronous":
        report_warnings(given.out)
        return
    rounds: list[Round] = []
    with ExitStack() as stack:
        world = World(given.out, bug=given.bug)
        stack.callback(world.close)
        for turn in range(given.rounds):
            done = fail_over(world, given.kind, turn)
            rounds.append(done)
            spans = ", ".join(f"{one.source} {one.seconds:.1f} s" for one in done.outages)
            say(
                f"{given.kind} {turn + 1}: {done.old} -> {done.new}, promoted after"
                f" {done.promoted:.1f} s, changes after {done.resumed:.1f} s; without answers:"
                f" {spans or 'nobody'}; {dict(done.answered)}"
            )
            if done.findings:
                say(str(done.findings))
            (given.out / "rounds.json").write_text(json.dumps([asdict(one) for one in rounds]))
            if given.until_found and done.findings:
                break


if __name__ == "__main__":
    main()
