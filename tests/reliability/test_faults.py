"""A full disk, a locked store, a disk that fails: validation goes on, changes fail closed."""

import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness import Stubs, refusal_of
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.storage import dbapi
from reliability.history import WRITERS, Judge, StoreImage, Writer
from reliability.processes import ServerProcess, command, init, serving
from reliability.tracing import require_strace

OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
EXIT_OUTCOME_UNKNOWN = 3
DISK = "8m"
STEPS = 8


@dataclass
class Scene:
    """A server, an administrator who keeps a history, and a key that is validated."""

    server: ServerProcess
    stubs: Stubs
    writer: Writer
    token: str

    def validates(self, calls: int = 20) -> None:
        for _ in range(calls):
            assert self.stubs.outcome(self.token) == "VALID"

    def is_healthy(self) -> None:
        stub = health_pb2_grpc.HealthStub(self.server.channel())
        answer = stub.Check(  # type: ignore[attr-defined]  # not in the stubs
            health_pb2.HealthCheckRequest(), timeout=5
        )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def write(self, changes: int) -> None:
        for _ in range(changes):
            assert self.writer.step(self.stubs), (self.writer.refusals, self.writer.last_error)

    def refused(self) -> str:
        """Try a change that must not succeed; answers the code and reason."""
        if self.writer.step(self.stubs):
            return ""
        self.writer.unknown = None  # said to have changed nothing: the judge will see
        self.writer.refusals.clear()
        assert self.writer.last_error is not None
        refusal = refusal_of(self.writer.last_error)
        return f"{refusal.code.name} {refusal.reason}"


