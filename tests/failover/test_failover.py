"""Failovers of three PostgreSQL servers under two nodes and their callers: `make test-failover`.

Everything runs in namespaces of its own: three machines with PostgreSQL, Patroni and etcd, two with
a node each, two networks. They end with the process that made them, whatever ends it.

KEYBEARER_FAILOVER_ROUNDS says how many failovers of each kind there are.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from reliability.processes import environment

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from failover.bugs import BUGS
from failover.run import KINDS

pytestmark = pytest.mark.slow

ROUNDS: Final = os.environ.get("KEYBEARER_FAILOVER_ROUNDS", "5")
TRIES: Final = "3"
"""Rounds in which a bug must be caught."""
PROGRAMS: Final = ("patroni", "etcd", "ip", "bridge", "nsenter", "setpriv", "unshare")
APART: Final = (
    *("setpriv", "--pdeathsig=KILL"),
    *("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-c"),
    # The shell is the first process, and waits for those whose parents have ended.
    'mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t tmpfs tmpfs /mnt && "$@" & wait $!',
    "-",
)
"""The words before a command that runs in namespaces of its own and ends with this process."""


@pytest.fixture(scope="module", autouse=True)
def _can_run() -> None:
    """Skip where it cannot be run, and say why."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        pytest.skip("no failovers: namespaces need root")
    if missing:
        pytest.skip(f"no failovers: {', '.join(missing)} not installed")
    if not Path("/usr/lib/postgresql/15/bin/postgres").exists():
        pytest.skip("no failovers: PostgreSQL 15 is not installed")
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no failovers: no namespaces of one's own: {tried.stderr.strip()}")


def run(out: Path, *words: str) -> list[dict[str, Any]]:
    """Run rounds, whose progress is printed, and return their reports."""
    command: Sequence[str] = (sys.executable, "-m", "failover.run", *words, "--out", str(out))
    done = subprocess.run([*APART, *command], env=environment(), check=False)
    assert done.returncode == 0, f"it broke off; its logs are in {out}"
    read: list[dict[str, Any]] = json.loads((out / "rounds.json").read_text("utf-8"))
    return read


def findings(rounds: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Return what was found of a kind, in all rounds."""
    return [one for done in rounds for one in done["findings"][kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_failover_loses_nothing_and_lets_no_revoked_key_in(tmp_path: Path, kind: str) -> None:
    """No acknowledged change is lost, no verdict is late, and an outage is never a verdict."""
    rounds = run(tmp_path, kind, "--rounds", ROUNDS)
    assert len(rounds) == int(ROUNDS)
    assert [findings(rounds, one) for one in ("lost", "late", "wrong")] == [[], [], []]


@pytest.mark.parametrize("bug", [one for one in BUGS if one != "same-epoch"])
def test_a_verdict_that_is_late_is_seen(tmp_path: Path, bug: str) -> None:
    """With a bug planted in the nodes, and the manager of the old primary frozen."""
    rounds = run(tmp_path, "manager-frozen", "--rounds", TRIES, "--until-found", "--bug", bug)
    assert findings(rounds, "late")


def test_a_history_that_goes_on_under_its_name_is_seen(tmp_path: Path) -> None:
    """A new primary begins another one, whether or not something was lost."""
    rounds = run(tmp_path, "killed", "--rounds", TRIES, "--until-found", "--bug", "same-epoch")
    assert any("the epoch" in one for one in findings(rounds, "wrong"))


def test_a_start_over_asynchronous_standbys_warns(tmp_path: Path) -> None:
    """A failover to one of them can undo what was acknowledged."""
    command = (sys.executable, "-m", "failover.run", "asynchronous", "--out", str(tmp_path))
    assert subprocess.run([*APART, *command], env=environment(), check=False).returncode == 0
    told = json.loads((tmp_path / "warnings.json").read_text("utf-8"))
    assert told == [["asynchronous_standbys", 2]] * 2
