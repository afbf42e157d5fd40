"""Databases that earlier versions wrote: opened, upgraded, restored, with all that they had.

`schema_001` is what version 0.1.0 wrote with its first schema. `make_old_schema.py` says how such a
directory is made; every one that is kept is opened here.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, NO_HTTP, Service, make_app, refused
from keybearer_service.container import open_container, open_store
from keybearer_service.domain.clock import DAY, Micros, after
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline import backups
from keybearer_service.offline.audit import check, verify_audit
from keybearer_service.offline.pruning import prune_audit
from keybearer_service.storage import StoreUnusableError, dbapi
from storage.make_old_schema import token_of, told

KEPT = sorted(Path(__file__).parent.glob("schema_*"))
MOVES = {"last_used_time", "use_count"}
"""What the questions of a test change in the key that asks them."""


@dataclass
class Old:
    """A copy of what an earlier version left behind."""

    data_dir: DataDir
    facts: dict[str, Any]
    clock: FakeClock = field(init=False)
    """Stands where that version's clock stood at its end."""

    def __post_init__(self) -> None:
        self.clock = FakeClock(Micros(self.facts["time"]))

    def token(self, name: str) -> str:
        return token_of(self.facts["tokens"][name])


def copied(kept: Path, target: Path) -> Old:
    """Copy an installation with the modes that its files must have."""
    target.mkdir(mode=0o700)
    (target / "peppers").mkdir(mode=0o700)
    for file in (kept / "keybearer.db", *(kept / "peppers").iterdir()):
        copy = target / file.relative_to(kept)
        shutil.copyfile(file, copy)
        copy.chmod(0o600)
    return Old(DataDir(target), json.loads((kept / "facts.json").read_text()))


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    """What an earlier version left behind, for each that is kept."""
    return copied(request.param, tmp_path / "data")


@contextmanager
def serving(old: Old, data_dir: DataDir, entropy: SeededEntropy) -> Iterator[Service]:
    """Serve an installation with the code of today, at the time of the old one's end."""
    app = make_app(data_dir, old.clock, entropy, listener=ANY_PORT, http=NO_HTTP)
    app.start()
    service = Service(
        app=app,
        data_dir=data_dir,
        admin_token=old.token("admin"),
        account_id=old.facts["account_id"],
        admin_user_id="",
        admin_key_id=old.facts["admin_key_id"],
    )
    try:
        yield service
    finally:
        service.close()


def assert_nothing_is_missing(old: Old, service: Service) -> None:
    """Compare what the service says with what the earlier version said, field by field."""
    now = told(service)
    for kind in ("accounts", "users", "keys", "events"):
        before = {one["id"]: one for one in old.facts[kind]}
        after = {one["id"]: one for one in now[kind]}
        if kind == "keys":
            for keys in (before, after):
                for name in MOVES:
                    keys[old.facts["admin_key_id"]].pop(name, None)
        for its_id, one in before.items():
            kept = {name: value for name, value in after[its_id].items() if name in one}
            assert kept == one


def test_an_upgrade_keeps_everything(old: Old, entropy: SeededEntropy) -> None:
    """Every account, user, key and event is what it was, in each of its fields."""
    with serving(old, old.data_dir, entropy) as service:
        assert_nothing_is_missing(old, service)
        now = told(service)
    for kind in ("accounts", "users", "keys", "events"):
        assert len(now[kind]) == len(old.facts[kind])


def test_an_upgrade_keeps_the_history(old: Old, entropy: SeededEntropy) -> None:
    """Watchers resume: the epoch and the revision are what they were, and so is the audit head."""
    container = open_container(old.data_dir, old.clock, entropy)
    try:
        with container.store.read() as reader:
            seq, digest = reader.audit_head()
            installation = reader.installation()
    finally:
        container.close()
    assert installation.epoch == old.facts["epoch"]
    assert installation.revision == old.facts["revision"]
    assert f"{seq}:{digest.hex()}" == old.facts["head"]


def test_tokens_of_before_an_upgrade_are_judged_as_before(old: Old, entropy: SeededEntropy) -> None:
    """VALID, EXPIRED, REVOKED, DISABLED and NOT_FOUND, current and overlapping secrets."""
    with serving(old, old.data_dir, entropy) as service:
        seen = {
            name: service.admin.outcome(old.token(name), account_id="-")
            for name in old.facts["tokens"]
        }
    assert seen == {name: one["outcome"] for name, one in old.facts["tokens"].items()}


