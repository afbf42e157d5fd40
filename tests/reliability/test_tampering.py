"""Whoever writes to the database past keybearer is found out by `check`."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes import FakeClock, SeededEntropy
from harness import Service, running
from keybearer.v1 import account_service_pb2
from keybearer_service.container import open_container
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.audit import CheckReport, check
from keybearer_service.offline.peppers import add_pepper
from keybearer_service.storage import dbapi


@dataclass
class Scene:
    """An installation with something of every kind, at rest."""

    path: Path
    operator_account: str
    ids: Mapping[str, str]
    head: tuple[int, bytes]


def fill(service: Service) -> dict[str, str]:
    """Make users, keys and accounts; delete, revoke, rotate and disable some."""
    admin = service.admin
    admin.create_user("other-admin@example.com")
    user = admin.create_user("user@example.com", role="ROLE_DEVELOPER", display_name="User")
    other = admin.create_user("other@example.com", role="ROLE_DEVELOPER")
    leaver = admin.create_user("leaver@example.com", role="ROLE_ADMIN")
    leaver_token = admin.create_key(owner_id=leaver.id, role="ROLE_ADMIN").token
    made = service.as_token(leaver_token).create_key(owner_id=user.id).api_key.id
    owned = admin.create_key(owner_id=leaver.id).api_key.id
    admin.delete_user(leaver.id, revoke_created=True)
    key = admin.create_key(owner_id=user.id, scopes=["a"], ttl=timedelta(days=1)).api_key.id
    rotated = admin.create_key(owner_id=user.id).api_key.id
    admin.rotate(rotated, overlap=timedelta(days=1))
    disabled = admin.create_key(owner_id=user.id).api_key.id
    admin.disable_key(disabled)
    revoked = admin.create_key(owner_id=user.id).api_key.id
    admin.revoke(revoked)
    tenant = service.tenant()
    idle = service.tenant("idle")
    admin.accounts.DisableAccount(account_service_pb2.DisableAccountRequest(id=idle.account_id))
    return {
        "user": user.id,
        "other": other.id,
        "leaver": leaver.id,
        "made": made,
        "owned": owned,
        "key": key,
        "rotated": rotated,
        "disabled": disabled,
        "revoked": revoked,
        "account": tenant.account_id,
        "idle": idle.account_id,
        "tenant_user": tenant.user_id,
        "tenant_key": tenant.key_id,
        "admin": admin.who_am_i().owner_id,
        "admin_key": admin.who_am_i().key_id,
    }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The installation that each test alters a copy of."""
    path = tmp_path_factory.mktemp("tampering") / "data"
    with running(path, FakeClock(), SeededEntropy(7)) as service:
        ids = fill(service)
        installation = service.app.container.installation
        with service.app.container.store.read() as reader:
            head = reader.audit_head()
    return Scene(path, installation.operator_account_id, ids, head)


@pytest.fixture
def data(scene: Scene, tmp_path: Path) -> Path:
    """A copy of the installation."""
    return Path(shutil.copytree(scene.path, tmp_path / "data"))


