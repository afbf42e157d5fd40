"""The audit log: every change, by whom, to what, from what to what."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from fakes import START, FakeClock, at
from harness import Service, Stubs, refused
from keybearer.v1 import account_service_pb2, audit_event_pb2, audit_service_pb2
from keybearer_service.domain.clock import MINUTE, SECOND, rfc3339
from keybearer_service.offline import audit as offline_audit

Event = audit_event_pb2.AuditEvent


def action_of(event: Event) -> str:
    """Name the action of an event without its prefix."""
    return audit_event_pb2.AuditAction.Name(event.action).removeprefix("AUDIT_ACTION_")


def changes_of(event: Event) -> dict[str, tuple[str, str]]:
    """Return what changed, by field."""
    return {one.field: (one.before, one.after) for one in event.changes}


@dataclass
class Scene:
    """A user with a key, made beforehand."""

    admin: Stubs
    user_id: str
    key_id: str
    token: str
    account_id: str


@pytest.fixture
def scene(service: Service, admin: Stubs) -> Scene:
    """A user with a key, and another account."""
    user = admin.create_user("u@example.com", display_name="U", role="ROLE_DEVELOPER")
    made = admin.create_key(owner_id=user.id, name="k", scopes=["a"])
    tenant = service.tenant()
    return Scene(admin, user.id, made.api_key.id, made.token, tenant.account_id)


@dataclass
class Expected:
    """What a mutation must leave in the log."""

    do: Callable[[Scene], Any]
    action: str
    target: Callable[[Scene, Any], str]
    target_type: str
    changes: dict[str, tuple[str, str]]


def _disable_account(scene: Scene) -> Any:
    request = account_service_pb2.DisableAccountRequest(id=scene.account_id)
    return scene.admin.accounts.DisableAccount(request)


MUTATIONS: dict[str, Expected] = {
    "CreateUser": Expected(
        lambda scene: scene.admin.create_user("new@example.com", display_name="New"),
        "USER_CREATED",
        lambda scene, answer: str(answer.id),
        "USER",
        {
            "email": ("", "new@example.com"),
            "display_name": ("", "New"),
            "role": ("", "ADMIN"),
            "type": ("", "PERSON"),
        },
    ),
    "UpdateUser": Expected(
        lambda scene: scene.admin.update_user(
            scene.user_id, {"role": "ROLE_VALIDATOR", "display_name": "V"}
        ),
        "USER_UPDATED",
        lambda scene, answer: scene.user_id,
        "USER",
        {"display_name": ("U", "V"), "role": ("DEVELOPER", "VALIDATOR")},
    ),
    "CreateApiKey": Expected(
        lambda scene: scene.admin.create_key(
            name="n", owner_id=scene.user_id, scopes=["a", "b"], labels={"x": "1", "a": "2"}
        ),
        "API_KEY_CREATED",
        lambda scene, answer: str(answer.api_key.id),
        "API_KEY",
        {
            "name": ("", "n"),
            "role": ("", "DEVELOPER"),
            "scopes": ("", "a b"),
            "labels": ("", "a=2 x=1"),
            "secret_version": ("", "1"),
            "state": ("", "ACTIVE"),
        },
    ),
    "UpdateApiKey": Expected(
        lambda scene: scene.admin.update_key(scene.key_id, {"name": "m", "scopes": []}),
        "API_KEY_UPDATED",
        lambda scene, answer: scene.key_id,
        "API_KEY",
        {"name": ("k", "m"), "scopes": ("a", "")},
    ),
    "DisableApiKey": Expected(
        lambda scene: scene.admin.disable_key(scene.key_id),
        "API_KEY_DISABLED",
        lambda scene, answer: scene.key_id,
        "API_KEY",
        {"state": ("ACTIVE", "DISABLED")},
    ),
    "RotateApiKey": Expected(
        lambda scene: scene.admin.rotate(scene.key_id, overlap=timedelta(seconds=1)),
        "API_KEY_ROTATED",
        lambda scene, answer: scene.key_id,
        "API_KEY",
        {"secret_version": ("1", "2"), "overlap_end_time": ("", rfc3339(at(SECOND)))},
    ),
    "RevokeApiKey": Expected(
        lambda scene: scene.admin.revoke(scene.key_id, note="n"),
        "API_KEY_REVOKED",
        lambda scene, answer: scene.key_id,
        "API_KEY",
        {
            "revocation_reason": ("", "LOST"),
            "revocation_note": ("", "n"),
            "state": ("ACTIVE", "REVOKED"),
        },
    ),
    "DisableAccount": Expected(
        _disable_account,
        "ACCOUNT_DISABLED",
        lambda scene, answer: scene.account_id,
        "ACCOUNT",
        {},
    ),
    "CreateAccount": Expected(
        lambda scene: scene.admin.create_account("acme"),
        "ACCOUNT_CREATED",
        lambda scene, answer: str(answer.account.id),
        "ACCOUNT",
        {"name": ("", "acme"), "admin_email": ("", "admin@acme.example.com")},
    ),
}


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_mutation_writes_one_event_with_actor_target_and_changes(
    service: Service, scene: Scene, name: str
) -> None:
    """In its own transaction: exactly one more, naming the caller's key and user."""
    expected = MUTATIONS[name]
    before = scene.admin.events(account_id="-")
    answer = expected.do(scene)
    events = scene.admin.events(account_id="-")
    assert len(events) == len(before) + 1
    event = events[0]
    assert action_of(event) == expected.action
    assert event.target.id == expected.target(scene, answer)
    assert audit_event_pb2.AuditTargetType.Name(event.target.type).endswith(
        f"_{expected.target_type}"
    )
    assert event.actor == audit_event_pb2.AuditActor(
        type=audit_event_pb2.AUDIT_ACTOR_TYPE_KEY,
        key_id=service.admin_key_id,
        user_id=service.admin_user_id,
        user_email="admin@example.com",
    )
    assert expected.changes.items() <= changes_of(event).items()
    assert set(changes_of(event)) - set(expected.changes) <= {
        "owner_id",
        "admin_user_id",
        "api_key_id",
    }
    assert (event.peer, len(event.request_id), len(event.hash)) == ("127.0.0.1", 16, 32)


