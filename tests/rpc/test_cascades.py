"""Keys that are revoked together: each is found in the log, in every account that loses one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness import Service, Stubs, Tenant
from keybearer.v1 import audit_event_pb2
from keybearer_service.domain.account_scope import AccountScope

Event = audit_event_pb2.AuditEvent


def action_of(event: Event) -> str:
    """Name the action of an event without its prefix."""
    return audit_event_pb2.AuditAction.Name(event.action).removeprefix("AUDIT_ACTION_")


def changes_of(event: Event) -> dict[str, str]:
    """Return what an event says, by field."""
    return {one.field: one.after for one in event.changes}


def add_copies(service: Service, key_id: str, count: int) -> list[str]:
    """Put as many more keys like one into the store, and return their ids."""
    store = service.app.container.store
    ids = [f"copy{n:012}" for n in range(count)]
    with store.write() as tx:
        key = tx.api_key(AccountScope.of_installation("a test"), key_id)
        assert key is not None
        secret, _ = tx.secrets_of(key_id)
        for copy_id in ids:
            tx.insert_api_key(replace(key, id=copy_id), secret)
    return ids


@pytest.mark.parametrize("more", [0, 999, 1000], ids=["1", "1000", "1001"])
def test_every_key_of_a_deleted_user_finds_the_deletion(
    service: Service, admin: Stubs, more: int
) -> None:
    """Whether the event lists the keys or, beyond a thousand, only their number."""
    user = admin.create_user("user@example.com")
    key_id = admin.create_key(owner_id=user.id).api_key.id
    ids = [key_id, *add_copies(service, key_id, more)]
    admin.delete_user(user.id)
    deletion = admin.events(target_id=user.id)[0]
    assert action_of(deletion) == "USER_DELETED"
    assert changes_of(deletion)["revoked_key_ids_count"] == str(1 + more)
    assert ("revoked_key_ids" in changes_of(deletion)) == (more < 1000)
    for found in (ids[0], ids[-1]):
        assert admin.events(target_id=found)[0] == deletion
    assert [action_of(one) for one in admin.events(target_id=key_id)] == [
        "USER_DELETED",
        "API_KEY_CREATED",
    ]


@pytest.fixture
def tenants(service: Service) -> Sequence[Tenant]:
    """Two accounts."""
    return [service.tenant("first"), service.tenant("second")]


def test_every_account_that_loses_keys_sees_one_event(
    service: Service, admin: Stubs, tenants: Sequence[Tenant]
) -> None:
    """With its own keys alone, found by each of them; an account that loses none sees nothing."""
    operator = admin.create_user("operator@example.com")
    maker = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=operator.id).token)
    made = {
        tenant.account_id: [
            maker.create_key(account_id=tenant.account_id, owner_id=tenant.user_id).api_key.id
            for _ in range(2)
        ]
        for tenant in tenants
    }
    own = maker.create_key(owner_id=service.admin_user_id).api_key.id
    bystander = service.tenant("bystander")
    before = len(bystander.stubs.events())

    admin.delete_user(operator.id, revoke_created=True)

    for tenant in tenants:
        event = tenant.stubs.events()[0]
        changes = changes_of(event)
        assert (action_of(event), event.target.id) == ("API_KEYS_REVOKED", operator.id)
        assert event.actor.key_id == service.admin_key_id
        assert sorted(changes.pop("revoked_key_ids").split(",")) == sorted(made[tenant.account_id])
        assert changes == {
            "revocation_reason": "CREATOR_DELETED",
            "revoked_key_ids_count": "2",
        }
        for key_id in made[tenant.account_id]:
            assert tenant.stubs.events(target_id=key_id)[0] == event
            everywhere = admin.events(target_id=key_id, account_id="-")
            assert [action_of(one) for one in everywhere] == [
                "API_KEYS_REVOKED",
                "USER_DELETED",
                "API_KEY_CREATED",
            ]
    assert len(bystander.stubs.events()) == before
    deletion = admin.events(target_id=own)[0]
    assert action_of(deletion) == "USER_DELETED"
    everything = {own, *made[tenants[0].account_id], *made[tenants[1].account_id]}
    assert everything < set(changes_of(deletion)["revoked_key_ids"].split(","))


def test_without_revoke_created_no_other_account_sees_anything(
    service: Service, admin: Stubs, tenants: Sequence[Tenant]
) -> None:
    """Keys that a deleted user has made for others live on."""
    operator = admin.create_user("operator@example.com")
    maker = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=operator.id).token)
    tenant = tenants[0]
    maker.create_key(account_id=tenant.account_id, owner_id=tenant.user_id)
    before = tenant.stubs.events()
    admin.delete_user(operator.id)
    assert tenant.stubs.events() == before


def test_the_first_key_of_an_account_dies_with_the_operator_who_made_it(
    service: Service, admin: Stubs
) -> None:
    """Its administrator, who is locked out then, is told why by the log."""
    operator = admin.create_user("operator@example.com")
    maker = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=operator.id).token)
    made = maker.create_account("new")
    admin.delete_user(operator.id, revoke_created=True)
    event, creation = admin.events(account_id=made.account.id, target_id=made.api_key.id)
    assert action_of(event) == "API_KEYS_REVOKED"
    assert action_of(creation) == "ACCOUNT_CREATED"
    assert changes_of(event)["revoked_key_ids"] == made.api_key.id