def execute(data: Path, *statements: str) -> None:
    """Alter the database as somebody with the file does."""
    connection = dbapi.connect(str(data / "keybearer.db"), isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def checked(data: Path, expect: tuple[int, bytes] | None = None) -> CheckReport:
    """Check an installation."""
    container = open_container(DataDir(data), FakeClock(), SeededEntropy(8))
    try:
        return check(container.store, container.keyring.audit_key, expect)
    finally:
        container.close()


def tampering(finding: str, *statements: str) -> tuple[str, Sequence[str]]:
    """Return what `check` says of statements, in which an id stands in braces under its name."""
    return finding, statements


TAMPERINGS: Mapping[str, tuple[str, Sequence[str]]] = {
    "a revocation undone": tampering(
        "key {revoked} is not as event",
        "UPDATE api_keys SET revoke_time = NULL WHERE id = '{revoked}'",
    ),
    "a revocation undone without a trace": tampering(
        "key {revoked} is not as event",
        "UPDATE api_keys SET revoke_time = NULL, revoked_by = '', revocation_reason = "
        "NULL, revocation_note = '', update_time = create_time, row_version = 1 WHERE "
        "id = '{revoked}'",
    ),
    "a revocation with its owner undone without a trace": tampering(
        "key {owned} is not revoked, and its owner {leaver} is deleted",
        "UPDATE api_keys SET revoke_time = NULL, revoked_by = '', revocation_reason = "
        "NULL, update_time = create_time, row_version = 1 WHERE id = '{owned}'",
    ),
    "a revocation with its creator undone without a trace": tampering(
        "the keys that were revoked with user {leaver} are not as event 9 left them ({made})",
        "UPDATE api_keys SET revoke_time = NULL, revoked_by = '', revocation_reason = "
        "NULL, update_time = create_time, row_version = 1 WHERE id = '{made}'",
    ),
    "a key that was revoked with its owner altered": tampering(
        "the keys that were revoked with user {leaver} are not as event 9 left them",
        "UPDATE api_keys SET revoked_by = '{other}' WHERE id = '{owned}'",
    ),
    "a key given out as revoked with its owner": tampering(
        "key {key} says that user {user} was deleted",
        "UPDATE api_keys SET revoke_time = 1, revocation_reason = 5 WHERE id = '{key}'",
    ),
    "a user raised": tampering(
        "user {user} is not as event",
        "UPDATE users SET role = 3 WHERE id = '{user}'",
    ),
    "a key raised": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET role = 3, scopes = '' WHERE id = '{key}'",
    ),
    "scopes widened": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET scopes = 'a *' WHERE id = '{key}'",
    ),
    "an expiry extended": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET expire_time = expire_time + 1 WHERE id = '{key}'",
    ),
    "an expiry taken away": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET expire_time = NULL WHERE id = '{key}'",
    ),
    "a key given to another user": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET owner_id = '{other}' WHERE id = '{key}'",
    ),
    "a key moved to another account": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET account_id = '{account}' WHERE id = '{key}'",
    ),
    "a key enabled": tampering(
        "key {disabled} is not as event",
        "UPDATE api_keys SET disable_time = NULL WHERE id = '{disabled}'",
    ),
    "a secret replaced by another key's": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET digest = (SELECT digest FROM api_keys WHERE id = "
        "'{admin_key}') WHERE id = '{key}'",
    ),
    "an old secret revived": tampering(
        "key {key} is not as event",
        "UPDATE api_keys SET old_digest = digest, old_pepper_id = pepper_id, "
        "old_secret_version = 1, overlap_end_time = 9000000000000000 WHERE id = "
        "'{key}'",
    ),
    "an overlap lengthened": tampering(
        "key {rotated} is not as event",
        "UPDATE api_keys SET overlap_end_time = overlap_end_time + 1 WHERE id = '{rotated}'",
    ),
    "the first key of an account altered": tampering(
        "key {tenant_key} is not as event",
        "UPDATE api_keys SET expire_time = 1 WHERE id = '{tenant_key}'",
    ),
    "the first user of an account altered": tampering(
        "user {tenant_user} is not as event",
        "UPDATE users SET display_name = 'x' WHERE id = '{tenant_user}'",
    ),
    "the first key of the installation altered": tampering(
        "key {admin_key} is not as event 1 left it",
        "UPDATE api_keys SET name = 'x' WHERE id = '{admin_key}'",
    ),
    "a deleted user revived": tampering(
        "user {leaver} is not as event",
        "UPDATE users SET delete_time = NULL WHERE id = '{leaver}'",
    ),
    "an e-mail address changed": tampering(
        "user {user} is not as event",
        "UPDATE users SET email = 'x@example.com' WHERE id = '{user}'",
    ),
    "the names of two users exchanged": tampering(
        "user {user} is not as event",
        "UPDATE users SET display_name = 'other@example.com' WHERE id = '{user}'",
    ),
    "an account enabled": tampering(
        "account {idle} is not as event",
        "UPDATE accounts SET disable_time = NULL WHERE id = '{idle}'",
    ),
    "an account made an operator's": tampering(
        "account {account} is not as event",
        "UPDATE accounts SET is_operator = 1 WHERE id = '{account}'",
    ),
    "another operator account": tampering(
        "there is no event about the installation",
        "UPDATE installation SET operator_account_id = '{account}'",
    ),
    "a retired prefix added": tampering(
        "the installation is not as event 1 left it",
        "UPDATE installation SET retired_prefixes = 'x1'",
    ),
    "a pepper altered": tampering(
        "is not as event 1 left it",
        "UPDATE peppers SET create_time = create_time + 1",
    ),
    "a user inserted": tampering(
        "user inserted00000000 was not made by keybearer: no event is about it",
        "INSERT INTO users SELECT 'inserted00000000', account_id, 'x@example.com', "
        "display_name, role, type, create_time, update_time, delete_time, row_version "
        "FROM users WHERE id = '{admin}'",
    ),
    "a key inserted": tampering(
        "key inserted00000000 was not made by keybearer: no event is about it",
        "INSERT INTO api_keys (id, account_id, owner_id, name, role, create_time, created_by,"
        " update_time, secret_create_time, digest, pepper_id) SELECT 'inserted00000000',"
        " account_id, owner_id, name, role, create_time, created_by, update_time,"
        " secret_create_time, digest, pepper_id FROM api_keys WHERE id = '{key}'",
    ),
    "an account inserted": tampering(
        "account inserted00000000 was not made by keybearer: no event is about it",
        "INSERT INTO accounts (id, name, create_time) VALUES ('inserted00000000', 'x', 1)",
    ),
    "a key deleted": tampering(
        "key {key} is gone, and events are about it",
        "DELETE FROM api_keys WHERE id = '{key}'",
    ),
    "the first key of an account deleted": tampering(
        "key {tenant_key} is gone, and events are about it",
        "DELETE FROM api_keys WHERE id = '{tenant_key}'",
    ),
    "a user deleted": tampering(
        "user {other} is gone, and events are about it",
        "DELETE FROM users WHERE id = '{other}'",
    ),
    "the end of the audit log cut off": tampering(
        "and what follows to event 19 were cut off",
        "DELETE FROM audit_events WHERE seq > (SELECT max(seq) FROM audit_events) - 2",
    ),
    "the whole audit log deleted": tampering(
        "audit: event 1 and what follows to event 19 were cut off",
        "DELETE FROM audit_events",
    ),
    "the audit log and its head deleted": tampering(
        "audit: the audit log is empty",
        "DELETE FROM audit_events",
        "DELETE FROM head",
    ),
    "an event altered": tampering(
        "audit: event 7 was altered",
        "UPDATE audit_events SET peer = '192.0.2.1' WHERE seq = 7",
    ),
    "the digest of a row altered with the row": tampering(
        "audit: event 7 was altered",
        "UPDATE audit_events SET target_digest = zeroblob(32) WHERE seq = 7",
    ),
    "an event deleted": tampering(
        "audit: event 7 is missing",
        "DELETE FROM audit_events WHERE seq = 7",
    ),
    "the last event replaced by one before it": tampering(
        "audit: event 19 was altered",
        "UPDATE audit_events SET hash = (SELECT hash FROM audit_events WHERE seq = 7) "
        "WHERE seq = (SELECT max(seq) FROM audit_events)",
    ),
    "a personal text altered": tampering(
        "audit: a personal text of event 2 is missing or was altered",
        "UPDATE personal_texts SET text = 'x@example.com' WHERE user_id = '{admin}'",
    ),
    "a personal text erased past keybearer": tampering(
        "audit: a personal text of event 2 is missing or was altered",
        "UPDATE personal_texts SET text = NULL, salt = NULL WHERE user_id = '{admin}'",
    ),
    "a personal text deleted": tampering(
        "audit: a personal text of event 2 is missing or was altered",
        "DELETE FROM personal_texts WHERE user_id = '{admin}'",
    ),
    "the head deleted": tampering(
        "audit: the head of the audit log is missing",
        "DELETE FROM head",
    ),
    "the head altered": tampering(
        "audit: the head of the audit log was altered",
        "UPDATE head SET seq = seq - 1",
    ),
    "the head of another form": tampering(
        "audit: the head of the audit log has the form 2, of a newer version",
        "UPDATE head SET version = 2",
    ),
    "the revision set back": tampering(
        "and the head says",
        "UPDATE installation SET revision = revision - 1",
        "DELETE FROM changes WHERE revision = (SELECT max(revision) FROM changes)",
    ),
    "an invalidation deleted": tampering(
        "changes are missing between the revisions",
        "DELETE FROM changes WHERE revision = 5",
    ),
    "the last invalidation deleted": tampering(
        "and the newest change is",
        "DELETE FROM changes WHERE revision = (SELECT max(revision) FROM changes)",
    ),
    "the first invalidations deleted": tampering(
        "changes before the revision 5 are missing",
        "DELETE FROM changes WHERE revision < 5",
    ),
    "a trigger planted": tampering(
        "the trigger planted is not of keybearer",
        "CREATE TRIGGER planted AFTER UPDATE ON users BEGIN UPDATE users SET role = 3 "
        "WHERE id = '{user}'; END",
    ),
}


