"""Erasing the personal data of a deleted user: gone from every file, and the log still verifies."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import FakeClock, SeededEntropy
from harness import Service, running
from keybearer_service.container import Container, open_container
from keybearer_service.domain.audit_event import ERASED
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.audit import check, export_audit, verify_audit
from keybearer_service.offline.erasure import erase_user
from reliability.processes import answer, command

EMAIL = "very-personal@example.com"
NAME = "Known Only Here"
RENAMED = "Called Otherwise"
TEXTS = (EMAIL, NAME, RENAMED)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A running service with the directory `data`."""
    with running(tmp_path / "data", FakeClock(), SeededEntropy(5)) as running_service:
        yield running_service


def leave_traces(service: Service) -> str:
    """Have a user act and be acted on in every way, and be deleted; return the id."""
    admin = service.admin
    user = admin.create_user(EMAIL, display_name=NAME, role="ROLE_ADMIN")
    own = service.as_token(admin.create_key(owner_id=user.id, role="ROLE_ADMIN").token)
    own.create_user("colleague@example.com", display_name="Colleague")
    own.create_key()
    own.update_user(user.id, {"display_name": RENAMED})
    admin.delete_user(user.id)
    return user.id


def files_with(directory: Path, texts: tuple[str, ...]) -> list[str]:
    """Return the files below a directory that hold one of some texts."""
    return [
        path.name
        for path in sorted(directory.rglob("*"))
        if path.is_file() and any(text.encode() in path.read_bytes() for text in texts)
    ]


def erased(service: Service, user_id: str) -> Container:
    """Erase a user in the store of a running service."""
    container = service.app.container
    outcome = erase_user(container.mutations, container.store, user_id)
    assert outcome.texts == len(TEXTS)
    assert outcome.old_events == 0
    return container


def test_the_texts_are_gone_from_every_file(service: Service, tmp_path: Path) -> None:
    """Database, indexes, freed space and write-ahead log, among many other users."""
    for n in range(100):
        service.admin.create_user(f"user{n}@example.com", display_name=f"User {n}")
    user_id = leave_traces(service)
    for n in range(100, 200):
        service.admin.create_user(f"user{n}@example.com", display_name=f"User {n}")
    assert files_with(tmp_path, TEXTS)
    container = service.app.container
    outcome = erase_user(container.mutations, container.store, user_id)
    assert outcome.is_log_empty
    assert files_with(tmp_path, TEXTS) == []


def test_the_log_verifies_and_counts_what_was_erased(service: Service) -> None:
    """And every row is as its last event left it."""
    container = erased(service, leave_traces(service))
    audit_key = container.keyring.audit_key
    report, head_findings = verify_audit(container.store, audit_key, None)
    assert (report.problem, head_findings) == ("", [])
    assert report.erased == 4
    assert check(container.store, audit_key).findings == []


def test_lists_and_exports_show_that_it_was_erased(service: Service) -> None:
    """In the place of each text, and nobody else's is touched."""
    user_id = leave_traces(service)
    container = erased(service, user_id)
    user = service.admin.user(user_id)
    assert (user.email, user.display_name) == (ERASED, ERASED)
    acted = service.admin.events(actor_id=user_id)
    assert {event.actor.user_email for event in acted} == {ERASED}
    changes = [
        (change.before, change.after)
        for event in service.admin.events(target_id=user_id)
        for change in event.changes
        if change.field in {"email", "display_name"}
    ]
    assert changes == [(ERASED, ERASED), ("", ERASED), ("", ERASED)]
    lines = "\n".join(export_audit(container.store))
    assert [text for text in TEXTS if text in lines] == []
    assert "colleague@example.com" in lines


def test_the_erasure_is_an_event_without_the_texts(service: Service) -> None:
    """It says who was erased, by a local command."""
    user_id = leave_traces(service)
    container = erased(service, user_id)
    last = list(export_audit(container.store))[-2]
    event = json.loads(last)
    assert event["action"] == "USER_ERASED"
    assert event["target"] == {"type": "USER", "id": user_id}
    assert event["actor"]["type"] == "LOCAL_COMMAND"
    assert event["changes"] == []


def test_a_command_erases_once_and_only_who_is_deleted(service: Service, tmp_path: Path) -> None:
    """A live user, an unknown and an erased one are refused, in a line that says what to do."""
    user_id = leave_traces(service)
    live = service.admin_user_id
    service.close()
    where = ("--data-dir", str(tmp_path / "data"))
    done = command("users", "erase", live, *where)
    assert done.returncode == 1
    assert f"run `keybearer users delete {live}` first" in done.stderr
    assert "there is no user" in command("users", "erase", "unknown", *where).stderr
    outcome = answer("users", "erase", user_id, *where)
    assert outcome == {"user_id": user_id, "texts": 3, "old_events": 0, "log_empty": True}
    assert files_with(tmp_path, TEXTS) == []
    assert "is erased already" in command("users", "erase", user_id, *where).stderr
    assert answer("audit", "verify", *where)["erased"] == 4
    assert answer("check", *where)["findings"] == []


def test_events_of_the_first_version_keep_their_texts_and_are_counted(tmp_path: Path) -> None:
    """They hold them inside their hash; the command says how many there are."""
    old = Path(__file__).parents[1] / "storage" / "schema_001"
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "peppers").mkdir(mode=0o700)
    for path in (old / "keybearer.db", *sorted((old / "peppers").iterdir())):
        copy = data / path.relative_to(old)
        copy.touch(mode=0o600)
        copy.write_bytes(path.read_bytes())
    container = open_container(DataDir(data), SystemClock(), SystemEntropy())
    try:
        with container.store.read() as reader:
            deleted = next(
                row for row in reader.covered_rows("users", "", 1000) if row.columns["delete_time"]
            )
        user_id, email = str(deleted.columns["id"]), str(deleted.columns["email"])
        outcome = erase_user(container.mutations, container.store, user_id)
        lines = list(export_audit(container.store))
        report, _ = verify_audit(container.store, container.keyring.audit_key, None)
    finally:
        container.close()
    assert outcome.old_events >= sum(email in line for line in lines) > 0
    assert report.problem == ""
