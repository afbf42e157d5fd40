"""Pruning revoked keys: what is old goes, `check` stays well, and it can be broken off."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fakes import FakeClock, SeededEntropy
from harness import Service, refused, running
from keybearer._wire.enums import AuditAction, AuditTargetType, RevocationReason
from keybearer_service.container import Container, open_container
from keybearer_service.domain.clock import DAY, HOUR, Micros, SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.audit import check
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.key_pruning import KEY_BATCH, PrunedKeys, prune_keys
from keybearer_service.offline.pruning import prune_audit
from keybearer_service.offline.verification import CHAIN_BATCH
from keybearer_service.storage import dbapi
from reliability.processes import SERVER, answer, command, environment, init, serving
from samples import EVERYWHERE, sample_id

MANY = 2 * KEY_BATCH + 100
PRUNED = "AUDIT_ACTION_API_KEYS_PRUNED"


class BrokenOffError(Exception):
    """Stands for a command that is killed."""


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service."""
    with running(tmp_path / "data", clock, entropy) as running_service:
        yield running_service


def prune(
    service: Service, *, age: int = HOUR, export: Path | None = None, stop_at: int = 0
) -> PrunedKeys:
    """Prune keys that were revoked longer ago; be killed once so many are gone."""

    def on_batch(keys: int) -> None:
        if keys == stop_at:
            raise BrokenOffError

    container = service.app.container
    before = Micros(container.clock.now() - age)
    return prune_keys(
        container.store,
        container.mutations,
        container.keyring.audit_key,
        before,
        export,
        on_batch=on_batch,
    )


def prune_log(service: Service, file: Path, *, age: int = HOUR) -> None:
    """Prune events that are older."""
    container = service.app.container
    before = Micros(container.clock.now() - age)
    prune_audit(container.store, container.mutations, container.keyring.audit_key, before, file)


def findings_of(service: Service) -> list[str]:
    """Return what `check` finds."""
    container = service.app.container
    return list(check(container.store, container.keyring.audit_key).findings)


