"""`move`: an installation goes from its file to PostgreSQL, and never can both be served."""

import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import postgres_server
from bench.seed import installation
from harness import message
from keybearer.v1 import audit_event_pb2, token_service_pb2
from keybearer_service.container import open_container
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.offline.audit import check_store
from keybearer_service.storage import StoreError, dbapi
from postgres_proxy import Cut, Proxy
from reliability.processes import SERVER, ServerProcess, answer, command, environment, init, serving

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")


@pytest.fixture
def url() -> Iterator[DatabaseUrl]:
    """An empty database."""
    made = postgres_server.new_database(is_empty=True)
    yield made
    postgres_server.drop_database(made)


class Here(NamedTuple):
    """An installation in a file."""

    path: Path
    token: str

    @property
    def words(self) -> tuple[str, str]:
        """How commands name it."""
        return "--data-dir", str(self.path)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """An installation in a file."""
    return Here(tmp_path / "data", init(tmp_path / "data")["token"])


def move(here: Here, url: DatabaseUrl, *more: str) -> "subprocess.CompletedProcess[str]":
    """Run the command."""
    return command("move", *here.words, "--to", url.text, *more)


def there(here: Here, url: DatabaseUrl) -> ServerProcess:
    """Serve the database with the key files of the directory."""
    process = ServerProcess(here.path, flags=("--database", url.text))
    process.wait_until_serving()
    return process


# --- what a move does -----------------------------------------------------------------------------


def test_an_installation_goes_on_in_the_database(here: Here, url: DatabaseUrl) -> None:
    """Tokens, states, half-read lists and the audit log; watchers are told to begin afresh."""
    with serving(here.path) as process:
        stubs = process.stubs(here.token)
        keys = [stubs.create_key(name=f"key {n}") for n in range(5)]
        stubs.revoke(keys[0].api_key.id)
        rotated = stubs.rotate(keys[1].api_key.id)
        page = stubs.list_keys(page_size=2)
        tokens = [*(key.token for key in keys), rotated.token]
        outcomes = [stubs.outcome(token) for token in tokens]
        subscribe = message(token_service_pb2.WatchInvalidationsRequest, subscribe={})
        hello = next(stubs.tokens.WatchInvalidations(iter([subscribe]))).hello
        assert process.stop() == 0
    result = answer("move", *here.words, "--to", url.text)
    assert result["keys"] == 6
    process = there(here, url)
    stubs = process.stubs(here.token)
    assert [stubs.outcome(token) for token in tokens] == outcomes
    assert outcomes.count("VALID") == 4
    rest = stubs.list_keys(page_size=10, page_token=page.next_page_token).api_keys
    assert len({key.id for key in (*page.api_keys, *rest)}) == 6
    moved = stubs.events()[0]
    assert moved.action == audit_event_pb2.AUDIT_ACTION_INSTALLATION_MOVED
    assert {one.field for one in moved.changes} == {"epoch", "move_id", "api_keys", "audit_events"}
    again = message(
        token_service_pb2.WatchInvalidationsRequest,
        subscribe={"epoch": hello.epoch, "from_revision": hello.head_revision},
    )
    first = next(stubs.tokens.WatchInvalidations(iter([again])))
    assert first.reset.epoch == result["epoch"] != hello.epoch
    process.close()
    assert answer("check", *here.words, "--database", url.text)["findings"] == []


def test_a_moved_file_is_used_by_nobody(here: Here, url: DatabaseUrl, tmp_path: Path) -> None:
    """No server, no command; and a copy of it that is put elsewhere neither."""
    assert move(here, url).returncode == 0
    for words in (
        ("serve", "--listen", "127.0.0.1:0"),
        ("admin-token", "--email", "admin@example.com"),
        ("pepper", "add"),
        ("backup", str(tmp_path / "copy")),
        ("check",),
    ):
        done = command(*words, *here.words)
        assert done.returncode != 0
        assert f"was moved to {url.text}" in done.stderr
    done = command(
        *("restore", str(here.path / "keybearer.db"), "--data-dir", str(tmp_path / "other")),
        *("--peppers", str(here.path / "peppers")),
    )
    assert done.returncode == 1
    assert "was moved" in done.stderr


