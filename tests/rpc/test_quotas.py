"""Quotas: how many keys and users an account may have."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fakes import FakeClock, SeededEntropy
from harness import Refusal, Service, Stubs, refused, running
from keybearer_service.domain.clock import DAY, HOUR
from keybearer_service.offline.break_glass import issue_admin_token
from keybearer_service.usecases.quotas import Quotas

KEYS = 3
USERS = 2
REQUEST = "6b4e2b1e-6f0e-4a53-9d1c-3f3a8f1f2d11"


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A service where an account may have three keys and two users."""
    quotas = Quotas(keys=KEYS, users=USERS)
    with running(tmp_path / "data", clock, entropy, quotas=quotas) as running_service:
        yield running_service


def fill_up(stubs: Stubs) -> list[str]:
    """Create keys until the account has as many as it may have; return the ids of the new ones."""
    return [stubs.create_key(ttl={"seconds": 60}).api_key.id for _ in range(KEYS - 1)]


def test_a_key_beyond_the_quota_is_refused(admin: Stubs) -> None:
    """The error names the setting, its value and what to do, and no time to try again."""
    fill_up(admin)
    refusal = refused(admin.create_key)
    assert refusal == Refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
        "max_keys_per_account: the account has reached 3; revoke keys that are expired or not "
        "needed, or ask the server's operator to raise this setting",
        [],
        {"quota": "max_keys_per_account", "limit": "3"},
        None,
    )
    assert len(admin.list_keys().api_keys) == KEYS


def test_a_user_beyond_the_quota_is_refused(admin: Stubs) -> None:
    """A user who is deleted makes room for another."""
    user = admin.create_user("second@example.com")
    refusal = refused(lambda: admin.create_user("third@example.com"))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
    )
    assert refusal.message.startswith("max_users_per_account: the account has reached 2; delete")
    assert refusal.metadata == {"quota": "max_users_per_account", "limit": "2"}
    admin.delete_user(user.id)
    assert admin.create_user("third@example.com").id


def test_revoked_keys_make_room_and_expired_ones_do_not(admin: Stubs, clock: FakeClock) -> None:
    """What counts is whether a key is revoked."""
    expired, _ = fill_up(admin)
    clock.advance(HOUR)
    assert refused(admin.create_key).reason == "QUOTA_EXCEEDED"
    admin.revoke(expired)
    assert admin.create_key().token


def test_keys_of_a_deleted_user_make_room(admin: Stubs) -> None:
    """A revocation of many counts as each of them would."""
    user = admin.create_user("second@example.com")
    for _ in range(KEYS - 1):
        admin.create_key(owner_id=user.id)
    assert refused(admin.create_key).reason == "QUOTA_EXCEEDED"
    admin.delete_user(user.id)
    assert len(fill_up(admin)) == KEYS - 1


def test_each_account_has_its_own_quota(service: Service, admin: Stubs) -> None:
    """A full account leaves the others their room, and an operator does not get around it."""
    tenant = service.tenant()
    fill_up(tenant.stubs)
    assert refused(tenant.stubs.create_key).reason == "QUOTA_EXCEEDED"
    refusal = refused(
        lambda: admin.create_key(account_id=tenant.account_id, owner_id=tenant.user_id)
    )
    assert refusal.reason == "QUOTA_EXCEEDED"
    assert admin.create_key().token
    assert service.tenant("another").stubs.create_key().token


def test_a_replayed_create_is_not_counted_twice(admin: Stubs) -> None:
    """The lost token of the last key that fits is issued again."""
    admin.revoke(fill_up(admin)[0])
    first = admin.create_key(request_id=REQUEST, attempt=1)
    again = admin.create_key(request_id=REQUEST, attempt=2)
    assert (again.api_key.id, again.replayed) == (first.api_key.id, True)
    assert refused(admin.create_key).reason == "QUOTA_EXCEEDED"


def test_what_creates_nothing_goes_on_in_a_full_account(admin: Stubs) -> None:
    """Rotate, update, disable, enable, and revoke above all."""
    key_id, _ = fill_up(admin)
    assert admin.rotate(key_id).token
    assert admin.update_key(key_id, {"name": "another"}).name == "another"
    admin.disable_key(key_id)
    admin.enable_key(key_id)
    assert admin.revoke(key_id).HasField("revoke_time")


def test_who_may_not_create_does_not_learn_that_the_account_is_full(
    service: Service, admin: Stubs
) -> None:
    """The caller is judged before the quota is."""
    fill_up(admin)
    tenant = service.tenant()
    refusal = refused(lambda: tenant.stubs.create_key(account_id=service.account_id))
    assert refusal.reason == "OPERATOR_ONLY"


def test_breaking_the_glass_has_no_quota(service: Service, admin: Stubs) -> None:
    """An administrator who is locked out of a full account gets a token all the same."""
    fill_up(admin)
    container = service.app.container
    issued = issue_admin_token(
        container.mutations, container.issuer, service.account_id, "admin@example.com", DAY
    )
    assert service.as_token(issued.token).who_am_i().key_id == issued.key.id
