"""Nodes of the version before and of this one, side by side over one database."""

import io
import re
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc
import pytest

from keybearer import (
    NEVER_EXPIRES,
    KeybearerClient,
    KeybearerError,
    Outcome,
    RevocationReason,
    Role,
)
from keybearer_service.storage import migrations
from reliability.clusters import Cluster, cluster_in
from reliability.processes import SERVER, ServerProcess, command

ROOT = Path(__file__).parents[2]
SCHEMA = "service/keybearer_service/storage/migrations.py"
STEP = re.compile(r"^def m\d{3}_", re.MULTILINE)
CALLERS = 4
BROKEN_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
CALLS_OF_A_ROUND = 8
CALLS_BETWEEN = 200
"""How many calls succeed between one change of a node and the next."""


def _git(*arguments: str) -> bytes:
    return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, check=True).stdout


def _previous_commit() -> str:
    """Return the newest commit whose schema lacks a step of this one; skip where there is none."""
    steps = len(migrations.migrations._migrations)  # noqa: SLF001 - no public list
    try:
        commits = _git("log", "--format=%H", "--", SCHEMA).decode().split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no history of commits is here, from which the version before would be taken")
    for commit in commits:
        if len(STEP.findall(_git("show", f"{commit}:{SCHEMA}").decode())) < steps:
            return commit
    pytest.skip("the history of commits does not reach back to a schema with fewer steps")


class Version:
    """A version of the program, whose nodes and commands are processes of their own."""

    def __init__(self, path: Path | None = None) -> None:
        self._wrapper: tuple[str, ...] = ()
        if path is not None:
            code = f"PYTHONPATH={path}/client:{path}/service"
            self._wrapper = ("env", code)

    def serve(self, cluster: Cluster, node: int, *flags: str) -> ServerProcess:
        """Start a node."""
        process = ServerProcess(
            cluster.directories[node],
            wrapper=self._wrapper,
            flags=("--database", cluster.url.text, *flags),
        )
        process.wait_until_serving()
        return process

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command."""
        return command(*arguments, wrapper=self._wrapper, entry=SERVER)


@pytest.fixture
def before(tmp_path: Path) -> Version:
    """The version before."""
    path = tmp_path / "before"
    packed = _git("archive", _previous_commit(), "client", "service")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(path, filter="data")
    return Version(path)


class Callers:
    """Threads that check a key, make others and revoke them, at either node."""

    def __init__(self, addresses: list[str], token: str) -> None:
        self.client = KeybearerClient(f"ipv4:{','.join(addresses)}", token=token, tls=False)
        self.done = 0
        self.refused: list[str] = []
        self._stop = threading.Event()
        self._more = threading.Condition()
        self._threads = [threading.Thread(target=self._run) for _ in range(CALLERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.client.close()

    def go_on(self) -> None:
        """Wait until many more calls have been answered."""
        with self._more:
            wanted = self.done + CALLS_BETWEEN
            assert self._more.wait_for(lambda: self.done >= wanted, 60)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._round()
            except (KeybearerError, AssertionError) as error:
                self.refused.append(repr(error))
            with self._more:
                self.done += CALLS_OF_A_ROUND
                self._more.notify_all()

    def _revoke(self, key_id: str) -> None:
        """Revoke a key, once more when the way was broken off: the client leaves that to us."""
        try:
            self.client.revoke_api_key(key_id, reason=RevocationReason.SUPERSEDED)
        except KeybearerError as error:
            if error.reason or error.code not in BROKEN_OFF:
                raise
            self.client.revoke_api_key(key_id, reason=RevocationReason.SUPERSEDED)

    def _round(self) -> None:
        made = self.client.create_api_key("upgraded", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
        for _ in range(CALLS_OF_A_ROUND - 3):
            assert self.client.validate_token(made.token).valid
        self._revoke(made.api_key.id)
        assert self.client.validate_token(made.token).outcome is Outcome.REVOKED


@pytest.fixture
def old_cluster(before: Version, tmp_path: Path) -> Iterator[Cluster]:
    """An installation that the version before has made."""
    (tmp_path / "cluster").mkdir()
    with cluster_in(tmp_path / "cluster", init=before.run) as cluster:
        yield cluster


@pytest.mark.slow
def test_nodes_are_replaced_one_after_another_and_no_call_is_refused(
    before: Version, old_cluster: Cluster
) -> None:
    """The schema first, while the old nodes serve; then the first node, then the second."""
    nodes = [before.serve(old_cluster, number) for number in range(2)]
    addresses = [node.address for node in nodes]
    try:
        with Callers(addresses, old_cluster.token) as callers:
            callers.go_on()
            done = command("migrate", "--database", old_cluster.url.text)
            assert done.returncode == 0, done.stderr
            callers.go_on()
            for number, address in enumerate(addresses):
                assert nodes[number].stop() == 0
                nodes[number].close()
                nodes[number] = Version().serve(old_cluster, number, "--listen", address)
                callers.go_on()
        assert callers.refused == []
    finally:
        for node in nodes:
            node.close()
    done = command(
        "audit",
        "verify",
        *("--data-dir", str(old_cluster.directories[0]), "--database", old_cluster.url.text),
    )
    assert done.returncode == 0, done.stdout