def test_an_installation_at_rest_is_whole(scene: Scene) -> None:
    """Every row is compared with an event, and nothing is found."""
    report = checked(scene.path)
    assert report.findings == []
    assert report.not_compared == 0
    assert report.has_head
    assert (report.head_seq, report.head_hash) == scene.head
    connection = dbapi.connect(str(scene.path / "keybearer.db"))
    counts = {
        table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
        for table in ("accounts", "users", "api_keys", "peppers", "installation")
    }
    connection.close()
    assert report.compared == counts


@pytest.mark.parametrize("name", sorted(TAMPERINGS))
def test_tampering_is_named(scene: Scene, data: Path, name: str) -> None:
    """`check` names the row or the event that somebody has altered past keybearer."""
    finding, statements = TAMPERINGS[name]
    execute(data, *(one.format(**scene.ids) for one in statements))
    findings = checked(data).findings
    assert any(finding.format(**scene.ids) in one for one in findings), findings


NOT_SEEN = {
    "use counts": "UPDATE api_keys SET use_count = 7, last_used_time = 1, secret_used = 1",
    "what an invalidation is about": "UPDATE changes SET subject_id = '' WHERE revision = 5",
    "records of requests": "DELETE FROM request_records",
}


@pytest.mark.parametrize("name", sorted(NOT_SEEN))
def test_what_the_documents_call_unseen_is_not_seen(data: Path, name: str) -> None:
    """What `check` says it cannot see, so that nobody relies on it."""
    execute(data, NOT_SEEN[name])
    assert checked(data).findings == []


