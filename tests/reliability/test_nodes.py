"""Several nodes over one database on PostgreSQL, each in a process and a directory of its own."""

import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

import postgres_server
from harness import Stubs, message
from keybearer.v1 import token_service_pb2
from postgres_primary import Primary
from reliability.clusters import Cluster, cluster_in, two_nodes
from reliability.processes import ANY_PORT, ServerProcess, answer, command
from storage.test_postgres_nodes import until

PATIENCE_TRIES = 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """An installation, and a second directory with its key files."""
    with cluster_in(tmp_path) as made:
        yield made


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[ServerProcess]]:
    """Two running nodes."""
    with two_nodes(cluster) as started:
        yield started


@pytest.mark.parametrize(
    "rounds", [20, pytest.param(10_000, marks=pytest.mark.slow)], ids=["20", "10000"]
)
def test_a_revoked_key_is_refused_at_the_other_node_at_once(
    cluster: Cluster, nodes: list[ServerProcess], rounds: int
) -> None:
    """From the moment Revoke answers; and a key is known there from the moment it was made."""
    stubs = [node.stubs(cluster.token) for node in nodes]
    for turn in range(rounds):
        here, there = stubs[turn % 2], stubs[1 - turn % 2]
        created = here.create_key(name=f"key {turn}")
        assert there.outcome(created.token) == "VALID"
        here.revoke(created.api_key.id)
        assert there.outcome(created.token) == "REVOKED"


def test_a_watcher_at_the_other_node_is_told(cluster: Cluster, nodes: list[ServerProcess]) -> None:
    """In order and by the revision, whichever node made the change."""
    here, there = (node.stubs(cluster.token) for node in nodes)
    subscribe = message(token_service_pb2.WatchInvalidationsRequest, subscribe={})
    stream = there.tokens.WatchInvalidations(iter([subscribe]))
    head = next(stream).hello.head_revision
    ids = [here.create_key(name=f"key {n}").api_key.id for n in range(3)]
    for key_id in ids:
        here.revoke(key_id)
    told = [next(stream).invalidation for _ in range(6)]
    stream.cancel()
    assert [one.revision for one in told] == list(range(head + 1, head + 7))
    assert [one.key_id for one in told[3:]] == ids


def test_one_node_goes_on_when_the_other_is_killed(
    cluster: Cluster, nodes: list[ServerProcess]
) -> None:
    """In the middle of its work; what it had acknowledged is there."""
    here, there = (node.stubs(cluster.token) for node in nodes)
    created = here.create_key(name="kept")
    nodes[0].kill()
    assert there.outcome(created.token) == "VALID"
    there.revoke(created.api_key.id)
    assert there.outcome(created.token) == "REVOKED"


def test_a_second_installation_in_one_database_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """And the first one stays."""
    done = command(
        *("init", "--data-dir", str(tmp_path / "third"), "--database", cluster.url.text),
        *("--account", "other", "--admin-email", "other@example.com"),
    )
    assert done.returncode == 1
    assert "holds an installation already" in done.stderr
    with_database = ("--database", cluster.url.text)
    assert (
        command("check", "--data-dir", str(cluster.directories[0]), *with_database).returncode == 0
    )


def test_a_node_without_the_key_files_does_not_start(cluster: Cluster, tmp_path: Path) -> None:
    """It says what to copy."""
    done = command(
        "serve", "--data-dir", str(tmp_path / "bare"), "--database", cluster.url.text, *ANY_PORT
    )
    assert done.returncode == 1
    assert "peppers/" in done.stderr


def test_the_local_commands_work_on_the_database(cluster: Cluster, tmp_path: Path) -> None:
    """Beside a running node: admin-token, pepper, audit, check, backup, migrate."""
    at = ("--data-dir", str(cluster.directories[0]), "--database", cluster.url.text)
    process = cluster.serve(0)
    try:
        file = tmp_path / "copy.db"
        for words in (
            ("admin-token", "--email", "admin@example.com", *at),
            ("pepper", "add", *at),
            ("pepper", "list", *at),
            ("audit", "verify", *at),
            ("audit", "export", *at),
            ("keys", "prune", "--revoked-before", "2100-01-01", *at),
            ("check", *at),
            ("backup", str(file), *at),
            ("migrate", *at[2:]),
        ):
            done = command(*words)
            assert done.returncode == 0, (words, done.stderr)
        # The backup is a file, and can be served from one.
        restored = tmp_path / "restored"
        done = command("restore", str(file), "--data-dir", str(restored))
        assert done.returncode == 0, done.stderr
        with sqlite3.connect(restored / "keybearer.db") as connection:
            assert connection.execute("SELECT count(*) FROM api_keys").fetchone() == (2,)
    finally:
        process.close()


