"""kill -9 at random moments of concurrent changes: all that was acknowledged is there, whole."""

import random
import sys
import threading
from pathlib import Path

import pytest

from keybearer_service.installation.data_directory import DataDir
from reliability.history import WRITERS, Judge, StoreImage, Verdict, Writer
from reliability.processes import init, serving

LONGEST_RUN_S = 0.4
"""A kill comes at a random moment up to this long after the first acknowledgement."""


class Total:
    """What all kills of a run found."""

    def __init__(self) -> None:
        self.kills = self.acknowledged = self.applied = self.not_applied = 0
        self.findings: list[str] = []

    def add(self, verdict: Verdict) -> None:
        self.kills += 1
        self.applied += verdict.applied
        self.not_applied += verdict.not_applied
        self.findings += verdict.findings

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acknowledged} acknowledged changes, "
            f"{self.applied + self.not_applied} of unknown end "
            f"({self.applied} happened), {len(self.findings)} findings"
        )


def kill_repeatedly(
    path: Path, seed: int, kills: int, bugs: tuple[str, ...] = (), *, until_found: str = ""
) -> Total:
    """Serve, write with eight clients, kill, compare; again and again on the same directory."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    moments = random.Random(seed)
    ids = init(path)
    directory = DataDir(path)
    judge = Judge(directory, StoreImage(directory.database))
    writers = [
        Writer(number, random.Random(seed * WRITERS + number), ids["user_id"])
        for number in range(WRITERS)
    ]
    total = Total()
    for _ in range(kills):
        with serving(path, bugs=bugs) as server:
            begun, stop = threading.Event(), threading.Event()
            threads = [
                threading.Thread(
                    target=writer.run,
                    args=(server.stubs(ids["token"]), stop, begun.set),
                )
                for writer in writers
            ]
            for thread in threads:
                thread.start()
            assert begun.wait(30), server.text
            # Not to wait for anything: the moment of the kill is what is random here.
            stop.wait(moments.uniform(0, LONGEST_RUN_S))
            server.kill()
            for thread in threads:
                thread.join()
        total.add(judge.judge(writers))
        if until_found and any(one.startswith(until_found) for one in total.findings):
            break
    total.acknowledged = sum(writer.acknowledged for writer in writers)
    sys.stdout.write(f"{total}\n")
    return total


def test_a_few_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    """After kill -9 every acknowledged change is there, whole, with its event and its revision."""
    assert kill_repeatedly(tmp_path / "data", seed, 4).findings == []


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    """After each of a hundred kills all of the history so far is there."""
    total = kill_repeatedly(tmp_path / "data", seed, 100)
    assert total.findings == []
    assert total.applied
    assert total.not_applied


@pytest.mark.parametrize(
    ("plant", "kind"), [("answer-before-commit", "lost: "), ("audit-apart", "half: audit")]
)
def test_planted_bugs_are_caught(tmp_path: Path, seed: int, plant: str, kind: str) -> None:
    """A server that answers before COMMIT, or audits in a second transaction, is found out."""
    total = kill_repeatedly(tmp_path / "data", seed, 30, (plant,), until_found=kind)
    assert any(finding.startswith(kind) for finding in total.findings)
