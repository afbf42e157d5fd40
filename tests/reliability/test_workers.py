"""Several processes on one port: what one has answered, all obey."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Stubs, refused
from reliability.processes import ANY_PORT, ServerProcess, command, init

CONNECTIONS = 8
"""Each is taken by one of the two processes; that all eight go to one happens once in 128 runs."""
ROUNDS = 20


@pytest.fixture
def installation(tmp_path: Path) -> dict[str, str]:
    """An installation, and its first token."""
    return init(tmp_path / "data")


@pytest.fixture
def workers(tmp_path: Path, installation: dict[str, str]) -> Iterator[ServerProcess]:
    """Two processes that share a port."""
    process = ServerProcess(tmp_path / "data", flags=("--workers", "2"))
    try:
        _wait_for_serving(process, 2)
        yield process
    finally:
        process.close()


def _wait_for_serving(process: ServerProcess, count: int) -> None:
    process.wait_for(lambda events: sum(one["event"] == "serving" for one in events) >= count)


def _connections(process: ServerProcess, token: str) -> list[Stubs]:
    return [process.stubs(token) for _ in range(CONNECTIONS)]


def test_a_revoked_key_is_refused_by_every_process_at_once(
    workers: ServerProcess, installation: dict[str, str]
) -> None:
    """From the moment Revoke answers, whichever process is asked."""
    connections = _connections(workers, installation["token"])
    for turn in range(ROUNDS):
        created = connections[turn % CONNECTIONS].create_key(name=f"key {turn}")
        assert {one.outcome(created.token) for one in connections} == {"VALID"}
        connections[turn % CONNECTIONS].revoke(created.api_key.id)
        assert {one.outcome(created.token) for one in connections} == {"REVOKED"}


def test_a_revoked_caller_is_refused_by_every_process_at_once(
    workers: ServerProcess, installation: dict[str, str]
) -> None:
    """What a process remembers of its callers ends with another process's commit."""
    admin = workers.stubs(installation["token"])
    for turn in range(ROUNDS):
        caller = admin.create_key(name=f"caller {turn}", role="ROLE_ADMIN")
        callers = _connections(workers, caller.token)
        assert all(one.who_am_i().valid for one in callers)
        admin.revoke(caller.api_key.id)
        reasons = {refused(one.who_am_i).reason for one in callers}
        assert reasons == {"CREDENTIALS_INVALID"}


def test_a_process_that_dies_is_replaced(
    workers: ServerProcess, installation: dict[str, str]
) -> None:
    """The supervisor starts another one in its place, and ends both in order."""
    pids = [int(child) for child in _children_of(workers.pid)]
    os.kill(pids[-1], signal.SIGKILL)
    _wait_for_serving(workers, 3)
    assert workers.stubs(installation["token"]).who_am_i().valid
    assert workers.stop() == 0


def test_workers_end_with_a_supervisor_that_is_killed(
    workers: ServerProcess, tmp_path: Path
) -> None:
    """Nobody serves unsupervised: the killed one's output ends, because its workers have ended."""
    workers.kill()
    with_successor = ServerProcess(tmp_path / "data")
    try:
        with_successor.wait_until_serving()
    finally:
        with_successor.close()


def _children_of(pid: int) -> list[str]:
    # The resource tracker of multiprocessing is a child too, and no worker.
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


# --- without a current SQLite ---------------------------------------------------------------------

_WITHOUT = """
import sys
sys.modules["pysqlite3"] = None
from keybearer_service.cli import main
main()
"""
WITHOUT_PYSQLITE3 = ("-c", _WITHOUT)
"""As on platforms for which pysqlite3 has no wheel."""
needs_the_bug = pytest.mark.skipif(
    sqlite3.sqlite_version_info >= (3, 51, 3), reason="this interpreter's SQLite is sound"
)


@needs_the_bug
def test_workers_are_refused_with_what_to_do(tmp_path: Path, installation: dict[str, str]) -> None:
    """On platforms with and without a wheel."""
    serve = ("serve", "--data-dir", str(tmp_path / "data"), "--workers", "2", *ANY_PORT)
    done = command(*serve, entry=WITHOUT_PYSQLITE3)
    assert done.returncode == 1
    assert done.stderr.startswith(f"keybearer-server: workers: SQLite {sqlite3.sqlite_version} can")
    for advice in ("serve with one worker", "install pysqlite3", "SQLite 3.51.3 or newer"):
        assert advice in done.stderr


@needs_the_bug
def test_a_command_beside_a_server_is_refused_with_the_reason(
    tmp_path: Path, installation: dict[str, str]
) -> None:
    """It would work with another SQLite, so the refusal says so."""
    server = ServerProcess(tmp_path / "data", entry=WITHOUT_PYSQLITE3)
    try:
        server.wait_until_serving()
        done = command("check", "--data-dir", str(tmp_path / "data"), entry=WITHOUT_PYSQLITE3)
    finally:
        server.close()
    assert done.returncode == 2  # it could not look
    assert "stop that one first: SQLite" in done.stderr
    assert "can damage a database that several processes write" in done.stderr