def test_the_enabling_of_keys_and_accounts_is_told_too(scene: Scene) -> None:
    """As the disabling is."""
    scene.admin.disable_key(scene.key_id)
    scene.admin.enable_key(scene.key_id)
    _disable_account(scene)
    request = account_service_pb2.EnableAccountRequest(id=scene.account_id)
    scene.admin.accounts.EnableAccount(request)
    assert [action_of(one) for one in scene.admin.events(account_id="-")][:4] == [
        "ACCOUNT_ENABLED",
        "ACCOUNT_DISABLED",
        "API_KEY_ENABLED",
        "API_KEY_DISABLED",
    ]


def test_a_cascade_is_one_event_with_its_ids(scene: Scene) -> None:
    """The deletion of a user names the keys it revoked."""
    other = scene.admin.create_key(owner_id=scene.user_id).api_key.id
    before = len(scene.admin.events())
    scene.admin.delete_user(scene.user_id)
    events = scene.admin.events()
    assert len(events) == before + 1
    changes = changes_of(events[0])
    assert set(changes["revoked_key_ids"][1].split(",")) == {scene.key_id, other}
    assert changes["revoked_key_ids_count"] == ("", "2")


def test_the_request_id_of_a_request_stands_in_its_event(scene: Scene) -> None:
    """Otherwise the server's own id of the call does."""
    request_id = "11111111-1111-4111-8111-111111111111"
    made = scene.admin.create_key(request_id=request_id)
    assert scene.admin.events(target_id=made.api_key.id)[0].request_id == request_id


def test_a_holder_is_named_by_the_key_alone(service: Service, scene: Scene) -> None:
    """Who revoked by holding is not known."""
    service.as_token("irrelevant").revoke_token(scene.token)
    event = scene.admin.events(target_id=scene.key_id)[0]
    assert action_of(event) == "API_KEY_REVOKED"
    assert event.actor == audit_event_pb2.AuditActor(
        type=audit_event_pb2.AUDIT_ACTOR_TYPE_HOLDER, key_id=scene.key_id
    )


def test_the_end_of_an_overlap_by_its_holder_is_told(service: Service, scene: Scene) -> None:
    """As what it is."""
    scene.admin.rotate(scene.key_id, overlap=timedelta(hours=1))
    service.as_token("irrelevant").revoke_token(scene.token)
    assert action_of(scene.admin.events(target_id=scene.key_id)[0]) == "API_KEY_OVERLAP_ENDED"


