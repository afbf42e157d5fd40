"""AccountService, and acting in another account."""

from functools import partial
from typing import Any

import grpc
import pytest

from fakes import START, FakeClock
from harness import Service, Stubs, refused
from keybearer.v1 import account_pb2, account_service_pb2
from keybearer_service.domain.clock import DAY, SECOND


def get(admin: Stubs, account_id: str) -> account_pb2.Account:
    """Read an account."""
    request = account_service_pb2.GetAccountRequest(id=account_id)
    return admin.accounts.GetAccount(request).account


def disable(admin: Stubs, account_id: str) -> account_pb2.Account:
    """Disable an account."""
    request = account_service_pb2.DisableAccountRequest(id=account_id)
    return admin.accounts.DisableAccount(request).account


def enable(admin: Stubs, account_id: str) -> account_pb2.Account:
    """Enable an account."""
    request = account_service_pb2.EnableAccountRequest(id=account_id)
    return admin.accounts.EnableAccount(request).account


def test_a_new_account_has_an_administrator_with_a_key(service: Service, admin: Stubs) -> None:
    """All three are answered, and the key works at once."""
    made = admin.create_account("acme", admin_email="Boss@Acme.example.com")
    assert (made.account.name, made.account.is_operator) == ("acme", False)
    assert made.account.create_time.seconds == START // SECOND
    assert made.user.email == "boss@acme.example.com"
    assert made.user.account_id == made.api_key.account_id == made.account.id
    assert made.api_key.owner_id == made.user.id
    assert not made.api_key.HasField("expire_time")
    me = service.as_token(made.token).who_am_i()
    assert (me.account_id, me.effective_role, me.is_operator) == (made.account.id, 3, False)
    assert get(admin, made.account.id) == made.account


