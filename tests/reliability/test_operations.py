"""Beginning, ending, keeping and looking after, beside a server that is at work."""

import json
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from harness import running
from keybearer.v1 import api_key_service_pb2, token_service_pb2
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.storage import dbapi
from reliability.history import WRITERS, Judge, StoreImage, Writer
from reliability.processes import ServerProcess, answer, command, init, serving


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the installation lies."""
    return tmp_path / "data"


@pytest.fixture
def ids(data: Path) -> dict[str, str]:
    """The installation's ids and first token."""
    return init(data)


def refused(*words: str) -> str:
    """Run a command that must refuse: exit code 1, nothing on stdout, one line, no traceback."""
    done = command(*words)
    assert done.returncode == 1, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in lines[0]
    assert lines[0].startswith("keybearer-server: ")
    sys.stdout.write(lines[0] + "\n")
    return lines[0]


def serve_refused(data: Path, listen: str = "127.0.0.1:0") -> str:
    """Start a server that must refuse to."""
    return refused("serve", "--data-dir", str(data), "--listen", listen)


# --- ending ---------------------------------------------------------------------------------------


def test_sigterm_under_load_loses_nothing(data: Path, ids: dict[str, str], seed: int) -> None:
    """In-flight calls finish, new ones are refused, uses are written, and the exit code is 0."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    first = StoreImage(data / "keybearer.db")
    writers = [
        Writer(number, random.Random(seed + number), ids["user_id"]) for number in range(WRITERS)
    ]
    with serving(data) as server:
        busy, stop = threading.Event(), threading.Event()
        used = server.stubs(ids["token"]).create_key(role="ROLE_VALIDATOR")
        stubs = server.stubs(used.token)
        uses = 25
        for _ in range(uses):
            assert stubs.outcome(used.token) == "VALID"
        threads = [
            threading.Thread(target=writer.run, args=(server.stubs(ids["token"]), stop, busy.set))
            for writer in writers
        ]
        for thread in threads:
            thread.start()
        assert busy.wait(30)
        assert server.stop() == 0
        for thread in threads:
            thread.join()
        with pytest.raises(grpc.RpcError) as refusal:
            stubs.validate(used.token)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    created = StoreImage(data / "keybearer.db")
    first.keys["a key"] = created.keys["a key"]
    first.actions[used.api_key.id] = created.actions[used.api_key.id][:1]
    first.changes[1, used.api_key.id] = 1
    verdict = Judge(DataDir(data), first).judge(writers)
    sys.stdout.write(f"{sum(writer.acknowledged for writer in writers)} changes, {verdict}\n")
    assert verdict.findings == []
    # A call that had begun was finished: what broke off was never begun.
    assert verdict.applied == 0
    connection = dbapi.connect(str(data / "keybearer.db"))
    count = connection.execute(
        "SELECT use_count FROM api_keys WHERE id = ?", (used.api_key.id,)
    ).fetchone()[0]
    connection.close()
    assert count >= uses


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_other_signals_that_mean_the_end_drain_too(
    data: Path, ids: dict[str, str], number: signal.Signals, flags: tuple[str, ...]
) -> None:
    """A terminal that is closed, or Ctrl-C: the log ends with stopped, and the exit code is 0."""
    with serving(data, flags=flags) as server:
        server.wait_for(lambda events: "serving" in {one["event"] for one in events})
        assert server.stubs(ids["token"]).who_am_i().valid
        os.kill(server.pid, number)
        assert server.wait() == 0
        assert [one["event"] for one in server.events][-1] == "stopped"


def test_a_hangup_that_is_ignored_stays_ignored(data: Path, ids: dict[str, str]) -> None:
    """Under `nohup` a closed terminal ends nothing."""
    with serving(data, wrapper=("nohup",)) as server:
        os.kill(server.pid, signal.SIGHUP)
        assert server.stubs(ids["token"]).who_am_i().valid
        assert server.stop() == 0


# --- beginning ------------------------------------------------------------------------------------


def test_a_second_server_on_the_same_directory_is_refused(data: Path, ids: dict[str, str]) -> None:
    """One `serve` holds the directory."""
    with serving(data) as server:
        assert "in use by another keybearer-server" in serve_refused(data)
        assert server.stubs(ids["token"]).outcome(ids["token"]) == "VALID"


def test_a_port_in_use_is_refused(data: Path, ids: dict[str, str]) -> None:
    """A port that somebody listens on is not shared."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use" in serve_refused(data, f"127.0.0.1:{port}")