def test_a_backup_is_the_way_back_and_on(here: Here, url: DatabaseUrl, tmp_path: Path) -> None:
    """From the database into a file, and from there into another database."""
    assert move(here, url).returncode == 0
    file, back, onward = tmp_path / "file", tmp_path / "back", tmp_path / "onward"
    answer("backup", str(file), *here.words, "--database", url.text)
    answer("restore", str(file), "--data-dir", str(back))
    with serving(back) as process:
        assert process.stubs(here.token).outcome(here.token) == "VALID"
    other = postgres_server.new_database(is_empty=True)
    words = ("--data-dir", str(onward), "--database", other.text)
    answer("restore", str(file), *words)
    assert answer("check", *words)["findings"] == []
    process = there(Here(onward, here.token), other)
    assert process.stubs(here.token).outcome(here.token) == "VALID"
    process.close()
    done = command("restore", str(file), "--data-dir", str(tmp_path / "x"), *words[2:])
    assert done.returncode == 1
    assert "holds an installation already" in done.stderr
    assert not (tmp_path / "x" / "peppers").exists()
    postgres_server.drop_database(other)


# --- what is refused ------------------------------------------------------------------------------


def test_a_file_that_is_served_is_not_moved(here: Here, url: DatabaseUrl) -> None:
    """And it goes on being served."""
    with serving(here.path) as process:
        done = move(here, url)
        assert done.returncode == 1
        assert "stop that one first" in done.stderr
        assert process.stubs(here.token).outcome(here.token) == "VALID"


def test_a_database_that_holds_something_is_refused(here: Here, tmp_path: Path) -> None:
    """Another installation, or tables of something else; the file can be served then."""
    held = postgres_server.new_database(is_empty=True)
    foreign = postgres_server.new_database(is_empty=True)
    postgres_server.execute(foreign.text, "CREATE TABLE orders (id int)")
    other = Here(tmp_path / "other", init(tmp_path / "other")["token"])
    assert move(other, held).returncode == 0
    for url, why in ((held, "holds an installation already"), (foreign, "something else")):
        done = move(here, url)
        assert done.returncode == 1
        assert why in done.stderr
    assert command("check", *here.words).returncode == 0
    postgres_server.drop_database(held)
    postgres_server.drop_database(foreign)


def test_an_audit_log_that_was_altered_is_not_moved(here: Here, url: DatabaseUrl) -> None:
    """Nobody could tell afterwards whether it was the move."""
    connection = dbapi.connect(str(here.path / "keybearer.db"))
    with connection:
        connection.execute("UPDATE audit_events SET peer = 'somebody'")
    connection.close()
    done = move(here, url)
    assert done.returncode == 1
    assert "event 1 was altered" in done.stderr
    assert not is_servable(here.path, url)
    assert is_servable(here.path)


def test_a_move_that_was_broken_off_is_ended_or_abandoned(here: Here, url: DatabaseUrl) -> None:
    """Until then the file is refused, and so is a move to another database."""
    other = postgres_server.new_database(is_empty=True)
    with Proxy(url, on_sent=lambda data: cut_after_copy(proxy, data)) as proxy:
        assert move(here, proxy.url).returncode == 1
        serve = command("serve", *here.words, "--listen", "127.0.0.1:0")
        assert "`keybearer-server move` again" in serve.stderr
        elsewhere = move(here, other)
        assert elsewhere.returncode == 1
        assert "is being moved to" in elsewhere.stderr
        assert move(here, proxy.url, "--abandon").returncode == 0
    assert is_servable(here.path)
    nothing = move(here, url, "--abandon")
    assert "is not being moved" in nothing.stderr
    assert move(here, url).returncode == 0
    postgres_server.drop_database(other)


def test_a_move_that_has_arrived_is_not_abandoned(here: Here, url: DatabaseUrl) -> None:
    """Neither before nor after the file has its last mark."""
    assert move(here, url).returncode == 0
    done = move(here, url, "--abandon")
    assert done.returncode == 1
    assert "was moved" in done.stderr
    connection = dbapi.connect(str(here.path / "keybearer.db"))
    with connection:
        connection.execute("UPDATE departure SET is_done = 0")
    connection.close()
    done = move(here, url, "--abandon")
    assert done.returncode == 1
    assert "holds an installation" in done.stderr
    assert move(here, url).returncode == 0


def test_a_move_that_is_told_to_end_says_how_to_go_on(here: Here, url: DatabaseUrl) -> None:
    """A signal in the middle: exit code 1 and one line."""
    copying = threading.Event()
    with Proxy(url, on_sent=lambda data: copying.set() if b"COPY " in data else None) as proxy:
        process = started(here.path, proxy.url)
        assert copying.wait(60)
        process.terminate()
        _, told = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was faster than the signal")
    assert process.returncode == 1
    assert "run `keybearer-server move` again" in told
    assert len(told.splitlines()) == 1


# --- kills ----------------------------------------------------------------------------------------


