"""UserService: users, their roles, and what becomes of their keys."""

from typing import Any

import grpc
import pytest

from fakes import START, FakeClock
from harness import Service, Stubs, message, refused
from keybearer.v1 import user_pb2
from keybearer_service.domain.clock import SECOND

ADMIN, DEVELOPER, VALIDATOR = "ROLE_ADMIN", "ROLE_DEVELOPER", "ROLE_VALIDATOR"


def test_a_new_user_says_everything_about_itself(service: Service, admin: Stubs) -> None:
    """With the address in lower case and the name trimmed."""
    user = admin.create_user(
        "First.Last@Example.COM",
        display_name=" First ",
        role=VALIDATOR,
        type="USER_TYPE_SERVICE_ACCOUNT",
    )
    now = {"seconds": START // SECOND}
    assert user == message(
        user_pb2.User,
        id=user.id,
        account_id=service.account_id,
        email="first.last@example.com",
        display_name="First",
        role=VALIDATOR,
        type="USER_TYPE_SERVICE_ACCOUNT",
        create_time=now,
        update_time=now,
        etag=user.etag,
    )
    assert user.etag
    assert admin.user(user.id) == user


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"email": ""}, "email"),
        ({"email": "nobody"}, "email"),
        ({"email": "a b@example.com"}, "email"),
        ({"email": "ä@example.com"}, "email"),
        ({"email": "a" * 250 + "@b.cd"}, "email"),
        ({"display_name": ""}, "display_name"),
        ({"display_name": "x" * 101}, "display_name"),
        ({"display_name": "a\u2066"}, "display_name"),
        ({"role": 0}, "role"),
        ({"role": 4}, "role"),
        ({"type": 0}, "type"),
        ({"type": 3}, "type"),
    ],
)
def test_a_bad_field_is_named_and_nobody_is_made(
    admin: Stubs, fields: dict[str, Any], field: str
) -> None:
    """INVALID_ARGUMENT with the field; an unspecified role or type is one."""
    email = fields.pop("email", "new@example.com")
    refusal = refused(lambda: admin.create_user(email, **fields))
    assert (refusal.reason, refusal.fields) == ("FIELD_INVALID", [field])
    assert len(admin.list_users().users) == 1


def test_an_address_is_unique_among_the_live_users_of_an_account(
    service: Service, admin: Stubs
) -> None:
    """In whatever case; free again after a deletion, and in another account anyway."""
    first = admin.create_user("same@example.com")
    refusal = refused(lambda: admin.create_user("SAME@example.com"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EMAIL_TAKEN")
    assert service.tenant().stubs.create_user("same@example.com").email == "same@example.com"
    admin.delete_user(first.id)
    assert admin.create_user("same@example.com").id != first.id


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["machine", "dev", "admin"]),
        ({"roles": [ADMIN]}, ["admin"]),
        ({"roles": [DEVELOPER, VALIDATOR]}, ["machine", "dev"]),
        ({"types": ["USER_TYPE_SERVICE_ACCOUNT"]}, ["machine"]),
        ({"email_contains": "DEV"}, ["dev"]),
        ({"email_contains": "%"}, []),
        ({"show_deleted": True}, ["gone", "machine", "dev", "admin"]),
    ],
)
def test_users_are_listed_newest_first_and_filtered(
    admin: Stubs, clock: FakeClock, fields: dict[str, Any], expected: list[str]
) -> None:
    """Each filter narrows; deleted users only when asked for."""
    clock.advance(SECOND)
    admin.create_user("dev@example.com", role=DEVELOPER)
    clock.advance(SECOND)
    admin.create_user("machine@example.com", role=VALIDATOR, type="USER_TYPE_SERVICE_ACCOUNT")
    clock.advance(SECOND)
    admin.delete_user(admin.create_user("gone@example.com").id)
    paged: list[str] = []
    token = ""
    while True:
        page = admin.list_users(page_size=1, page_token=token, **fields)
        paged += [one.email.split("@")[0] for one in page.users]
        token = page.next_page_token
        if not token:
            break
    assert paged == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"roles": [0]}, "roles"),
        ({"roles": [9]}, "roles[0]"),
        ({"types": [0]}, "types[0]"),
        ({"email_contains": "\n"}, "email_contains"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "AAAA"}, "page_token"),
    ],
)
def test_a_filter_that_is_none_is_refused(admin: Stubs, fields: dict[str, Any], field: str) -> None:
    """The error names the field; a number that means nothing is not taken for no filter."""
    assert refused(lambda: admin.list_users(**fields)).fields == [field]


# --- updating -------------------------------------------------------------------------------------