def test_renewing_oneself_is_told(service: Service, scene: Scene) -> None:
    """With the key as actor and as target."""
    service.as_token(scene.token).rotate_self()
    event = scene.admin.events(target_id=scene.key_id)[0]
    assert action_of(event) == "API_KEY_ROTATED"
    assert (event.actor.key_id, event.actor.user_id) == (scene.key_id, scene.user_id)


def test_a_change_that_failed_leaves_no_event(scene: Scene) -> None:
    """Neither a bad field, nor an impossible state, nor an unknown id is a change."""
    before = len(scene.admin.events())
    for call in (
        lambda: scene.admin.create_key(name=""),
        lambda: scene.admin.key("0" * 16),
        lambda: scene.admin.update_key(scene.key_id, {"name": "x"}, etag="wrong"),
        lambda: scene.admin.create_user("u@example.com"),
    ):
        refused(call)
    assert len(scene.admin.events()) == before


# --- refusals -------------------------------------------------------------------------------------


def test_a_refused_management_call_is_told_with_its_caller(service: Service, admin: Stubs) -> None:
    """With the method as target and the reason; in the log of the caller's account."""
    made = admin.create_key(role="ROLE_DEVELOPER")
    refused(service.as_token(made.token).list_keys)
    event = admin.events()[0]
    assert action_of(event) == "CALL_REFUSED"
    assert event.target.id == "/keybearer.v1.ApiKeyService/ListApiKeys"
    assert event.actor.key_id == made.api_key.id
    assert changes_of(event) == {"reason": ("", "ROLE_INSUFFICIENT")}


def test_a_refusal_of_nobody_known_stands_in_the_operators_log(
    service: Service, admin: Stubs
) -> None:
    """As an anonymous actor; the presented text is nowhere."""
    token = admin.create_key().token
    refused(service.as_token(token[:-1] + "_").list_keys)
    event = admin.events()[0]
    assert (action_of(event), event.actor.type) == ("CALL_REFUSED", 4)
    assert changes_of(event) == {"reason": ("", "CREDENTIALS_INVALID")}
    assert token[24:60] not in str(admin.events())


def test_a_tenants_refusals_stand_in_the_tenants_log(service: Service, admin: Stubs) -> None:
    """And not in the operator's."""
    tenant = service.tenant()
    refused(lambda: tenant.stubs.create_account("x"))
    assert action_of(tenant.stubs.events()[0]) == "CALL_REFUSED"
    assert "CALL_REFUSED" not in {action_of(one) for one in admin.events()}


def test_validating_calls_that_are_refused_are_not_told_one_by_one(
    service: Service, admin: Stubs
) -> None:
    """The log is of management calls."""
    before = len(admin.events())
    refused(lambda: service.with_role("ROLE_DEVELOPER").validate("x"))
    refused(service.as_token("garbage").who_am_i)
    assert len(admin.events()) == before + 1  # the making of the key


