"""What holds the write lock looks rows up, and never goes through a table that grows."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from backends import Connections
from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, message, running
from keybearer.v1 import api_key_service_pb2, token_service_pb2, user_service_pb2
from keybearer_service.storage import dbapi
from keybearer_service.storage.sqlite import SqliteStore

GROWING = frozenset(
    {
        "api_keys",
        "users",
        "changes",
        "audit_events",
        "audit_event_subjects",
        "request_records",
        "personal_texts",
    }
)
_LAST_ROW = "ORDER BY seq DESC LIMIT 1"
"""Called a scan too, of one row."""
_SCAN = re.compile(r"SCAN (\w+)")
_ALIAS = {"k": "api_keys", "u": "users", "o": "users", "c": "users"}


def scans(connection: dbapi.Connection, statements: list[str]) -> list[str]:
    """Return the statements that go through all rows of a table that grows."""
    found = []
    for statement in dict.fromkeys(statements):
        if not statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
            continue
        for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"):
            scan = _SCAN.match(str(row[3]))
            if statement.endswith(_LAST_ROW):
                continue
            if scan is not None and _ALIAS.get(scan[1], scan[1]) in GROWING:
                found.append(f"{row[3]}: {statement}")
    return found


def change_everything(admin: Stubs) -> None:
    """Make every kind of change of users and keys."""
    user = admin.create_user("somebody@example.com")
    created = admin.create_key(
        owner_id=user.id, request_id="6b4e2b1e-6f0e-4a53-9d1c-3f3a8f1f2d11", attempt=1
    )
    key_id = created.api_key.id
    keys = admin.keys
    keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(id=key_id))
    keys.DisableApiKey(api_key_service_pb2.DisableApiKeyRequest(id=key_id))
    keys.EnableApiKey(api_key_service_pb2.EnableApiKeyRequest(id=key_id))
    keys.UpdateApiKey(
        message(
            api_key_service_pb2.UpdateApiKeyRequest,
            api_key={"id": key_id, "name": "another"},
            update_mask={"paths": ["name"]},
        )
    )
    reported = admin.create_key()
    admin.tokens.RevokeToken(token_service_pb2.RevokeTokenRequest(token=reported.token))
    admin.users.UpdateUser(
        message(
            user_service_pb2.UpdateUserRequest,
            user={"id": user.id, "role": "ROLE_DEVELOPER"},
            update_mask={"paths": ["role"]},
        )
    )
    keys.RevokeApiKey(
        message(api_key_service_pb2.RevokeApiKeyRequest, id=key_id, reason="REVOCATION_REASON_LOST")
    )
    admin.users.DeleteUser(user_service_pb2.DeleteUserRequest(id=user.id, revoke_created=True))


@pytest.fixture
def connections() -> Connections:
    """The connections of the service's store."""
    return Connections()


@pytest.fixture
def service(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy, connections: Connections
) -> Iterator[Service]:
    """A running service whose connections to the database can be looked at."""
    opener = partial(SqliteStore, connect=connections)
    with running(tmp_path / "data", clock, entropy, opener=opener) as running_service:
        yield running_service


def test_no_change_goes_through_a_table(admin: Stubs, connections: Connections) -> None:
    """Every statement of every change finds its rows by an index."""
    statements: list[str] = []
    writer = connections.writer
    writer.set_trace_callback(statements.append)
    change_everything(admin)
    writer.set_trace_callback(None)
    assert len(set(statements)) > 50
    assert scans(writer, statements) == []


@pytest.mark.parametrize("table", sorted(GROWING))
@pytest.mark.usefixtures("service")
def test_a_scan_is_found(connections: Connections, table: str) -> None:
    """Going through a table is noticed."""
    assert scans(connections.writer, [f"SELECT count(*) FROM {table}"])  # noqa: S608