def test_only_the_fields_of_the_mask_change(admin: Stubs, clock: FakeClock) -> None:
    """The rest of the request is not looked at."""
    user = admin.create_user("a@example.com")
    clock.advance(SECOND)
    values = {"display_name": "New", "role": VALIDATOR, "email": "other@example.com"}
    updated = admin.update_user(user.id, values, paths=["display_name"])
    assert updated.display_name == "New"
    assert (updated.role, updated.email) == (user.role, user.email)
    assert updated.etag != user.etag
    assert updated.update_time.seconds == START // SECOND + 1
    assert admin.user(user.id) == updated


def test_an_update_that_changes_nothing_is_no_change(admin: Stubs, clock: FakeClock) -> None:
    """Neither etag, nor time, nor event."""
    user = admin.create_user("a@example.com", display_name="same")
    events = len(admin.events())
    clock.advance(SECOND)
    assert admin.update_user(user.id, {"display_name": "same"}) == user
    assert len(admin.events()) == events


@pytest.mark.parametrize(
    "paths", [[], ["*"], ["email"], ["type"], ["id"], ["delete_time"], ["role", "x"]], ids=repr
)
def test_a_mask_that_names_what_cannot_be_written_is_refused(
    admin: Stubs, paths: list[str]
) -> None:
    """Empty, `*`, unknown and output-only paths."""
    user = admin.create_user("a@example.com")
    refusal = refused(lambda: admin.update_user(user.id, {"role": VALIDATOR}, paths=paths))
    assert refusal.fields == ["update_mask"]
    assert admin.user(user.id) == user


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"role": 0}, "user.role"),
        ({"role": 7}, "user.role"),
        ({"display_name": " "}, "user.display_name"),
    ],
)
def test_a_bad_update_is_named(admin: Stubs, values: dict[str, Any], field: str) -> None:
    """With the field as it stands in the request."""
    user = admin.create_user("a@example.com")
    assert refused(lambda: admin.update_user(user.id, values)).fields == [field]
    assert admin.user(user.id) == user


def test_an_update_without_an_id_names_the_field(admin: Stubs) -> None:
    """As it stands in the request."""
    assert refused(lambda: admin.update_user("", {"role": ADMIN})).fields == ["user.id"]


def test_an_etag_refuses_a_change_of_what_has_changed_since(admin: Stubs) -> None:
    """ABORTED."""
    user = admin.create_user("a@example.com")
    admin.update_user(user.id, {"display_name": "b"}, etag=user.etag)
    refusal = refused(lambda: admin.update_user(user.id, {"display_name": "c"}, etag=user.etag))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")


def test_a_demoted_administrator_is_refused_from_the_next_call_on(
    service: Service, admin: Stubs
) -> None:
    """The caller's own remembered verdict is no exception."""
    other = admin.create_user("other@example.com")
    others = service.as_token(admin.create_key(role=ADMIN, owner_id=other.id).token)
    assert others.list_keys().api_keys
    admin.update_user(other.id, {"role": DEVELOPER})
    assert refused(others.list_keys).reason == "ROLE_INSUFFICIENT"
    admin.update_user(other.id, {"role": ADMIN})
    assert others.list_keys().api_keys


# --- the last administrator -----------------------------------------------------------------------


@pytest.mark.parametrize("role", [DEVELOPER, VALIDATOR])
def test_the_last_administrator_is_not_demoted(service: Service, admin: Stubs, role: str) -> None:
    """FAILED_PRECONDITION with the user's id."""
    refusal = refused(lambda: admin.update_user(service.admin_user_id, {"role": role}))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LAST_ADMIN")
    assert refusal.metadata == {"user_id": service.admin_user_id}


@pytest.mark.parametrize("validate_only", [False, True])
def test_the_last_administrator_is_not_deleted(
    service: Service, admin: Stubs, *, validate_only: bool
) -> None:
    """Trying out says the same as doing."""
    refusal = refused(lambda: admin.delete_user(service.admin_user_id, validate_only=validate_only))
    assert refusal.reason == "LAST_ADMIN"


def test_deleted_and_lower_users_do_not_count_as_administrators(
    service: Service, admin: Stubs
) -> None:
    """Nor do those of other accounts."""
    admin.create_user("dev@example.com", role=DEVELOPER)
    admin.delete_user(admin.create_user("gone@example.com").id)
    service.tenant()
    refusal = refused(lambda: admin.delete_user(service.admin_user_id))
    assert refusal.reason == "LAST_ADMIN"


def test_with_another_administrator_the_first_may_go(service: Service, admin: Stubs) -> None:
    """Also by their own hand; their key is dead then."""
    admin.create_user("second@example.com")
    assert admin.delete_user(service.admin_user_id).user.HasField("delete_time")
    assert refused(admin.who_am_i).reason == "CREDENTIALS_INVALID"


def test_the_last_administrator_may_still_be_renamed(service: Service, admin: Stubs) -> None:
    """Only authority is protected."""
    assert admin.update_user(service.admin_user_id, {"display_name": "x"}).display_name == "x"


