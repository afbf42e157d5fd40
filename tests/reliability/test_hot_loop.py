"""The hot loop under everything that callers can do to it: no abort, no leak, no wrong answer.

`KEYBEARER_SOAK_CALLS` says how many calls the long tests make.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.rpc.executors import MAX_SLOW
from reliability.processes import ServerProcess, environment, init, serving

SOAK_CALLS = int(os.environ.get("KEYBEARER_SOAK_CALLS") or 200_000)
SHORT_CALLS = 3_000
CONNECTIONS = 200
FEW_CONNECTIONS = 20
KEYS = 60
VICTIMS = 60
SEED = 1
WITHIN_S = 3 * 3600.0
GROWTH_KB = 24 * 1024
SPARE_DESCRIPTORS = 3 * MAX_SLOW
"""Threads that stood in for slow senders leave descriptors to SQLite, which uses them again."""
DRAIN_EVERY_S = 4.0
GOOD_CALLS = 3_000
PATHS = {"ordinary": ("--no-hot-loop",), "hot": ("--hot-loop",)}
GOOD = ("validate", "batch", "large batch", "check")


class Cast(NamedTuple):
    """The tokens that the load knows."""

    admin: str
    caller: str
    keys: list[tuple[str, str]]
    victims: list[tuple[str, str]]


def make_cast(server: ServerProcess, admin_token: str, victims: int = VICTIMS) -> Cast:
    """Create the keys that are asked about."""
    admin = server.stubs(admin_token)
    made = [admin.create_key(role="ROLE_DEVELOPER") for _ in range(KEYS + victims)]
    pairs = [(one.token, one.api_key.id) for one in made]
    caller = admin.create_key(role="ROLE_VALIDATOR").token
    return Cast(admin_token, caller, pairs[:KEYS], pairs[KEYS:])


class Load:
    """A `mixed_load` in a process of its own."""

    def __init__(self, address: str, cast: Cast, calls: int, **world: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reliability.mixed_load"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        facts = {
            "address": address,
            "calls": calls,
            "connections": CONNECTIONS,
            "seed": SEED,
            **cast._asdict(),
            **world,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(facts) + "\n")
        self._process.stdin.flush()

    @property
    def is_running(self) -> bool:
        """Whether it still makes calls."""
        return self._process.poll() is None

    def seen(self) -> dict[str, Any]:
        """Wait for the end; return what was seen."""
        written, _ = self._process.communicate(timeout=WITHIN_S)
        assert self._process.returncode == 0
        seen: dict[str, Any] = json.loads(written)
        sys.stdout.write(f"{seen}\n")
        return seen

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.communicate()


def memory_kb(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError(pid)


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def asserted_right(server: ServerProcess, seen: dict[str, Any]) -> None:
    """Fail on a wrong answer, or on an error that the loop did not foresee."""
    failed = Counter(one["reason"] for one in server.events if one["event"] == "call_failed")
    sys.stdout.write(f"failed calls in the log: {dict(failed)}\n")
    assert seen["wrong"] == []
    assert not [one for one in server.events if one["event"] == "hot_loop_failed"]
    assert not [one for one in server.events if one["event"] == "hot_loop_unusable"]


def mixed_calls(
    tmp_path: Path, calls: int, connections: int, flags: Sequence[str] = ("--hot-loop",)
) -> None:
    """Serve a mixed load, and check everything that can be wrong with it."""
    token = init(tmp_path / "data")["token"]
    with serving(tmp_path / "data", flags=flags) as server:
        cast = make_cast(server, token)
        # Connections, caches and threads are there after the first round.
        warm_up = Load(server.address, cast, calls // 5, connections=connections, victims=[])
        asserted_right(server, warm_up.seen())
        before_kb, before = memory_kb(server.pid), descriptors(server.pid)
        seen = Load(server.address, cast, calls, connections=connections).seen()
        asserted_right(server, seen)
        assert seen["unanswered"] == 0
        assert all(seen["answered"][kind] for kind in GOOD)
        assert seen["revoked"]
        grown_kb = memory_kb(server.pid) - before_kb
        sys.stdout.write(f"memory {before_kb} kB and {grown_kb} kB more, {before} descriptors\n")
        assert grown_kb < GROWTH_KB
        assert descriptors(server.pid) < before + SPARE_DESCRIPTORS
        assert server.stubs(token).who_am_i().valid
        assert server.stop() == 0


def test_a_few_thousand_mixed_calls_are_answered_right(tmp_path: Path) -> None:
    """Good, hostile and taken back."""
    mixed_calls(tmp_path, SHORT_CALLS, FEW_CONNECTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["hot", "ordinary"])
def test_very_many_mixed_calls_leave_nothing_behind(tmp_path: Path, path: str) -> None:
    """Memory and descriptors stay, on the hot loop as on the ordinary path."""
    mixed_calls(tmp_path, SOAK_CALLS, CONNECTIONS, PATHS[path])


@pytest.mark.parametrize("bug", ["mix-up-answers", "reuse-operations"])
def test_the_load_finds_a_planted_bug(tmp_path: Path, bug: str) -> None:
    """An answer to another call's question, and an operation that is used twice."""
    token = init(tmp_path / "data")["token"]
    with serving(tmp_path / "data", bugs=[bug], flags=["--hot-loop"]) as server:
        cast = make_cast(server, token)
        load = Load(server.address, cast, SHORT_CALLS, connections=FEW_CONNECTIONS)
        try:
            found = find_bug(server, load)
        finally:
            load.kill()
        assert found


