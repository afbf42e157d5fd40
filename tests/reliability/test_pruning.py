"""Pruning the audit log: what goes is exported, what stays is whole, and it can be broken off."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, running
from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.container import Container, open_container
from keybearer_service.domain.audit_digests import AuditDigests, Subject
from keybearer_service.domain.audit_event import FieldChange, split_digests
from keybearer_service.domain.clock import DAY, HOUR, Micros, SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.audit import check, export_audit, verify_audit
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.pruning import PRUNE_BATCH, Pruned, prune_audit
from keybearer_service.offline.verification import ChainReport
from keybearer_service.storage import dbapi
from reliability.processes import (
    SERVER,
    ServerProcess,
    answer,
    command,
    environment,
    init,
    serving,
)

MANY = 2 * PRUNE_BATCH + 500


class BrokenOffError(Exception):
    """Stands for a command that is killed."""


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service that a day has gone by in, between two changes."""
    with running(tmp_path / "data", clock, entropy) as running_service:
        running_service.tenant()
        admin = running_service.admin
        user = admin.create_user("gone@example.com")
        admin.create_key(owner_id=user.id)
        admin.delete_user(user.id)
        admin.create_key(name="old")
        admin.revoke(admin.create_key(name="revoked").api_key.id)
        clock.advance(DAY)
        admin.create_key(name="new")
        yield running_service


def prune(service: Service, file: Path, *, age: int = HOUR, stop_at: int = 0) -> Pruned:
    """Prune what is older than an age; be killed once an event is gone."""

    def on_batch(seq: int) -> None:
        if seq == stop_at:
            raise BrokenOffError

    container = service.app.container
    before = Micros(container.clock.now() - age)
    return prune_audit(
        container.store, container.mutations, container.keyring.audit_key, before, file, on_batch
    )


def verify(service: Service) -> ChainReport:
    """Verify the log."""
    container = service.app.container
    report, findings = verify_audit(container.store, container.keyring.audit_key, None)
    assert findings == []
    return report


def findings_of(service: Service) -> list[str]:
    """Return what `check` finds."""
    container = service.app.container
    return list(check(container.store, container.keyring.audit_key).findings)


def lines_of(file: Path) -> list[dict[str, object]]:
    """Read an export."""
    return [json.loads(line) for line in file.read_text("ascii").splitlines()]


def write_many(container: Container, count: int) -> None:
    """Write many events, in one transaction."""
    account_id = container.installation.operator_account_id
    with container.mutations.begin_local() as mutation:
        for number in range(count):
            mutation.record(
                AuditAction.ACCOUNT_ENABLED,
                account_id=account_id,
                target_type=AuditTargetType.ACCOUNT,
                target_id=account_id,
                changes=(FieldChange("number", "", str(number)),),
            )


def test_what_is_old_is_exported_and_gone(service: Service, admin: Stubs, tmp_path: Path) -> None:
    """The log begins with the first event that is young enough, and says what was pruned."""
    container = service.app.container
    whole = list(export_audit(container.store))
    first_kept = admin.events(actions=["AUDIT_ACTION_API_KEY_CREATED"])[0].seq
    file = tmp_path / "export"

    pruned = prune(service, file)

    assert (pruned.events, pruned.first_kept_seq) == (first_kept - 1, first_kept)
    assert file.read_text("ascii").splitlines()[:-1] == whole[: pruned.events]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == pruned.export_sha256
    assert file.stat().st_mode & 0o777 == 0o600
    record, kept = admin.events(account_id="-")
    assert kept.seq == first_kept
    assert {one.field: one.after for one in record.changes} == {
        "first_kept_seq": str(first_kept),
        "events_before": record.changes[1].after,
        "export_sha256": pruned.export_sha256,
    }
    report = verify(service)
    assert (report.broken_seq, report.events, report.head_seq) == (None, 2, first_kept + 1)
    assert findings_of(service) == []


def test_exports_follow_each_other(service: Service, clock: FakeClock, tmp_path: Path) -> None:
    """The base of one is the head of the one before: together they are the whole log."""
    prune(service, tmp_path / "first")
    clock.advance(DAY)
    service.admin.create_key()
    prune(service, tmp_path / "second")
    first, second = lines_of(tmp_path / "first"), lines_of(tmp_path / "second")
    assert second[0]["base"] == first[-1]["head"]
    container = service.app.container
    rest = list(export_audit(container.store))
    assert json.loads(rest[0])["base"] == second[-1]["head"]
    seqs = [one["seq"] for one in (*first, *second, *map(json.loads, rest)) if "seq" in one]
    assert seqs == list(range(1, len(seqs) + 1))