# --- deleting -------------------------------------------------------------------------------------


def test_deleting_revokes_what_the_user_owns_and_names_what_the_user_made(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Owned keys are revoked as OWNER_DELETED; keys made for others are only named."""
    user = admin.create_user("user@example.com")
    users = service.as_token(admin.create_key(role=ADMIN, owner_id=user.id).token)
    made = users.create_key(owner_id=service.admin_user_id, name="made for another")
    owned = users.create_key(name="own")
    clock.advance(SECOND)

    answer = admin.delete_user(user.id)

    assert answer.user.delete_time.seconds == START // SECOND + 1
    assert owned.api_key.id in answer.revoked_key_ids
    assert len(answer.revoked_key_ids) == answer.revoked_key_count == 2
    assert list(answer.created_for_others_key_ids) == [made.api_key.id]
    assert answer.created_for_others_key_count == 1
    assert admin.outcome(made.token) == "VALID"
    record = admin.key(owned.api_key.id)
    assert (record.revocation_reason, record.revoked_by) == (5, service.admin_user_id)
    assert record.revoke_time == answer.user.delete_time


def test_with_revoke_created_the_keys_made_for_others_are_revoked_too(
    service: Service, admin: Stubs
) -> None:
    """As CREATOR_DELETED, and they stand in both lists."""
    user = admin.create_user("user@example.com")
    users = service.as_token(admin.create_key(role=ADMIN, owner_id=user.id).token)
    made = users.create_key(owner_id=service.admin_user_id)
    bystander = admin.create_key()
    answer = admin.delete_user(user.id, revoke_created=True)
    assert made.api_key.id in answer.revoked_key_ids
    assert made.api_key.id in answer.created_for_others_key_ids
    assert admin.outcome(made.token) == "REVOKED"
    assert admin.key(made.api_key.id).revocation_reason == 6
    assert admin.outcome(bystander.token) == "VALID"


@pytest.mark.parametrize("revoke_created", [False, True])
def test_trying_out_a_deletion_answers_the_same_and_does_nothing(
    service: Service, admin: Stubs, *, revoke_created: bool
) -> None:
    """The ids and counts of the plan are those of the deed."""
    user = admin.create_user("user@example.com")
    users = service.as_token(admin.create_key(role=ADMIN, owner_id=user.id).token)
    users.create_key(owner_id=service.admin_user_id)
    token = users.create_key().token
    events, revision = len(admin.events()), admin.who_am_i().revision

    plan = admin.delete_user(user.id, validate_only=True, revoke_created=revoke_created)

    assert plan.user == user
    assert admin.outcome(token) == "VALID"
    assert (len(admin.events()), admin.who_am_i().revision) == (events, revision)
    deed = admin.delete_user(user.id, revoke_created=revoke_created)
    assert deed.revoked_key_ids == plan.revoked_key_ids
    assert deed.created_for_others_key_ids == plan.created_for_others_key_ids
    assert deed.revoked_key_count == plan.revoked_key_count


def test_keys_that_were_revoked_before_keep_their_facts(admin: Stubs) -> None:
    """A deletion does not rewrite history."""
    user = admin.create_user("user@example.com")
    key_id = admin.create_key(owner_id=user.id).api_key.id
    first = admin.revoke(key_id, note="first")
    assert not admin.delete_user(user.id).revoked_key_ids
    assert admin.key(key_id) == first


def test_a_deleted_user_is_read_and_not_changed(admin: Stubs) -> None:
    """Get answers the row; update and delete say NOT_FOUND."""
    user = admin.create_user("user@example.com")
    deleted = admin.delete_user(user.id).user
    assert admin.user(user.id) == deleted
    for change in (
        lambda: admin.update_user(user.id, {"role": ADMIN}),
        lambda: admin.delete_user(user.id),
        lambda: admin.delete_user(user.id, validate_only=True),
    ):
        assert refused(change).reason == "RESOURCE_NOT_FOUND"


def test_deleting_ends_an_overlap_too(admin: Stubs) -> None:
    """Both secrets of a rotated key are refused."""
    user = admin.create_user("user@example.com")
    made = admin.create_key(owner_id=user.id)
    rotated = admin.rotate(made.api_key.id, overlap={"seconds": 60})
    admin.delete_user(user.id)
    assert admin.outcome(made.token) == admin.outcome(rotated.token) == "REVOKED"


def test_keys_of_a_deleted_user_stay_listed_with_their_address(admin: Stubs) -> None:
    """The row stays, so the list can show whose they were."""
    user = admin.create_user("user@example.com")
    admin.create_key(owner_id=user.id)
    admin.delete_user(user.id)
    assert [one.owner_email for one in admin.list_keys(owner_id=user.id).api_keys] == [
        "user@example.com"
    ]