def test_a_pepper_is_used_once_every_node_has_it(
    cluster: Cluster, nodes: list[ServerProcess], tmp_path: Path
) -> None:
    """Until then secrets are issued under the one before, and nobody is refused."""
    first, second = cluster.directories
    at = ("--data-dir", str(first), "--database", cluster.url.text)
    stubs = [node.stubs(cluster.token) for node in nodes]
    file = tmp_path / "drawn"
    pepper_id = answer("pepper", "add", "--out", str(file), *at)["id"]
    before = stubs[0].create_key(name="before")
    assert [one.outcome(before.token) for one in stubs] == ["VALID"] * 2
    shutil.copy(file, first / "peppers" / f"{pepper_id}.pepper")
    refusal = command("pepper", "activate", pepper_id, *at)
    assert refusal.returncode == 1
    assert "have no file of the pepper" in refusal.stderr
    shutil.copy(file, second / "peppers" / f"{pepper_id}.pepper")
    pause = threading.Event()
    for _ in range(PATIENCE_TRIES):
        if command("pepper", "activate", pepper_id, *at).returncode == 0:
            break
        pause.wait(0.5)
    assert not any(one["announced"] for one in answer("pepper", "list", *at)["peppers"])
    after = stubs[0].create_key(name="after")
    assert [one.outcome(after.token) for one in stubs] == ["VALID"] * 2
    live = {one["id"]: one["live_secrets"] for one in answer("pepper", "list", *at)["peppers"]}
    assert live[pepper_id] == 1
    # A node that starts later without it does not serve.
    late = tmp_path / "late"
    shutil.copytree(second / "peppers", late / "peppers")
    (late / "peppers" / f"{pepper_id}.pepper").unlink()
    done = command("serve", "--data-dir", str(late), "--database", cluster.url.text, *ANY_PORT)
    assert done.returncode == 1
    assert f"{pepper_id}.pepper is missing" in done.stderr


@pytest.fixture
def primary() -> Iterator[Primary]:
    """A server of its own, whose standby can leave it."""
    postgres_server.server()  # skips where there is none
    started = Primary()
    yield started
    started.close()


def is_away(stubs: Stubs, token: str) -> bool:
    """Return whether validations are UNAVAILABLE."""
    try:
        stubs.outcome(token)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_a_primary_whose_standby_has_left_it_is_not_believed(
    primary: Primary, tmp_path: Path
) -> None:
    """It may have been replaced: no verdict, and no pong for what is kept of verdicts."""
    at = ("--data-dir", str(tmp_path / "node"), "--database", primary.url.text)
    token = answer("init", *at, "--account", "operator", "--admin-email", "admin@example.com")[
        "token"
    ]
    primary.attach()
    process = ServerProcess(tmp_path / "node", flags=("--database", primary.url.text))
    sent: SimpleQueue[token_service_pb2.WatchInvalidationsRequest | None] = SimpleQueue()
    received: list[int] = []

    def listen(answers: Iterable[Any]) -> None:
        with suppress(grpc.RpcError):  # it is cancelled in the end
            received.extend(one.pong.sent_at for one in answers if one.HasField("pong"))

    def ping(number: int) -> None:
        sent.put(message(token_service_pb2.WatchInvalidationsRequest, ping={"sent_at": number}))

    try:
        stubs = process.stubs(token)
        stream = stubs.tokens.WatchInvalidations(iter(sent.get, None))
        listener = threading.Thread(target=listen, args=(stream,))
        sent.put(message(token_service_pb2.WatchInvalidationsRequest, subscribe={}))
        listener.start()
        ping(1)
        until(lambda: 1 in received)
        primary.detach()
        ping(2)  # no proof begins after it and succeeds
        until(lambda: is_away(stubs, token))
        assert all(is_away(stubs, token) for _ in range(PATIENCE_TRIES))
        assert 2 not in received
        primary.attach()
        until(lambda: not is_away(stubs, token))
        ping(3)
        until(lambda: 3 in received)
        stream.cancel()
        sent.put(None)
        listener.join()
    finally:
        process.close()


@pytest.mark.parametrize("variable", ["", "KEYBEARER_DATABASE"])
def test_a_password_in_the_url_is_refused_and_not_repeated(tmp_path: Path, variable: str) -> None:
    """As a flag and as a variable: it would end up in logs and in lists of processes."""
    url = "postgresql://keybearer:hunter2@db.example.com/keybearer"
    words = ("check", "--data-dir", str(tmp_path))
    done = command(*words, **{variable: url}) if variable else command(*words, "--database", url)
    assert done.returncode != 0
    assert "--database-password-file" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