def test_the_base_vouches_for_rows_whose_events_are_gone(service: Service, tmp_path: Path) -> None:
    """Each account, user, key and pepper has its digest there, and so have keys of a cascade."""
    container = service.app.container
    digests = AuditDigests(container.keyring.audit_key)
    with container.store.read() as reader:
        records = reader.audit_chain(0, 1000)
    prune(service, tmp_path / "export")
    expected = {}
    for record in records[:-1]:
        parts = split_digests(record.target_digest)
        expected[record.target_type, record.target_id] = parts[0]
        if record.action == AuditAction.USER_DELETED:
            expected[0, record.target_id] = parts[1]
    with container.store.read() as reader:
        found = {(row.kind, row.id): row for row in reader.base_rows((-1, ""), 1000)}
        base = reader.audit_base()
        first_key = reader.covered_row(Subject(AuditTargetType.API_KEY, service.admin_key_id))
    assert expected.items() <= {key: row.digest for key, row in found.items()}.items()
    assert first_key is not None
    assert found[int(AuditTargetType.API_KEY), service.admin_key_id].digest == digests.row(
        first_key
    )
    assert base is not None
    total = sum(map(digests.base_row, found.values()))
    assert base == digests.base(base.seq, base.hash, total)


@pytest.mark.parametrize("batches", [1, 2])
def test_a_run_that_is_broken_off_can_be_repeated(
    service: Service, clock: FakeClock, tmp_path: Path, batches: int
) -> None:
    """The log is whole between any two transactions, and the next run exports what is left."""
    write_many(service.app.container, MANY)
    clock.advance(DAY)
    service.admin.create_key()
    with pytest.raises(BrokenOffError):
        prune(service, tmp_path / "first", stop_at=batches * PRUNE_BATCH)
    assert verify(service).broken_seq is None
    assert findings_of(service) == []
    pruned = prune(service, tmp_path / "second")
    assert verify(service).broken_seq is None
    assert lines_of(tmp_path / "second")[0]["base"]["seq"] == batches * PRUNE_BATCH  # type: ignore[index]
    assert pruned.events == MANY + 9 - batches * PRUNE_BATCH
    newest, before, *_ = service.admin.events()
    assert int(newest.action) == int(before.action) == AuditAction.AUDIT_PRUNED


def test_nothing_old_is_nothing_done(service: Service, admin: Stubs, tmp_path: Path) -> None:
    """No file, no event; and the last event stays, however old it is."""
    before = admin.events(account_id="-")
    assert prune(service, tmp_path / "export", age=2 * DAY).events == 0
    assert admin.events(account_id="-") == before
    assert not (tmp_path / "export").exists()
    assert prune(service, tmp_path / "all", age=-DAY).first_kept_seq == before[0].seq
    assert verify(service).broken_seq is None


def test_a_file_that_exists_is_not_touched(service: Service, admin: Stubs, tmp_path: Path) -> None:
    """Nor is the log."""
    file = tmp_path / "export"
    file.write_text("precious", "ascii")
    before = admin.events(account_id="-")
    with pytest.raises(LocalError, match="File exists"):
        prune(service, file)
    assert file.read_text("ascii") == "precious"
    assert admin.events(account_id="-") == before


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_events SET peer = 'x' WHERE seq = 3",
        "DELETE FROM audit_events WHERE seq = 3",
        "DELETE FROM audit_events WHERE seq = 1",
    ],
)
def test_a_log_that_was_altered_is_not_pruned(
    service: Service, tmp_path: Path, tampering: str
) -> None:
    """Pruning would take the evidence away; the export is removed again."""
    execute(service, tampering)
    with pytest.raises(LocalError, match=r"event \d of the audit log is missing or was altered"):
        prune(service, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    with service.app.container.store.read() as reader:
        assert reader.audit_base() is None


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit_base SET seq = seq + 1",
        "UPDATE audit_base SET rows = zeroblob(32)",
        "UPDATE audit_base SET mac = zeroblob(32)",
        "DELETE FROM audit_base",
    ],
)
def test_a_base_that_was_altered_is_noticed(
    service: Service, clock: FakeClock, tmp_path: Path, tampering: str
) -> None:
    """Nobody without the audit key can cut off the beginning of the log."""
    prune(service, tmp_path / "export")
    execute(service, tampering)
    assert verify(service).broken_seq is not None
    clock.advance(DAY)
    service.admin.create_key()
    with pytest.raises(LocalError, match="altered"):
        prune(service, tmp_path / "again")


TAMPERED_ROWS = {
    "UPDATE api_keys SET revoke_time = NULL WHERE name = 'revoked'": "key .* is not as event",
    "UPDATE users SET role = 2 WHERE delete_time IS NULL": "user .* is not as event",
    "UPDATE api_keys SET name = 'x' WHERE revocation_reason = 5": "keys that were revoked with",
    "DELETE FROM api_keys WHERE revocation_reason = 5": "keys that were revoked with",
    "DELETE FROM api_keys WHERE name = 'revoked'": "key .* is gone; event .*, which was pruned",
    "UPDATE audit_base_rows SET digest = zeroblob(32) WHERE kind = 4": "was altered",
    "DELETE FROM audit_base_rows WHERE kind = 0": "no event says so",
}