def execute(service: Service, statement: str, *values: object) -> None:
    """Execute a statement behind the service's back."""
    with closing(dbapi.connect(str(service.data_dir.database), isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement, values)


def key_ids(service: Service) -> set[str]:
    """Return the ids of the keys that are stored."""
    with service.app.container.store.read() as reader:
        rows = reader.covered_rows("api_keys", "", 10 * MANY)
    return {str(row.columns["id"]) for row in rows}


def base_keys(service: Service) -> set[str]:
    """Return the keys that the base of the log vouches for."""
    with service.app.container.store.read() as reader:
        rows = reader.base_rows((-1, ""), 10 * MANY)
    return {row.id for row in rows if row.kind == AuditTargetType.API_KEY}


def revoked_key(service: Service) -> str:
    """Make a key and revoke it."""
    key_id = service.admin.create_key(name="revoked").api_key.id
    service.admin.revoke(key_id)
    return key_id


def add_many(container: Container, owner_id: str, *, revoked: bool) -> set[str]:
    """Make many keys of a user, with their events, in one transaction."""
    account_id = container.installation.operator_account_id
    with container.mutations.begin_local() as mutation:
        tx = mutation.tx
        first = tx.covered_rows("api_keys", "", 1)[0].columns["id"]
        sample = tx.api_key(EVERYWHERE, str(first))
        assert sample is not None
        secret, _ = tx.secrets_of(sample.id)
        ids = {sample_id(f"many{number:06}") for number in range(MANY)}
        for key_id in sorted(ids):
            key = replace(
                sample,
                id=key_id,
                owner_id=owner_id,
                created_by=owner_id,
                create_time=mutation.now,
                update_time=mutation.now,
                revoke_time=mutation.now if revoked else None,
                revocation_reason=RevocationReason.LOST if revoked else None,
            )
            tx.insert_api_key(key, secret)
            mutation.record(
                AuditAction.API_KEY_CREATED,
                account_id=account_id,
                target_type=AuditTargetType.API_KEY,
                target_id=key_id,
            )
    return ids


def test_what_was_revoked_long_ago_is_gone(service: Service, clock: FakeClock) -> None:
    """Nothing else: no key that lives, is expired, or was revoked lately."""
    admin = service.admin
    tenant = service.tenant()
    old = admin.create_key(name="old")
    foreign = tenant.stubs.create_key().api_key.id
    expired = admin.create_key(ttl={"seconds": 3600}).api_key.id
    admin.revoke(old.api_key.id)
    tenant.stubs.revoke(foreign)
    clock.advance(2 * DAY)
    young = revoked_key(service)
    before = key_ids(service)

    assert prune(service, age=DAY) == PrunedKeys(keys=2, left=0)

    assert before - key_ids(service) == {old.api_key.id, foreign}
    assert {young, expired} < key_ids(service)
    assert admin.outcome(old.token) == "NOT_FOUND"
    assert refused(lambda: admin.key(old.api_key.id)).code.name == "NOT_FOUND"
    assert findings_of(service) == []


def test_the_log_says_which_keys_are_gone(service: Service, clock: FakeClock) -> None:
    """Each account sees its own, and a key's id finds the event."""
    tenant = service.tenant()
    key_id = tenant.stubs.create_key().api_key.id
    tenant.stubs.revoke(key_id)
    own = revoked_key(service)
    clock.advance(DAY)
    prune(service)
    for stubs, pruned in ((tenant.stubs, key_id), (service.admin, own)):
        (event,) = stubs.events(actions=[PRUNED])
        assert event == stubs.events(target_id=pruned)[0]
        changes = {one.field: one.after for one in event.changes}
        assert changes["pruned_key_ids"] == pruned
        assert changes["pruned_key_ids_count"] == "1"


def test_keys_of_a_deleted_user_stay_as_long_as_the_event_does(
    service: Service, clock: FakeClock, tmp_path: Path
) -> None:
    """Afterwards they go, and so does what the base of the log says of them."""
    user = service.admin.create_user("gone@example.com")
    ids = {service.admin.create_key(owner_id=user.id).api_key.id for _ in range(3)}
    service.admin.delete_user(user.id)
    clock.advance(DAY)
    service.admin.create_key()
    assert prune(service) == PrunedKeys(keys=0, left=3)
    prune_log(service, tmp_path / "events")
    assert prune(service) == PrunedKeys(keys=3, left=0)
    assert not ids & key_ids(service)
    assert findings_of(service) == []


@pytest.mark.parametrize("is_log_pruned", [False, True])
def test_a_key_that_was_deleted_by_sql_is_named(
    service: Service, clock: FakeClock, tmp_path: Path, *, is_log_pruned: bool
) -> None:
    """Even when the table that finds events says that the event about pruned keys is about it."""
    pruned = revoked_key(service)
    clock.advance(2 * DAY)
    kept = revoked_key(service)
    clock.advance(DAY)
    service.admin.create_key()
    if is_log_pruned:
        prune_log(service, tmp_path / "events")
    prune(service, age=2 * DAY)
    assert findings_of(service) == []
    execute(service, "DELETE FROM api_keys WHERE id = ?", kept)
    execute(
        service,
        "INSERT INTO audit_event_subjects SELECT ?, seq FROM audit_event_subjects"
        " WHERE subject_id = ?",
        kept,
        pruned,
    )
    (finding,) = findings_of(service)
    assert finding.startswith(f"key {kept} is gone")


def test_a_pruned_key_that_is_put_back_is_named(service: Service, clock: FakeClock) -> None:
    """Its row fits its last event, and is not pruned again."""
    key_id = revoked_key(service)
    clock.advance(DAY)
    columns = ", ".join(
        name for name in columns_of(service) if name not in {"expire_order", "last_used_order"}
    )
    execute(service, f"CREATE TABLE apart AS SELECT {columns} FROM api_keys")  # noqa: S608 - names of the schema
    prune(service)
    execute(
        service,
        f"INSERT INTO api_keys ({columns}) SELECT {columns} FROM apart WHERE id = ?",  # noqa: S608 - names of the schema
        key_id,
    )
    execute(service, "DROP TABLE apart")
    finding = f"key {key_id} was pruned, and is there again"
    assert findings_of(service) == [finding]
    with pytest.raises(LocalError, match=finding):
        prune(service)


def columns_of(service: Service) -> list[str]:
    """Return the columns of the table of keys."""
    with closing(dbapi.connect(str(service.data_dir.database))) as connection:
        found = connection.execute("SELECT name FROM pragma_table_info('api_keys')").fetchall()
    return [row[0] for row in found]


@pytest.mark.parametrize(
    ("tampering", "why"),
    [
        ("UPDATE api_keys SET revocation_note = 'x' WHERE name = 'revoked'", "key .* is not as"),
        ("UPDATE api_keys SET name = 'x' WHERE revocation_reason = 5", "keys that were revoked"),
        (
            "UPDATE api_keys SET revocation_reason=5, owner_id=u.id FROM users u WHERE delete_time",
            "keys that were revoked",
        ),
        ("UPDATE audit_base SET mac = zeroblob(32)", "was altered"),
    ],
)
def test_what_was_altered_is_not_pruned(
    service: Service, clock: FakeClock, tmp_path: Path, tampering: str, why: str
) -> None:
    """Pruning would take the evidence away."""
    user = service.admin.create_user("gone@example.com")
    service.admin.create_key(owner_id=user.id)
    revoked_key(service)
    service.admin.delete_user(user.id)
    clock.advance(DAY)
    service.admin.create_key()
    prune_log(service, tmp_path / "events")
    execute(service, tampering)
    with pytest.raises(LocalError, match=why):
        prune(service)
    assert findings_of(service)


def test_pruning_the_log_takes_pruned_keys_out_of_its_base(
    service: Service, clock: FakeClock, tmp_path: Path
) -> None:
    """The events of a key first, and later the event that says that the key was pruned."""
    key_id = revoked_key(service)
    clock.advance(DAY)
    prune(service)
    clock.advance(DAY)
    service.admin.create_key()
    prune_log(service, tmp_path / "first", age=DAY + HOUR)
    assert key_id in base_keys(service)
    assert findings_of(service) == []
    prune_log(service, tmp_path / "second")
    assert key_id not in base_keys(service)
    assert findings_of(service) == []


@pytest.mark.parametrize("kind", ["alone", "with their user"])
def test_a_run_that_is_broken_off_can_be_repeated(
    service: Service, clock: FakeClock, tmp_path: Path, kind: str
) -> None:
    """All is well between any two transactions, and the next run deletes what is left."""
    user = service.admin.create_user("many@example.com")
    ids = add_many(service.app.container, user.id, revoked=kind == "alone")
    if kind != "alone":
        service.admin.delete_user(user.id)
    clock.advance(DAY)
    service.admin.create_key()
    if kind != "alone":
        prune_log(service, tmp_path / "events")
    with pytest.raises(BrokenOffError):
        prune(service, stop_at=KEY_BATCH)
    assert findings_of(service) == []
    assert len(ids & key_ids(service)) == MANY - KEY_BATCH
    assert prune(service).keys == MANY - KEY_BATCH
    assert not ids & key_ids(service)
    assert findings_of(service) == []
    listed = [
        change.after.split(",")
        for event in service.admin.events(actions=[PRUNED])
        for change in event.changes
        if change.field == "pruned_key_ids"
    ]
    assert sorted(map(len, listed)) == [100, KEY_BATCH, KEY_BATCH]
    assert {one for some in listed for one in some} == ids


@pytest.mark.parametrize("moment", ["audit events", "keys"])
def test_a_check_that_is_under_way_bears_with_pruning(
    service: Service, clock: FakeClock, tmp_path: Path, moment: str
) -> None:
    """Keys that go after the check has begun, alone or with their user, are no findings."""
    container = service.app.container
    user = service.admin.create_user("many@example.com")
    add_many(container, user.id, revoked=False)
    service.admin.delete_user(user.id)
    clock.advance(DAY)
    service.admin.create_key()
    prune_log(service, tmp_path / "events")
    add_events(container, CHAIN_BATCH)
    revoked_key(service)
    clock.advance(DAY)
    pruned: list[PrunedKeys] = []

    def progress(what: str, _done: int, _total: int) -> None:
        if what == moment and not pruned:
            pruned.append(prune(service))

    report = check(container.store, container.keyring.audit_key, progress=progress)
    assert pruned == [PrunedKeys(keys=MANY + 1, left=0)]
    assert report.findings == []
    assert findings_of(service) == []


def add_events(container: Container, count: int) -> None:
    """Write many events, in one transaction."""
    account_id = container.installation.operator_account_id
    with container.mutations.begin_local() as mutation:
        for _ in range(count):
            mutation.record(
                AuditAction.ACCOUNT_ENABLED,
                account_id=account_id,
                target_type=AuditTargetType.ACCOUNT,
                target_id=account_id,
            )


def test_the_export_holds_the_keys_without_their_secrets(
    service: Service, clock: FakeClock, tmp_path: Path
) -> None:
    """A new file for its owner alone; one that exists is not touched, and nothing is deleted."""
    key_id = revoked_key(service)
    clock.advance(DAY)
    file = tmp_path / "export"
    file.write_text("precious", "ascii")
    with pytest.raises(LocalError, match="File exists"):
        prune(service, export=file)
    assert file.read_text("ascii") == "precious"
    assert key_id in key_ids(service)
    file.unlink()
    prune(service, export=file)
    (line,) = file.read_text("ascii").splitlines()
    key = json.loads(line)
    assert (key["id"], key["name"]) == (key_id, "revoked")
    assert not {"digest", "old_digest"} & key.keys()
    assert file.stat().st_mode & 0o777 == 0o600


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the installation of the real server lies."""
    return tmp_path / "real"


@pytest.fixture
def ids(data: Path) -> dict[str, str]:
    """The installation's ids and first token."""
    return init(data)


def test_the_command_prunes_beside_a_running_server(
    data: Path, ids: dict[str, str], tmp_path: Path
) -> None:
    """The server finds the key no more, and all is well there and in a backup."""
    where = ("--data-dir", str(data))
    with serving(data) as server:
        admin = server.stubs(ids["token"])
        made = admin.create_key()
        admin.revoke(made.api_key.id)
        assert admin.outcome(made.token) == "REVOKED"
        pruned = answer("keys", "prune", *where, "--revoked-before", "2100-01-01")
        assert pruned == {"keys": 1, "left": 0, "file": None}
        assert admin.outcome(made.token) == "NOT_FOUND"
        assert answer("check", *where)["findings"] == []
        answer("backup", str(tmp_path / "backup"), *where)
    answer("restore", str(tmp_path / "backup"), "--data-dir", str(tmp_path / "restored"))
    assert answer("check", "--data-dir", str(tmp_path / "restored"))["findings"] == []


def count_keys(data: Path) -> int:
    """Return how many keys are stored."""
    with closing(dbapi.connect(str(data / "keybearer.db"))) as connection:
        return int(connection.execute("SELECT count(*) FROM api_keys").fetchone()[0])


def test_a_killed_command_leaves_all_well(data: Path, ids: dict[str, str]) -> None:
    """SIGKILL once a batch is gone; running it again deletes the rest."""
    container = open_container(DataDir(data), SystemClock(), SystemEntropy())
    add_many(container, ids["user_id"], revoked=True)
    container.close()
    where = ("keys", "prune", "--data-dir", str(data), "--revoked-before", "2100-01-01")
    killed = subprocess.Popen([sys.executable, *SERVER, *where], env=environment())
    while killed.poll() is None and count_keys(data) > MANY:
        """Look again."""
    killed.kill()
    killed.wait()
    assert answer("check", "--data-dir", str(data))["findings"] == []
    command(*where)
    assert count_keys(data) == 1
    assert answer("check", "--data-dir", str(data))["findings"] == []


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "give --revoked-before TIME or --older-than DURATION"),
        (("--revoked-before", "yesterday"), "--revoked-before: 'yesterday' is no time"),
        (("--older-than", "long"), "--older-than: 'long' is not a duration"),
    ],
)
def test_the_command_says_what_is_missing(
    data: Path, ids: dict[str, str], flags: tuple[str, ...], why: str
) -> None:
    """In one line, and nothing is done."""
    assert ids
    done = command("keys", "prune", "--data-dir", str(data), *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(why, done.stderr)
    assert done.stderr.count("\n") == 1


def test_nothing_to_prune_is_no_failure(data: Path, ids: dict[str, str], tmp_path: Path) -> None:
    """A timer finds exit code 0, and no file."""
    assert ids
    export = tmp_path / "export"
    where = ("keys", "prune", "--data-dir", str(data), "--older-than", "1d")
    answered = answer(*where, "--export", str(export))
    assert answered == {"keys": 0, "left": 0, "file": None}
    assert not export.exists()


def test_the_environment_says_how_long_keys_are_kept(data: Path, ids: dict[str, str]) -> None:
    """So that a timer needs no flag."""
    assert ids
    done = command("keys", "prune", "--data-dir", str(data), KEYBEARER_KEEP_REVOKED_KEYS="30d")
    assert "No key that may go was revoked before" in done.stdout