def test_the_first_key_of_an_account_expires_when_a_ttl_is_given(
    admin: Stubs, clock: FakeClock
) -> None:
    """And not otherwise."""
    made = admin.create_account("acme", ttl={"seconds": 86400})
    assert made.api_key.expire_time.seconds == (START + DAY) // SECOND
    clock.advance(DAY)
    assert admin.outcome(made.token, account_id="-") == "EXPIRED"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"admin_email": "nobody"}, "admin_email"),
        ({"admin_display_name": ""}, "admin_display_name"),
        ({"ttl": {"seconds": 0}}, "ttl"),
        ({"ttl": {"seconds": 1, "nanos": -1}}, "ttl"),
        ({"request_id": "x"}, "request_id"),
        ({"attempt": 1}, "attempt"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_made(
    admin: Stubs, fields: dict[str, Any], field: str
) -> None:
    """INVALID_ARGUMENT."""
    refusal = refused(lambda: admin.create_account(**fields))
    assert (refusal.reason, refusal.fields) == ("FIELD_INVALID", [field])
    request = account_service_pb2.ListAccountsRequest()
    assert len(admin.accounts.ListAccounts(request).accounts) == 1


def test_accounts_are_listed_newest_first_by_a_part_of_their_name(
    admin: Stubs, clock: FakeClock
) -> None:
    """In pages."""
    for name in ("one", "two", "three"):
        clock.advance(SECOND)
        admin.create_account(name)

    def listed(**fields: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = account_service_pb2.ListAccountsRequest(
                page_size=1, page_token=token, **fields
            )
            page = admin.accounts.ListAccounts(request)
            found += [one.name for one in page.accounts]
            token = page.next_page_token
            if not token:
                return found

    assert listed() == ["three", "two", "one", "operator"]
    assert listed(name_contains="T") == ["three", "two", "operator"]
    assert listed(name_contains="_") == []


def test_every_key_of_a_disabled_account_validates_as_disabled(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """At once and reversibly; the keys' own state does not change."""
    tenant = service.tenant()
    token = tenant.stubs.create_key().token
    record = admin.key(tenant.key_id)
    clock.advance(SECOND)
    disabled = disable(admin, tenant.account_id)
    assert disabled.disable_time.seconds == START // SECOND + 1
    assert admin.outcome(token, account_id="-") == "DISABLED"
    assert refused(tenant.stubs.who_am_i).reason == "CREDENTIALS_INVALID"
    assert admin.key(tenant.key_id).state == record.state
    enabled = enable(admin, tenant.account_id)
    assert not enabled.HasField("disable_time")
    assert admin.outcome(token, account_id="-") == "VALID"
    assert tenant.stubs.who_am_i().valid


def test_disabling_one_account_leaves_the_others(service: Service, admin: Stubs) -> None:
    """A neighbour notices nothing."""
    first, second = service.tenant("first"), service.tenant("second")
    disable(admin, first.account_id)
    assert second.stubs.who_am_i().valid
    assert admin.who_am_i().valid


def test_repeating_is_ok_and_changes_nothing(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Neither the time nor the audit log."""
    tenant = service.tenant()
    for do in (disable, enable):
        once = do(admin, tenant.account_id)
        clock.advance(SECOND)
        events = len(admin.events(account_id="-"))
        assert do(admin, tenant.account_id) == once
        assert len(admin.events(account_id="-")) == events


def test_the_operator_account_is_protected(service: Service, admin: Stubs) -> None:
    """Disabling it would lock everybody out."""
    refusal = refused(lambda: disable(admin, service.account_id))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "OPERATOR_ACCOUNT_PROTECTED",
    )
    assert enable(admin, service.account_id).is_operator


@pytest.mark.parametrize("do", [get, disable, enable])
@pytest.mark.parametrize(
    ("account_id", "reason"), [("", "FIELD_INVALID"), ("0" * 16, "RESOURCE_NOT_FOUND")]
)
def test_an_account_that_is_not_there_is_not_found(
    admin: Stubs, do: Any, account_id: str, reason: str
) -> None:
    """And one that is not named is a bad field."""
    assert refused(lambda: do(admin, account_id)).reason == reason


# --- acting in another account --------------------------------------------------------------------


def test_an_operators_administrator_acts_in_any_account(service: Service, admin: Stubs) -> None:
    """Creates, lists, reads and changes by naming the account, or by id."""
    tenant = service.tenant()
    user = admin.create_user("new@example.com", account_id=tenant.account_id)
    assert user.account_id == tenant.account_id
    made = admin.create_key(account_id=tenant.account_id, owner_id=user.id)
    assert made.api_key.account_id == tenant.account_id
    assert len(admin.list_users(account_id=tenant.account_id).users) == 2
    assert len(admin.list_keys(account_id=tenant.account_id).api_keys) == 2
    assert admin.update_key(made.api_key.id, {"name": "by operator"}).name == "by operator"
    assert admin.update_user(user.id, {"display_name": "x"}).display_name == "x"
    assert tenant.stubs.key(made.api_key.id).created_by == service.admin_user_id
    assert list(admin.delete_user(user.id).revoked_key_ids) == [made.api_key.id]


def test_a_key_in_another_account_needs_an_owner_there(service: Service, admin: Stubs) -> None:
    """The operator is no user of it; and an owner of elsewhere is not found."""
    tenant = service.tenant()
    refusal = refused(lambda: admin.create_key(account_id=tenant.account_id))
    assert refusal.fields == ["owner_id"]
    refusal = refused(
        lambda: admin.create_key(account_id=tenant.account_id, owner_id=service.admin_user_id)
    )
    assert refusal.reason == "RESOURCE_NOT_FOUND"


def test_naming_an_account_that_is_not_there_is_not_found_for_operators(admin: Stubs) -> None:
    """Who may name any account is told which exist."""
    nothing = "0" * 16
    for call in (
        lambda: admin.create_user("a@example.com", account_id=nothing),
        lambda: admin.create_key(account_id=nothing, owner_id=nothing),
        lambda: admin.list_users(account_id=nothing),
        lambda: admin.list_keys(account_id=nothing),
        lambda: admin.list_keys(account_id="-"),
        lambda: admin.events(account_id=nothing),
    ):
        refusal = refused(call)
        assert (refusal.reason, refusal.metadata["resource"]) == ("RESOURCE_NOT_FOUND", "account")


@pytest.mark.parametrize("target", ["existing", "missing", "any"])
def test_naming_another_account_is_denied_to_all_others_whether_it_exists_or_not(
    service: Service, target: str
) -> None:
    """Byte for byte the same answer, so that nothing is learnt about other accounts."""
    tenant = service.tenant()
    account_id = {"existing": service.account_id, "missing": "0" * 16, "any": "-"}[target]
    stubs = tenant.stubs
    owner = service.admin_user_id
    for call in (
        partial(stubs.create_user, "a@example.com", account_id=account_id),
        partial(stubs.create_key, account_id=account_id, owner_id=owner),
        partial(stubs.list_users, account_id=account_id),
        partial(stubs.list_keys, account_id=account_id),
        partial(stubs.events, account_id=account_id),
    ):
        refusal = refused(call)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "OPERATOR_ONLY",
        )
        assert refusal.metadata == {}
        assert account_id not in refusal.message.replace("account_id", "")


def test_naming_ones_own_account_is_the_same_as_naming_none(service: Service) -> None:
    """For everybody."""
    tenant = service.tenant()
    made = tenant.stubs.create_user("a@example.com", account_id=tenant.account_id)
    assert made.account_id == tenant.account_id
    assert len(tenant.stubs.list_keys(account_id=tenant.account_id).api_keys) == 1


def test_an_operators_developer_is_nobody_elsewhere(service: Service) -> None:
    """Only the operator's administrators reach other accounts."""
    refusal = refused(service.with_role("ROLE_DEVELOPER").list_keys)
    assert refusal.reason == "ROLE_INSUFFICIENT"