@contextmanager
def scene(
    data: Path, ids: dict[str, str], seed: int, wrapper: tuple[str, ...] = ()
) -> Iterator[Scene]:
    """Run a server on a directory that holds an installation."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    with serving(data, wrapper=wrapper) as server:
        stubs = server.stubs(ids["token"])
        writer = Writer(0, random.Random(seed), ids["user_id"])
        yield Scene(server, stubs, writer, ids["token"])


def findings(data: Path, first: StoreImage, writers: list[Writer]) -> list[str]:
    """Compare histories with a directory that nobody serves."""
    verdict = Judge(DataDir(data), first).judge(writers)
    sys.stdout.write(f"{verdict}\n")
    return verdict.findings


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[str, ...]:
    """The words that run a command with `tmp_path/data` on a small disk of its own."""
    script = 'mount -t tmpfs -o size="$0" tmpfs "$1" && cp -a "$2/." "$1" && shift 2 && exec "$@"'
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("unshare and nsenter are not installed")
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"no mount namespace of one's own: {tried.stderr.strip()}")
    (tmp_path / "data").mkdir()
    names = (str(tmp_path / "data"), str(tmp_path / "seed"))
    return ("unshare", "-m", "bash", "-c", script, DISK, *names)


def fill(ballast: Path) -> None:
    """Use up the disk, to the last byte."""
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


def test_a_full_disk_stops_changes_and_nothing_else(
    tmp_path: Path, seed: int, small_disk: tuple[str, ...]
) -> None:
    """With no room left validation goes on, changes answer STORE_FULL, and resume with room."""
    ids = init(tmp_path / "seed")
    first = StoreImage(tmp_path / "seed" / "keybearer.db")
    with scene(tmp_path / "data", ids, seed, small_disk) as now:
        # The server's own view of its disk, which nobody else has mounted.
        disk = Path(f"/proc/{now.server.pid}/root") / (tmp_path / "data").relative_to("/")
        now.write(10)
        seen: Counter[str] = Counter()
        for _ in range(3):
            fill(disk / "ballast")
            for _ in range(60):
                seen[now.refused()] += 1
                now.validates(2)
            now.is_healthy()
            (disk / "ballast").unlink()
            now.write(10)
        sys.stdout.write(f"{dict(seen)}\n")
        assert seen["RESOURCE_EXHAUSTED STORE_FULL"]
        assert seen.keys() <= {"", "RESOURCE_EXHAUSTED STORE_FULL"}
        copy = tmp_path / "copy"
        copy.mkdir()
        beside = ("nsenter", "-t", str(now.server.pid), "-m")
        to = ("backup", str(copy / "keybearer.db"), "--data-dir", str(tmp_path / "data"))
        done = command(*to, wrapper=beside)
        assert done.returncode == 0, done.stderr
        (copy / "keybearer.db.peppers").rename(copy / "peppers")
        assert now.server.stop() == 0
    assert findings(copy, first, [now.writer]) == []


# --- a locked store -------------------------------------------------------------------------------


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the store's write lock, as another process may."""
    holder = dbapi.connect(str(database), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


def test_a_locked_store_stops_changes_and_nothing_else(tmp_path: Path, seed: int) -> None:
    """While another process holds the store, validation goes on and changes are UNAVAILABLE."""
    data = tmp_path / "data"
    ids = init(data)
    first = StoreImage(data / "keybearer.db")
    with scene(data, ids, seed) as now:
        now.write(5)
        with locked(data / "keybearer.db"):
            now.validates()
            started = time.monotonic()
            assert now.refused() == "UNAVAILABLE STORE_UNAVAILABLE"
            plain = time.monotonic() - started
            started = time.monotonic()
            with pytest.raises(grpc.RpcError) as refused:
                now.stubs.create_key(request_id=str(uuid.uuid4()))
            assert refusal_of(refused.value).reason == "STORE_UNAVAILABLE"
            repeatable = time.monotonic() - started
            now.validates()
            now.is_healthy()
        sys.stdout.write(
            f"refused after {plain:.1f} s, with a request_id after {repeatable:.1f} s\n"
        )
        now.write(5)
        assert now.server.stop() == 0
    assert findings(data, first, [now.writer]) == []


@pytest.mark.parametrize(
    "words",
    [("backup", "FILE"), ("check",), ("audit", "verify"), ("audit", "export"), ("pepper", "list")],
    ids=" ".join,
)
def test_a_command_that_only_reads_waits_for_no_change(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A busy service has a change under way whenever a command begins."""
    data = tmp_path / "data"
    init(data)
    file = str(tmp_path / "backup.db")
    with locked(data / "keybearer.db"):
        done = command(
            *(file if word == "FILE" else word for word in words), "--data-dir", str(data)
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_waiting_changes_do_not_stop_validation(tmp_path: Path, seed: int) -> None:
    """More changes than there are threads for them wait for a lock; validation goes on."""
    data = tmp_path / "data"
    ids = init(data)
    codes: list[str] = []
    with scene(data, ids, seed) as now, locked(data / "keybearer.db"):

        def change() -> None:
            try:
                now.stubs.create_key()
            except grpc.RpcError as error:
                codes.append(error.code().name)

        threads = [threading.Thread(target=change) for _ in range(24)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            now.validates(5)
        now.is_healthy()
    sys.stdout.write(f"{Counter(codes)}\n")
    assert len(codes) == 24
    assert set(codes) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


# --- a disk that fails ----------------------------------------------------------------------------


def failing_sync(when: str) -> tuple[str, ...]:
    """The words that run a command whose n-th sync on a thread fails."""
    syncs = "fsync,fdatasync"
    inject = ("-e", f"trace={syncs}", "-e", f"inject={syncs}:error=EIO:when={when}")
    return ("strace", "-D", "-f", "-qq", "-o", "/dev/null", *inject)


def fail_at(path: Path, seed: int, when: str, writers: int = 1) -> str:
    """Write until a sync fails; answers how the run ended. The history must hold afterwards."""
    data = path / f"data-{when}-{writers}"
    ids = init(data)
    first = StoreImage(data / "keybearer.db")
    clients = [
        Writer(number, random.Random(seed + number), ids["user_id"]) for number in range(writers)
    ]
    server = ServerProcess(data, wrapper=failing_sync(when))
    try:
        try:
            server.wait_until_serving()
        except AssertionError:
            assert server.wait() == 1
            assert len(server.text.splitlines()) == 1, server.text
            return "did not start"
        stubs = [server.stubs(ids["token"]) for _ in clients]

        def write(client: Writer, own: Stubs) -> None:
            for _ in range(STEPS):
                if not client.step(own):
                    return

        threads = [
            threading.Thread(target=write, args=pair) for pair in zip(clients, stubs, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [client for client in clients if client.last_error is not None]
        if not failed:
            code = server.stop()
            ended = f"all acknowledged, exit code {code}"
        else:
            reasons = {
                refusal_of(client.last_error).reason
                for client in failed
                if client.last_error is not None
            }
            assert OUTCOME_UNKNOWN in reasons, (reasons, server.text)
            assert server.wait() == EXIT_OUTCOME_UNKNOWN
            ended = "unknown, exit code 3"
    finally:
        server.close()
    assert findings(data, first, clients) == []
    return ended


@pytest.mark.parametrize("when", ["1", "3+"])
def test_a_failed_sync_is_never_a_success(tmp_path: Path, seed: int, when: str) -> None:
    """After an I/O error at COMMIT the outcome is unknown, the process ends, the history holds."""
    require_strace()
    assert fail_at(tmp_path, seed, when) == "unknown, exit code 3"


@pytest.mark.slow
@pytest.mark.parametrize("lasting", ["", "+"], ids=["once", "for-ever"])
@pytest.mark.parametrize("writers", [1, WRITERS])
def test_a_failed_sync_at_every_place(
    tmp_path: Path, seed: int, writers: int, lasting: str
) -> None:
    """An I/O error at the first sync, the second, …, until none is left to fail."""
    require_strace()
    for number in range(1, 100):
        ended = fail_at(tmp_path, seed, f"{number}{lasting}", writers)
        sys.stdout.write(f"sync {number}{lasting}, {writers} writers: {ended}\n")
        if ended == "all acknowledged, exit code 0":
            return
    raise AssertionError("there was always another sync to fail")