def test_an_http_port_in_use_is_refused(data: Path, ids: dict[str, str]) -> None:
    """By its address and the reason."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ("--data-dir", str(data), "--listen", "127.0.0.1:0", "--http-listen", address)
        assert f"cannot listen on {address}: Address already in use" in refused("serve", *words)


def test_a_wrong_pepper_is_refused(data: Path, ids: dict[str, str]) -> None:
    """A pepper that the database was not written with stops the start."""
    (pepper,) = (data / "peppers").glob("*.pepper")
    pepper.write_text("00" * 32 + "\n")
    assert "is not the pepper" in serve_refused(data)


@pytest.mark.parametrize("missing", ["*.pepper", "audit.key"])
def test_a_missing_key_file_is_refused(data: Path, ids: dict[str, str], missing: str) -> None:
    """A key file that is not there stops the start."""
    (file,) = (data / "peppers").glob(missing)
    file.unlink()
    serve_refused(data)


def test_a_newer_schema_is_refused(data: Path, ids: dict[str, str]) -> None:
    """A database that a newer version wrote is left alone."""
    connection = dbapi.connect(str(data / "keybearer.db"))
    with connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(_sqlite_migrations)")]
        known = dict(
            zip(
                columns,
                connection.execute("SELECT * FROM _sqlite_migrations").fetchone(),
                strict=True,
            )
        )
        known["name"] = "m999_from_the_future"
        known.pop("id", None)
        marks = ", ".join("?" * len(known))
        connection.execute(
            f"INSERT INTO _sqlite_migrations ({', '.join(known)}) VALUES ({marks})",  # noqa: S608
            list(known.values()),
        )
    connection.close()
    assert "newer version" in serve_refused(data)


def test_a_foreign_database_is_refused(data: Path, ids: dict[str, str]) -> None:
    """A database of something else is not touched."""
    (data / "keybearer.db").unlink()
    connection = dbapi.connect(str(data / "keybearer.db"))
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.close()
    before = (data / "keybearer.db").read_bytes()
    assert "something else" in serve_refused(data)
    assert "CREATE TABLE notes" in before.decode("latin-1")
    connection = dbapi.connect(str(data / "keybearer.db"))
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema")]
    connection.close()
    assert tables == ["notes"]


@pytest.mark.parametrize("content", [b"\0" * 100, b"not a database at all" * 10])
def test_a_corrupt_header_is_refused(data: Path, ids: dict[str, str], content: bytes) -> None:
    """A file that is no database stops the start."""
    with (data / "keybearer.db").open("r+b") as file:
        file.write(content)
    serve_refused(data)


def test_a_file_cut_short_is_refused_or_found(data: Path, ids: dict[str, str]) -> None:
    """Half a database is never served as if it were whole."""
    file = data / "keybearer.db"
    with file.open("r+b") as database:
        database.truncate(file.stat().st_size // 2 // 4096 * 4096)
    done = command("check", "--data-dir", str(data))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


# --- beside a running server ----------------------------------------------------------------------


@pytest.fixture
def server(data: Path, ids: dict[str, str]) -> Iterator[ServerProcess]:
    """A running server."""
    with serving(data) as process:
        yield process


def test_commands_work_beside_a_running_server(
    data: Path, ids: dict[str, str], server: ServerProcess
) -> None:
    """admin-token, check, audit verify and export, and pepper list need no stop."""
    where = ("--data-dir", str(data))
    token = answer("admin-token", *where, "--email", "glass@example.com")["token"]
    assert server.stubs(token).outcome(token) == "VALID"
    assert answer("check", *where)["findings"] == []
    assert answer("audit", "verify", *where)["broken_seq"] is None
    lines = command("audit", "export", *where).stdout.splitlines()
    assert "ADMIN_TOKEN_ISSUED" in {json.loads(line).get("action") for line in lines}
    assert len(answer("pepper", "list", *where)["peppers"]) == 1


def test_a_running_server_uses_a_pepper_that_was_added_beside_it(
    data: Path, ids: dict[str, str], server: ServerProcess
) -> None:
    """Keys issued before and after validate; the old pepper retires once nothing needs it."""
    where = ("--data-dir", str(data))
    admin = server.stubs(ids["token"])
    before = admin.create_key()
    (old,) = answer("pepper", "list", *where)["peppers"]
    new = answer("pepper", "add", *where)["id"]
    after = admin.create_key()
    assert admin.outcome(before.token) == admin.outcome(after.token) == "VALID"
    live = {one["id"]: one["live_secrets"] for one in answer("pepper", "list", *where)["peppers"]}
    assert live == {old["id"]: 2, new: 1}
    assert "needed by 2 live secrets" in refused("pepper", "retire", old["id"], *where)
    rotate = api_key_service_pb2.RotateApiKeyRequest(id=before.api_key.id)
    rotated = admin.keys.RotateApiKey(rotate).token
    renewed = admin.tokens.RotateSelf(token_service_pb2.RotateSelfRequest()).token
    answer("pepper", "retire", old["id"], *where)
    (data / "peppers" / f"{old['id']}.pepper").unlink()
    admin = server.stubs(renewed)
    assert admin.outcome(rotated) == admin.outcome(after.token) == "VALID"
    assert server.stop() == 0
    with serving(data) as again:
        assert again.stubs(renewed).outcome(after.token) == "VALID"


def test_a_backup_under_writes_is_a_prefix_of_history(
    data: Path, ids: dict[str, str], server: ServerProcess, tmp_path: Path, seed: int
) -> None:
    """Backups made while eight clients write are whole; a restored one is a new epoch, audited."""
    first = StoreImage(data / "keybearer.db")
    writers = [
        Writer(number, random.Random(seed + number), ids["user_id"]) for number in range(WRITERS)
    ]
    busy, stop = threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=writer.run, args=(server.stubs(ids["token"]), stop, busy.set))
        for writer in writers
    ]
    for thread in threads:
        thread.start()
    assert busy.wait(30)
    files = [tmp_path / f"backup-{number}.db" for number in range(3)]
    for file in files:
        answer("backup", str(file), "--data-dir", str(data))
    stop.set()
    for thread in threads:
        thread.join()
    assert server.stop() == 0
    assert Judge(DataDir(data), first).judge(writers).findings == []
    whole = chain(data / "keybearer.db")
    for file in files:
        part = chain(file)
        assert part
        assert part == whole[: len(part)]
    sys.stdout.write(
        f"{[len(chain(file)) for file in files]} of {len(whole)} events are in the backups\n"
    )

    restored = tmp_path / "restored"
    told = answer("restore", str(files[1]), "--data-dir", str(restored))
    assert told["epoch"] != epoch(data / "keybearer.db")
    assert told["epoch"] == epoch(restored / "keybearer.db")
    assert answer("check", "--data-dir", str(restored))["findings"] == []
    events = chain(restored / "keybearer.db")
    assert events[:-1] == chain(files[1])
    seq, digest = chain(files[1])[-1]
    expect = f"{seq}:{digest.hex()}"
    assert answer("audit", "verify", "--expect", expect, "--data-dir", str(restored))
    with serving(restored) as again:
        assert again.stubs(ids["token"]).outcome(ids["token"]) == "VALID"
    assert "not empty" in refused("restore", str(files[0]), "--data-dir", str(restored))


def chain(database: Path) -> list[tuple[int, bytes]]:
    """Read the audit chain's numbers and hashes."""
    connection = dbapi.connect(str(database))
    try:
        found = connection.execute("SELECT seq, hash FROM audit_events ORDER BY seq")
        return [(seq, digest) for seq, digest in found]
    finally:
        connection.close()