def test_the_audit_chain_of_before_an_upgrade_verifies(old: Old, entropy: SeededEntropy) -> None:
    """From its first event to the head of before, and `check` finds nothing."""
    seq, _, digest = old.facts["head"].partition(":")
    container = open_container(old.data_dir, old.clock, entropy)
    try:
        audit_key = container.keyring.audit_key
        checked = check(container.store, audit_key)
        report, _ = verify_audit(container.store, audit_key, (int(seq), bytes.fromhex(digest)))
    finally:
        container.close()
    assert checked.findings == []
    assert not checked.has_head
    assert checked.not_compared > 0
    assert report.broken_seq is None
    assert report.events == int(seq)


def test_a_request_of_before_an_upgrade_can_be_repeated(old: Old, entropy: SeededEntropy) -> None:
    """A token that was lost with its answer is issued again; one that was used never is."""
    requests = old.facts["requests"]
    with serving(old, old.data_dir, entropy) as service:
        admin = service.admin
        again = admin.create_key(**requests["lost"], attempt=1)
        assert again.replayed
        assert admin.outcome(again.token) == "VALID"
        refusal = refused(lambda: admin.create_key(**requests["used"], attempt=1))
    assert refusal.reason == "REPLAY_IMPOSSIBLE"


def test_an_upgrade_runs_once(old: Old, entropy: SeededEntropy) -> None:
    """What was upgraded is opened again, and still serves everything."""
    open_store(old.data_dir.database).close()
    with serving(old, old.data_dir, entropy) as service:
        assert_nothing_is_missing(old, service)


def test_a_backup_of_before_an_upgrade_is_restored(
    old: Old, tmp_path: Path, entropy: SeededEntropy
) -> None:
    """By the program of today, which upgrades the copy and leaves the backup as it was."""
    backup = tmp_path / "backup.db"
    shutil.copyfile(old.data_dir.database, backup)
    connection = dbapi.connect(str(backup), isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")  # as `backup` leaves it
    connection.close()
    before = backup.read_bytes()
    restored = DataDir(tmp_path / "restored")
    backups.restore(
        restored,
        backup,
        old.data_dir.peppers,
        open_file=open_store,
        clock=old.clock,
        entropy=entropy,
    )
    assert backup.read_bytes() == before
    with serving(old, restored, entropy) as service:
        assert_nothing_is_missing(old, service)
        assert service.admin.outcome(old.token("new-of-rotation")) == "VALID"


def test_a_newer_schema_is_refused_in_one_line(old: Old) -> None:
    """After a later version has opened the database, this one names it and changes nothing."""
    open_store(old.data_dir.database).close()
    connection = dbapi.connect(str(old.data_dir.database))
    with connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('keybearer', 'm999_from_the_future', '')"
        )
    connection.close()
    before = old.data_dir.database.read_bytes()
    with pytest.raises(StoreUnusableError, match=r"newer version.*m999_from_the_future") as error:
        open_store(old.data_dir.database)
    assert "\n" not in str(error.value)
    assert old.data_dir.database.read_bytes() == before


def test_a_cascade_of_before_an_upgrade_is_found_by_its_keys(
    old: Old, entropy: SeededEntropy
) -> None:
    """Each key that the event of a deletion lists finds that event."""
    listed = {
        key_id: event["id"]
        for event in old.facts["events"]
        for change in event.get("changes", ())
        if change["field"] == "revoked_key_ids"
        for key_id in change["after"].split(",")
    }
    assert listed
    with serving(old, old.data_dir, entropy) as service:
        found = {
            key_id: [one.id for one in service.admin.events(target_id=key_id, account_id="-")]
            for key_id in listed
        }
    assert all(event_id in found[key_id] for key_id, event_id in listed.items())


def test_an_upgrade_counts_the_keys_that_are_there(old: Old, entropy: SeededEntropy) -> None:
    """The quota of an account counts those of before, without the revoked ones."""
    unrevoked = [
        one
        for one in old.facts["keys"]
        if one["account_id"] == old.facts["account_id"] and "revoke_time" not in one
    ]
    container = open_container(old.data_dir, old.clock, entropy)
    try:
        with container.store.read() as reader:
            counted = reader.unrevoked_key_count(old.facts["account_id"])
    finally:
        container.close()
    assert counted == len(unrevoked) > 0


def test_a_log_of_before_an_upgrade_can_be_pruned(
    old: Old, entropy: SeededEntropy, tmp_path: Path
) -> None:
    """Its events vouch for no row, and `check` says so before and after alike."""
    container = open_container(old.data_dir, old.clock, entropy)
    audit_key = container.keyring.audit_key
    try:
        before = check(container.store, audit_key)
        prune_audit(
            container.store,
            container.mutations,
            audit_key,
            after(old.clock.now(), DAY),
            tmp_path / "export",
        )
        pruned = check(container.store, audit_key)
    finally:
        container.close()
    assert before.findings == pruned.findings == []
    assert before.not_compared == pruned.not_compared + 1  # the installation has an event now