def test_an_old_copy_is_seen_with_a_head_that_was_noted_elsewhere(data: Path, scene: Scene) -> None:
    """Everything put back looks whole, and does not hold the head that a log has."""
    container = open_container(DataDir(data), FakeClock(), SeededEntropy(9))
    add_pepper(container.mutations, container.keyring, container.entropy, scene.operator_account)
    with container.store.read() as reader:
        later = reader.audit_head()
    container.close()
    assert checked(scene.path).findings == []
    assert checked(scene.path, later).findings == ["audit: event 20 and what follows were cut off"]
    assert checked(data, later).findings == []
    assert checked(data, scene.head).findings == []
    assert checked(data, (scene.head[0], bytes(32))).findings == [
        "audit: event 19 is not the expected one"
    ]


def test_a_change_does_not_cover_up_what_was_cut_off(data: Path, scene: Scene) -> None:
    """A head that does not fit stays, and the log says where to look."""
    execute(data, "DELETE FROM audit_events WHERE seq > 17")
    container = open_container(DataDir(data), FakeClock(), SeededEntropy(9))
    operator_account = scene.operator_account
    with capture_logs() as logged:
        for _ in range(5):
            add_pepper(container.mutations, container.keyring, container.entropy, operator_account)
    container.close()
    assert (
        "audit: the head is of event 19, and the audit log ends with 22" in checked(data).findings
    )
    assert [one["event"] for one in logged] == ["audit_head_wrong"]
