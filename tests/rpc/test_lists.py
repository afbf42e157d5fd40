"""What all lists have in common: pages that end by bytes, or early, and walks over them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from backends import append_keys
from harness import ReplaceableStore, Service, Stubs, file_of, refused
from keybearer._wire.limits import MAX_LABELS, MAX_PAGE_BYTES, MAX_SORTED_BY_LAST_USE
from keybearer.v1 import api_key_service_pb2, audit_service_pb2
from keybearer_service.storage import LOOKED_AT, dbapi

FAT = {
    "name": "\u00e9" * 100,
    "description": "\u00e9" * 1000,
    "scopes": [f"s{n:02}." + "x" * 90 for n in range(64)],
    "labels": {f"label-{n:02}".ljust(63, "x"): "v" * 256 for n in range(MAX_LABELS)},
}
"""A key that is as long as keys may be."""


def execute(service: Service, statement: str, *values: object) -> None:
    """Execute a statement behind the service's back."""
    connection = dbapi.connect(str(file_of(service)), isolation_level=None)
    connection.execute(statement, values)
    connection.close()


def add_keys(service: Service, count: int) -> None:
    """Add copies of the first key."""
    connection = dbapi.connect(str(file_of(service)))
    with connection:
        append_keys(connection, count)
    connection.close()


def pages_of(read: Callable[[str], Any]) -> Iterator[Any]:
    """Yield the pages of a list."""
    page = read("")
    yield page
    while page.next_page_token:
        page = read(page.next_page_token)
        yield page


def test_a_page_of_keys_ends_before_two_mebibytes(service: Service, admin: Stubs) -> None:
    """A client with default limits reads all of them, each once."""
    made = admin.create_key(**FAT).api_key
    copies = 330
    columns = "id, name, description, scopes, labels, account_id, owner_id, role, create_time,"
    columns += " created_by, update_time, secret_create_time, digest, pepper_id"
    execute(
        service,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"  # noqa: S608 - our names
        f" INSERT INTO api_keys ({columns}) SELECT printf('fat%013d', i),"
        f" {columns.removeprefix('id, ')} FROM n, api_keys k WHERE k.id = ?",
        copies,
        made.id,
    )
    request = api_key_service_pb2.ListApiKeysRequest
    pages = list(
        pages_of(lambda token: admin.keys.ListApiKeys(request(page_size=1000, page_token=token)))
    )
    assert all(page.ByteSize() <= MAX_PAGE_BYTES for page in pages)
    assert pages[0].ByteSize() > MAX_PAGE_BYTES * 0.99
    ids = [key.id for page in pages for key in page.api_keys]
    assert len(ids) == len(set(ids)) == copies + 2


def test_a_page_of_audit_events_ends_before_two_mebibytes(service: Service, admin: Stubs) -> None:
    """Each event comes once."""
    admin.create_key()
    columns = "time, account_id, actor_type, actor_key_id, actor_user_id, actor_user_email,"
    columns += " action, target_type, target_id, request_id, peer, hash"
    changes = '[["revoked_key_ids","","' + "k" * 17_000 + '"]]'
    execute(
        service,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)"  # noqa: S608 - our names
        f" INSERT INTO audit_events (seq, id, changes, {columns})"
        f" SELECT 1000 + i, printf('fat%013d', i), ?, {columns} FROM n, audit_events e"
        " WHERE e.seq = 1",
        changes,
    )
    request = audit_service_pb2.ListAuditEventsRequest
    pages = list(
        pages_of(
            lambda token: admin.audit.ListAuditEvents(request(page_size=1000, page_token=token))
        )
    )
    assert all(page.ByteSize() <= MAX_PAGE_BYTES for page in pages)
    assert pages[0].ByteSize() > MAX_PAGE_BYTES * 0.99
    seqs = [event.seq for page in pages for event in page.audit_events]
    assert len(seqs) == len(set(seqs)) == 202


def test_a_list_without_a_hit_ends_after_empty_pages(service: Service, admin: Stubs) -> None:
    """A page that looked at enough rows is empty and has a next one."""
    add_keys(service, LOOKED_AT * 2)
    pages = list(
        pages_of(lambda token: admin.list_keys(name_contains="no such name", page_token=token))
    )
    assert [len(page.api_keys) for page in pages] == [0, 0, 0]


def test_what_lies_behind_empty_pages_is_found(service: Service, admin: Stubs) -> None:
    """The oldest key is found by its name among very many newer ones."""
    (oldest,) = admin.list_keys().api_keys
    add_keys(service, LOOKED_AT * 2)
    execute(
        service,
        "UPDATE api_keys SET name = 'newer', create_time = create_time + 1 WHERE id <> ?",
        oldest.id,
    )
    found = [
        key.id
        for page in pages_of(
            lambda token: admin.list_keys(name_contains=oldest.name, page_token=token)
        )
        for key in page.api_keys
    ]
    assert found == [oldest.id]


@pytest.mark.parametrize("order", ["last_used_time", "last_used_time desc"])
def test_the_order_of_use_is_for_accounts_of_few_keys(
    service: Service, admin: Stubs, order: str
) -> None:
    """Beyond, the error names the filter to use instead; other orders and accounts go on."""
    tenant = service.tenant()
    add_keys(service, MAX_SORTED_BY_LAST_USE - len(admin.list_keys().api_keys))
    assert len(admin.list_keys(order_by=order).api_keys) == 50
    admin.create_key()
    refusal = refused(lambda: admin.list_keys(order_by=order))
    assert refusal.fields == ["order_by"]
    assert "unused_since" in refusal.message
    assert len(admin.list_keys(order_by="expire_time").api_keys) == 50
    assert len(tenant.stubs.list_keys(order_by=order).api_keys) == 1


def test_a_foreign_id_looks_like_an_unknown_one(service: Service, store: ReplaceableStore) -> None:
    """However many rows another account has of it: no page, and no next one."""
    tenant = service.tenant()
    execute(
        service,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO audit_events (id, time, account_id, actor_type, actor_key_id, actor_user_id,"
        " actor_user_email, action, target_type, target_id, changes, request_id, peer, hash)"
        " SELECT printf('many%012d', i), time, account_id, 1, 'actor', 'user', '', 1, 3, 'target',"
        " changes, '', '', hash FROM n, (SELECT * FROM audit_events WHERE account_id = ? LIMIT 1)",
        LOOKED_AT + 1,
        service.account_id,
    )
    request = audit_service_pb2.ListAuditEventsRequest
    foreign: list[dict[str, Any]] = [
        {"actor_id": "actor"},
        {"actor_id": "user"},
        {"target_id": "target"},
    ]
    for fields in foreign:
        page = tenant.stubs.audit.ListAuditEvents(request(**fields))
        assert (list(page.audit_events), page.next_page_token) == ([], "")
        assert service.admin.audit.ListAuditEvents(request(**fields)).next_page_token