def epoch(database: Path) -> str:
    """Read the name of the history."""
    connection = dbapi.connect(str(database))
    try:
        return str(connection.execute("SELECT epoch FROM installation").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ("UPDATE audit_events SET peer = '192.0.2.1' WHERE seq = 3", "event 3 was altered"),
        ("UPDATE audit_events SET time = time + 1 WHERE seq = 1", "event 1 was altered"),
        ("DELETE FROM audit_events WHERE seq = 4", "event 4 is missing"),
        (
            """UPDATE audit_events SET seq = CASE seq WHEN 3 THEN -4 ELSE -3 END
            WHERE seq IN (3, 4); UPDATE audit_events SET seq = -seq WHERE seq < 0""",
            "event 3 was altered",
        ),
        ("DELETE FROM audit_events WHERE seq > 5", "were cut off"),
    ],
    ids=["edited", "back-dated", "deleted", "reordered", "cut"],
)
def test_edits_of_the_audit_log_are_found(tmp_path: Path, edit: str, problem: str) -> None:
    """Audit verify names the first event that does not fit; a noted head tells of a cut end."""
    data = tmp_path / "data"
    with running(data, SystemClock(), SystemEntropy()) as service:
        for _ in range(6):
            service.admin.create_key()
        with service.app.container.store.read() as reader:
            seq, head = reader.audit_head()
    connection = dbapi.connect(str(data / "keybearer.db"))
    connection.executescript(edit)
    connection.close()
    done = command("audit", "verify", "--expect", f"{seq}:{head.hex()}", "--data-dir", str(data))
    assert done.returncode == 1, done
    assert problem in done.stdout