def find_bug(server: ServerProcess, load: Load) -> bool:
    """Wait until the load has seen a wrong answer, or the process has aborted."""
    while load.is_running:
        if server.has_ended:
            return server.wait() < 0
        time.sleep(0.1)  # neither of two processes says when it ends
    return bool(load.seen()["wrong"])


# --- servers that go away in the middle -----------------------------------------------------------


def restarted(data_dir: Path, address: str, workers: int) -> ServerProcess:
    """Start a server in the place of one that has gone, and wait until it serves."""
    flags = ["--hot-loop", "--listen", address, "--workers", str(workers)]
    server = ServerProcess(data_dir, flags=flags)
    server.wait_until_serving()
    return server


def workers_of(server: ServerProcess) -> list[int]:
    """Return the processes that serve, of a supervisor."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(one) for one in children if b"spawn_main" in _command_of(int(one))]


def _command_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
def test_drains_in_the_middle_end_in_order(tmp_path: Path) -> None:
    """SIGTERM under the mixed load, again and again: exit code 0, and no wrong answer."""
    token = init(tmp_path / "data")["token"]
    drains = 0
    with serving(tmp_path / "data", flags=["--hot-loop"]) as first:
        server, address = first, first.address
        load = Load(address, make_cast(first, token), SOAK_CALLS, connections=50)
        try:
            while load.is_running:
                time.sleep(DRAIN_EVERY_S)  # as much of the load as there is in that time
                assert server.stop() == 0, server.text[-2000:]
                assert not [one for one in server.events if one["event"] == "hot_loop_failed"]
                server.close()
                drains += 1
                server = restarted(tmp_path / "data", address, workers=1)
            asserted_right(server, load.seen())
        finally:
            load.kill()
            server.close()
    sys.stdout.write(f"{drains} drains\n")


def serve(count: int, events: list[dict[str, Any]]) -> bool:
    """Return whether so many servers have begun to serve."""
    return len([one for one in events if one["event"] == "serving"]) >= count


@pytest.mark.slow
def test_workers_that_are_killed_in_the_middle_are_replaced(tmp_path: Path) -> None:
    """SIGKILL under the mixed load, again and again: the others answer, and answer right."""
    token = init(tmp_path / "data")["token"]
    kills = 0
    with serving(tmp_path / "data", flags=["--hot-loop", "--workers", "2"]) as server:
        load = Load(server.address, make_cast(server, token), SOAK_CALLS, connections=50)
        try:
            while load.is_running:
                server.wait_for(partial(serve, 2 + kills))
                time.sleep(DRAIN_EVERY_S)  # as much of the load as there is in that time
                os.kill(workers_of(server)[kills % 2], signal.SIGKILL)
                kills += 1
            asserted_right(server, load.seen())
        finally:
            load.kill()
        server.wait_for(partial(serve, 2 + kills))
        ended = [one["exit_code"] for one in server.events if one["event"] == "worker_ended"]
        sys.stdout.write(f"{kills} kills, exit codes {ended}\n")
        assert set(ended) <= {-signal.SIGKILL}
        assert server.stop() == 0


# --- the well-behaved -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_well_behaved_are_served_as_fast_as_on_the_ordinary_path(tmp_path: Path) -> None:
    """Beside the same mixed load on both paths, in turn; the medians are shown and compared."""
    p50 = {}
    for name, flags in PATHS.items():
        token = init(tmp_path / name)["token"]
        with serving(tmp_path / name, flags=flags) as server:
            cast = make_cast(server, token)
            bad = Load(server.address, cast, 10 * SOAK_CALLS, connections=50)
            try:
                good = Load(
                    server.address, cast, GOOD_CALLS, connections=4, victims=[], good_only=True
                )
                p50[name] = good.seen()["p50_ms"]
            finally:
                bad.kill()
    sys.stdout.write(f"p50 beside the mixed load, ms: {p50}\n")
    assert p50["hot"] <= p50["ordinary"]


@pytest.mark.slow
def test_large_batches_of_others_do_not_hold_up_single_checks(tmp_path: Path) -> None:
    """Beside 8 callers of batches of 100: within twice what the ordinary path takes."""
    p50 = {}
    for name, flags in PATHS.items():
        token = init(tmp_path / name)["token"]
        with serving(tmp_path / name, flags=flags) as server:
            cast = make_cast(server, token)
            stop = threading.Event()
            callers = [
                threading.Thread(target=ask_batches, args=(server, cast, stop)) for _ in range(8)
            ]
            for caller in callers:
                caller.start()
            try:
                good = Load(
                    server.address, cast, GOOD_CALLS, connections=1, victims=[], good_only=True
                )
                p50[name] = good.seen()["p50_ms"]
            finally:
                stop.set()
                for caller in callers:
                    caller.join()
    sys.stdout.write(f"p50 beside batches of 100, ms: {p50}\n")
    assert p50["hot"] <= 2 * p50["ordinary"]


def ask_batches(server: ServerProcess, cast: Cast, stop: threading.Event) -> None:
    """Ask batches of 100, one after the other."""
    tokens = server.stubs(cast.caller).tokens
    asked = [pb.ValidateTokenRequest(token=cast.keys[n % KEYS][0]) for n in range(100)]
    while not stop.is_set():
        answer = tokens.BatchValidateTokens(
            pb.BatchValidateTokensRequest(requests=asked), timeout=60
        )
        assert all(one.valid for one in answer.responses)