def started(path: Path, url: DatabaseUrl) -> "subprocess.Popen[str]":
    """Start the command."""
    return subprocess.Popen(
        [sys.executable, *SERVER, "move", "--data-dir", str(path), "--to", url.text],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_servable(path: Path, url: DatabaseUrl | None = None) -> bool:
    """Return whether a server would start, and whether what it serves is whole then."""
    try:
        container = open_container(DataDir(path, url), SystemClock(), SystemEntropy())
    except StoreError:
        return False
    try:
        assert check_store(container.store) == []
    finally:
        container.close()
    return True


def cut_after_copy(proxy: Proxy, sent: bytes) -> None:
    """Cut the next COMMIT once rows are being copied."""
    if COPY in sent:
        proxy.cut_at_commit(Cut.BEFORE)


class LastCommit:
    """Notices the COMMIT of the transaction that copies."""

    def __init__(self) -> None:
        self.is_copying = False
        self.was_sent = threading.Event()

    def on_sent(self, data: bytes) -> None:
        """Look at what a client has sent."""
        self.is_copying |= COPY in data
        if self.is_copying and b"COMMIT\0" in data:
            self.was_sent.set()


class Killing(NamedTuple):
    """Kills moves of copies of one installation."""

    origin: Path
    token: str
    keys: int
    chance: random.Random
    usual_s: float
    """How long a move takes."""

    def once(self, path: Path, *, at_commit: bool) -> str:
        """Kill one move, end it by one command, and return what the kill had left."""
        shutil.copytree(self.origin, path)
        url = postgres_server.new_database(is_empty=True)
        last = LastCommit()
        with Proxy(url, on_sent=last.on_sent) as proxy:
            process = started(path, proxy.url)
            if at_commit:
                assert last.was_sent.wait(60)
            pause(self.chance.uniform(0, NEAR_S if at_commit else self.usual_s))
            process.kill()
            process.communicate(timeout=60)
            left = is_servable(path), is_servable(path, url)
            assert left != (True, True)
            if self.chance.random() < SHARE_ABANDONED:
                done = move(Here(path, self.token), proxy.url, "--abandon")
                now = is_servable(path), is_servable(path, url)
                assert now != (True, True)
                assert now == (True, False) or done.returncode == 1
            done = move(Here(path, self.token), proxy.url)
            assert done.returncode == 0 or "was moved" in done.stderr
        assert (is_servable(path), is_servable(path, url)) == (False, True)
        container = open_container(DataDir(path, url), SystemClock(), SystemEntropy())
        with container.store.read() as reader:
            assert reader.key_count() == self.keys
        container.close()
        process_there = there(Here(path, self.token), url)
        assert process_there.stubs(self.token).outcome(self.token) == "VALID"
        process_there.close()
        postgres_server.drop_database(url)
        shutil.rmtree(path)
        return f"file {left[0]}, database {left[1]}"


COPY = b"COPY api_keys"
NEAR_S = 0.005
SHARE_ABANDONED = 0.3


def pause(seconds: float) -> None:
    """Let a process go on for a random while."""
    threading.Event().wait(seconds)


def kill_moves(tmp_path: Path, keys: int, seed: int, *, kills: int, at_commit: int) -> Counter[str]:
    """Kill moves; return how often each state was left behind."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    origin, token, _ = installation(tmp_path / "seed", keys)
    began = time.monotonic()
    killing = Killing(origin, token, keys + 1, random.Random(seed), 60)
    shutil.copytree(origin, tmp_path / "first")
    url = postgres_server.new_database(is_empty=True)
    assert move(Here(tmp_path / "first", token), url).returncode == 0
    postgres_server.drop_database(url)
    killing = killing._replace(usual_s=time.monotonic() - began)
    seen: Counter[str] = Counter()
    for turn in range(kills):
        seen[killing.once(tmp_path / f"turn-{turn}", at_commit=turn < at_commit)] += 1
    sys.stdout.write(f"{kills} kills: {dict(seen)}\n")
    return seen


def test_a_move_that_is_killed_is_ended_by_one_command(tmp_path: Path, seed: int) -> None:
    """A few kills, of them some at the last commit."""
    assert sum(kill_moves(tmp_path, 500, seed, kills=3, at_commit=2).values()) == 3


@pytest.mark.slow
def test_a_move_that_is_killed_anywhere_is_ended_by_one_command(tmp_path: Path, seed: int) -> None:
    """Twenty kills of 20,000 keys, five of them within 5 ms of the last commit."""
    seen = kill_moves(tmp_path, 20_000, seed, kills=20, at_commit=5)
    assert len(seen) > 1