@pytest.mark.usefixtures("one_node")
def test_ten_refusals_a_minute_are_told_and_then_a_count(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """One more event with the number of the rest once the minute is over."""
    caller = service.with_role("ROLE_DEVELOPER")
    for _ in range(14):
        refused(caller.list_keys)

    def refusals() -> list[Event]:
        return [one for one in admin.events() if action_of(one) == "CALL_REFUSED"]

    assert len(refusals()) == 10
    clock.advance(MINUTE)
    service.only_node.container.refusals.flush_suppressed()
    told = refusals()
    assert len(told) == 11
    assert changes_of(told[0]) == {"refused_calls_not_listed": ("", "4")}
    assert told[0].actor.key_id == told[1].actor.key_id


@pytest.mark.usefixtures("one_node")
def test_each_caller_has_ten_refusals_of_its_own(service: Service, admin: Stubs) -> None:
    """A loud one hides nobody."""
    loud, quiet = service.with_role("ROLE_DEVELOPER"), service.with_role("ROLE_VALIDATOR")
    for _ in range(12):
        refused(loud.list_keys)
    refused(quiet.list_keys)
    refusals = [one for one in admin.events() if action_of(one) == "CALL_REFUSED"]
    assert len(refusals) == 11


@pytest.mark.usefixtures("one_node")
def test_counted_refusals_are_told_at_a_shutdown(service: Service, admin: Stubs) -> None:
    """Nothing is forgotten by stopping."""
    caller = service.with_role("ROLE_DEVELOPER")
    for _ in range(13):
        refused(caller.list_keys)
    service.only_node.container.refusals.flush_suppressed(everything=True)
    assert changes_of(admin.events()[0]) == {"refused_calls_not_listed": ("", "3")}


# --- reading --------------------------------------------------------------------------------------


@pytest.fixture
def story(admin: Stubs, clock: FakeClock) -> Stubs:
    """A user, and a key that was made and revoked, a minute apart each."""
    clock.advance(MINUTE)
    admin.create_user("u@example.com")
    clock.advance(MINUTE)
    key_id = admin.create_key().api_key.id
    clock.advance(MINUTE)
    admin.revoke(key_id)
    return admin


def moment(minutes: int, micros: int = 0) -> datetime:
    """A moment of the story."""
    return datetime.fromtimestamp(START // SECOND, UTC) + timedelta(
        minutes=minutes, microseconds=micros
    )


MADE, USER, KEY, DEAD = (
    "INSTALLATION_CREATED",
    "USER_CREATED",
    "API_KEY_CREATED",
    "API_KEY_REVOKED",
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [DEAD, KEY, USER, MADE]),
        ({"actions": ["AUDIT_ACTION_USER_CREATED", "AUDIT_ACTION_API_KEY_REVOKED"]}, [DEAD, USER]),
        ({"after": moment(2)}, [DEAD]),
        ({"after": moment(2, -1)}, [DEAD, KEY]),
        ({"before": moment(1)}, [MADE]),
        ({"before": moment(1, 1)}, [USER, MADE]),
        ({"after": moment(0), "before": moment(3)}, [KEY, USER]),
        ({"actor_id": "0" * 16}, []),
        ({"target_id": "0" * 16}, []),
    ],
)
@pytest.mark.parametrize("size", [1, 3])
def test_events_are_listed_newest_first_and_filtered(
    story: Stubs, fields: dict[str, Any], expected: list[str], size: int
) -> None:
    """In pages; the bounds of time are exclusive."""
    found: list[str] = []
    token = ""
    while True:
        request = audit_service_pb2.ListAuditEventsRequest(
            page_size=size, page_token=token, **fields
        )
        page = story.audit.ListAuditEvents(request)
        found += [action_of(one) for one in page.audit_events]
        token = page.next_page_token
        if not token:
            break
    assert found == expected


def test_events_of_an_actor_are_found_by_key_and_by_user(service: Service, story: Stubs) -> None:
    """Either id."""
    by_key = story.events(actor_id=service.admin_key_id)
    assert [action_of(one) for one in by_key] == [DEAD, KEY, USER]
    assert story.events(actor_id=service.admin_user_id) == by_key


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"actions": [0]}, "actions[0]"),
        ({"actions": [999]}, "actions[0]"),
        ({"after": {"nanos": -1}}, "after"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
    ],
)
def test_a_filter_that_is_none_is_refused(admin: Stubs, fields: dict[str, Any], field: str) -> None:
    """The error names the field."""
    refusal = refused(lambda: admin.events(**fields))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


def test_operators_read_the_whole_installations_log(service: Service, admin: Stubs) -> None:
    """By `-`; a tenant's by its id."""
    tenant = service.tenant()
    tenant.stubs.create_key()
    assert [one.seq for one in admin.events(account_id="-")] == [3, 2, 1]
    assert [one.seq for one in admin.events(account_id=tenant.account_id)] == [3, 2]
    assert [one.seq for one in tenant.stubs.events()] == [3, 2]
    assert [one.seq for one in admin.events()] == [1]


def test_the_chain_of_a_busy_service_is_whole(service: Service, scene: Scene) -> None:
    """After every kind of mutation and refusal."""
    for name in sorted(MUTATIONS, key=lambda name: name == "RevokeApiKey"):
        MUTATIONS[name].do(scene)
    for _ in range(12):
        refused(service.as_token("garbage").list_keys)
    container = service.app.container
    report, head_findings = offline_audit.verify_audit(
        container.store, container.keyring.audit_key, None
    )
    assert report.broken_seq is None
    assert head_findings == []
    assert report.events == len(scene.admin.events(account_id="-", page_size=1000))


def test_no_event_holds_a_secret(service: Service, scene: Scene) -> None:
    """Not one of the tokens that were handed out."""
    secrets = [scene.token, scene.admin.create_key().token, scene.admin.rotate(scene.key_id).token]
    text = "".join(offline_audit.export_audit(service.app.container.store))
    assert not [one for one in secrets if one.split("_")[2][:20] in text]