@pytest.mark.parametrize("tampering", sorted(TAMPERED_ROWS))
def test_rows_whose_events_are_gone_are_compared_all_the_same(
    service: Service, tmp_path: Path, tampering: str
) -> None:
    """What `check` could see before pruning it sees afterwards."""
    prune(service, tmp_path / "export")
    assert findings_of(service) == []
    execute(service, tampering)
    assert any(re.search(TAMPERED_ROWS[tampering], one) for one in findings_of(service))


def execute(service: Service, statement: str) -> None:
    """Execute a statement behind the service's back."""
    connection = dbapi.connect(str(service.data_dir.database), isolation_level=None)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute(statement)
    connection.close()


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the installation of the real server lies."""
    return tmp_path / "real"


@pytest.fixture
def ids(data: Path) -> dict[str, str]:
    """The installation's ids and first token."""
    return init(data)


@pytest.fixture
def server(data: Path, ids: dict[str, str]) -> Iterator[ServerProcess]:
    """A running server with some history."""
    with serving(data) as process:
        for _ in range(3):
            process.stubs(ids["token"]).create_key()
        yield process


def test_the_command_prunes_beside_a_running_server(
    data: Path, ids: dict[str, str], server: ServerProcess, tmp_path: Path
) -> None:
    """The server goes on writing the same log, which verifies and is restored from a backup."""
    where = ("--data-dir", str(data))
    export = tmp_path / "export"
    pruned = answer("audit", "prune", *where, "--before", "2100-01-01", "--export", str(export))
    assert (pruned["events"], pruned["first_kept_seq"]) == (3, 4)
    admin = server.stubs(ids["token"])
    assert admin.create_key().token
    assert [one.seq for one in admin.events()] == [6, 5, 4]
    assert answer("audit", "verify", *where)["broken_seq"] is None
    head = json.loads(command("audit", "export", *where).stdout.splitlines()[-1])["head"]
    answer("audit", "verify", *where, "--expect", f"{head['seq']}:{head['hash']}")
    answer("backup", str(tmp_path / "backup"), *where)
    answer("restore", str(tmp_path / "backup"), "--data-dir", str(tmp_path / "restored"))
    restored = answer("audit", "verify", "--data-dir", str(tmp_path / "restored"))
    assert (restored["broken_seq"], restored["events"]) == (None, 4)


def has_base(data: Path) -> bool:
    """Return whether the first batch of a run is committed."""
    connection = dbapi.connect(str(data / "keybearer.db"))
    try:
        return bool(connection.execute("SELECT count(*) FROM audit_base").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize("moment", ["exporting", "pruning"])
def test_a_killed_command_leaves_a_whole_log(
    data: Path, ids: dict[str, str], tmp_path: Path, moment: str
) -> None:
    """SIGKILL at any time; what is left verifies, and running it again prunes the rest."""
    assert ids
    container = open_container(DataDir(data), SystemClock(), SystemEntropy())
    write_many(container, MANY)
    container.close()
    where = ("audit", "prune", "--data-dir", str(data), "--before", "2100-01-01")
    export = tmp_path / "export"
    killed = subprocess.Popen(
        [sys.executable, *SERVER, *where, "--export", str(export)], env=environment()
    )
    while killed.poll() is None and not (
        export.exists() if moment == "exporting" else has_base(data)
    ):
        continue
    killed.kill()
    killed.wait()
    checked = answer("check", "--data-dir", str(data))
    assert checked["findings"] == []
    again = answer(*where, "--export", str(tmp_path / "again"))
    assert again["first_kept_seq"] > MANY
    assert answer("check", "--data-dir", str(data))["findings"] == []


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "give --before TIME or --older-than DURATION"),
        (("--before", "yesterday"), "--before: 'yesterday' is no time"),
        (("--older-than", "long"), "--older-than: 'long' is not a duration"),
    ],
)
def test_the_command_says_what_is_missing(
    data: Path, ids: dict[str, str], tmp_path: Path, flags: tuple[str, ...], why: str
) -> None:
    """In one line, and nothing is done."""
    assert ids
    export = tmp_path / "export"
    done = command("audit", "prune", "--data-dir", str(data), "--export", str(export), *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert not export.exists()


def test_nothing_to_prune_is_no_failure(data: Path, ids: dict[str, str], tmp_path: Path) -> None:
    """A timer finds exit code 0, and no file."""
    assert ids
    export = tmp_path / "export"
    where = ("audit", "prune", "--data-dir", str(data), "--older-than", "1d")
    answered = answer(*where, "--export", str(export))
    assert (answered["events"], answered["first_kept_seq"], answered["file"]) == (0, 1, None)
    assert not export.exists()


def test_the_environment_says_how_long_events_are_kept(
    data: Path, ids: dict[str, str], tmp_path: Path
) -> None:
    """So that a timer needs no more than the name of a file."""
    assert ids
    done = command(
        *("audit", "prune", "--data-dir", str(data), "--export", str(tmp_path / "export")),
        KEYBEARER_KEEP_AUDIT_EVENTS="30d",
    )
    assert "No event is older than" in done.stdout
