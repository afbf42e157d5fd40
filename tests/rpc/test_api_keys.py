"""ApiKeyService: creating, reading, listing, updating, disabling, rotating, revoking."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from fakes import START, FakeClock
from harness import Service, Stubs, message, refused
from keybearer.v1 import api_key_pb2, api_key_service_pb2
from keybearer_service.domain.clock import DAY, HOUR, MINUTE, SECOND

NOW = datetime.fromtimestamp(START // SECOND, UTC)


def moment(micros: int) -> Timestamp:
    """Write a moment."""
    return Timestamp(seconds=micros // SECOND, nanos=micros % SECOND * 1000)


def state(key: api_key_pb2.ApiKey) -> str:
    """Name the state of a key without its prefix."""
    return api_key_pb2.ApiKeyState.Name(key.state).removeprefix("API_KEY_STATE_")


# --- creating -------------------------------------------------------------------------------------


def test_a_new_key_says_everything_about_itself(service: Service, admin: Stubs) -> None:
    """Every field that was given or follows from the caller stands in the answer."""
    answer = admin.create_key(
        name=" deploy ",
        description=" for the pipeline ",
        role="ROLE_VALIDATOR",
        scopes=["a.*", "b"],
        labels={"team": "x"},
        ttl=timedelta(hours=1),
    )
    assert not answer.replayed
    assert answer.api_key == message(
        api_key_pb2.ApiKey,
        id=answer.token.split("_")[1],
        account_id=service.account_id,
        name="deploy",
        description="for the pipeline",
        owner_id=service.admin_user_id,
        owner_email="admin@example.com",
        role="ROLE_VALIDATOR",
        effective_role="ROLE_VALIDATOR",
        scopes=["a.*", "b"],
        labels={"team": "x"},
        state="API_KEY_STATE_ACTIVE",
        create_time=moment(START),
        created_by=service.admin_user_id,
        created_by_email="admin@example.com",
        update_time=moment(START),
        expire_time=moment(START + HOUR),
        secret_version=1,
        etag=answer.api_key.etag,
    )
    assert answer.api_key.etag


def test_a_key_is_read_as_it_was_made(admin: Stubs) -> None:
    """GetApiKey and ListApiKeys answer the same record."""
    made = admin.create_key().api_key
    assert admin.key(made.id) == made
    assert made in admin.list_keys().api_keys


def test_names_need_not_be_unique(admin: Stubs) -> None:
    """The id tells keys apart."""
    assert admin.create_key(name="same").api_key.id != admin.create_key(name="same").api_key.id


def test_a_key_may_belong_to_another_user(service: Service, admin: Stubs) -> None:
    """Owner and creator are kept apart."""
    owner = admin.create_user("owner@example.com")
    key = admin.create_key(owner_id=owner.id).api_key
    assert (key.owner_id, key.owner_email) == (owner.id, "owner@example.com")
    assert (key.created_by, key.created_by_email) == (service.admin_user_id, "admin@example.com")


@pytest.mark.parametrize("granted", ["ROLE_VALIDATOR", "ROLE_DEVELOPER", "ROLE_ADMIN"])
@pytest.mark.parametrize("owned", ["ROLE_VALIDATOR", "ROLE_DEVELOPER", "ROLE_ADMIN"])
def test_the_effective_role_is_the_lower_one(admin: Stubs, granted: str, owned: str) -> None:
    """Of the granted role and the owner's."""
    owner = admin.create_user("owner@example.com", role=owned)
    made = admin.create_key(owner_id=owner.id, role=granted)
    ranks = ["ROLE_UNSPECIFIED", "ROLE_VALIDATOR", "ROLE_DEVELOPER", "ROLE_ADMIN"]
    expected = min(ranks.index(granted), ranks.index(owned))
    assert made.api_key.effective_role == expected
    assert admin.validate(made.token).effective_role == expected


@pytest.mark.parametrize("owner", ["deleted", "unknown", "foreign"])
def test_an_owner_must_be_a_live_user_of_the_account(
    service: Service, admin: Stubs, owner: str
) -> None:
    """Anything else is not found, all alike."""
    if owner == "deleted":
        owner_id = admin.create_user("gone@example.com").id
        admin.delete_user(owner_id)
    else:
        owner_id = "0" * 16 if owner == "unknown" else service.tenant().user_id
    refusal = refused(lambda: admin.create_key(owner_id=owner_id))
    assert refusal.reason == "RESOURCE_NOT_FOUND"
    assert refusal.metadata == {"resource": "user", "id": owner_id}


BAD_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": ""}, "name"),
    "only blanks": ({"name": " "}, "name"),
    "a long name": ({"name": "x" * 101}, "name"),
    "a name with a control": ({"name": "a\x07"}, "name"),
    "a name with a bidi mark": ({"name": "a\u202e"}, "name"),
    "a long description": ({"description": "x" * 1001}, "description"),
    "no role": ({"role": "ROLE_UNSPECIFIED"}, "role"),
    "an unknown role": ({"role": 9}, "role"),
    "a negative role": ({"role": -1}, "role"),
    "scopes for an admin": ({"role": "ROLE_ADMIN", "scopes": ["a"]}, "scopes"),
    "an ill-formed scope": ({"scopes": ["a", "A"]}, "scopes[1]"),
    "too many scopes": ({"scopes": [f"s{n}" for n in range(65)]}, "scopes"),
    "too many labels": ({"labels": {f"l{n}": "" for n in range(17)}}, "labels"),
    "an ill-formed label": ({"labels": {"A": ""}}, "labels"),
    "a long label": ({"labels": {"a": "v" * 257}}, "labels[a]"),
    "never_expires: false": ({"never_expires": False}, "expiration"),
    "a ttl of 0": ({"ttl": timedelta()}, "ttl"),
    "a negative ttl": ({"ttl": timedelta(seconds=-1)}, "ttl"),
    "a ttl past the year 9999": ({"ttl": timedelta(days=9000 * 365)}, "ttl"),
    "an expiry now": ({"expire_time": NOW}, "expire_time"),
    "an expiry in the past": ({"expire_time": NOW - timedelta(days=1)}, "expire_time"),
    "an attempt without a request": ({"attempt": 1}, "attempt"),
    "a negative attempt": ({"attempt": -1}, "attempt"),
    "a request that is no UUID": ({"request_id": "1"}, "request_id"),
}


@pytest.mark.parametrize("name", sorted(BAD_KEYS))
def test_a_bad_field_is_named_and_nothing_is_made(admin: Stubs, name: str) -> None:
    """INVALID_ARGUMENT with the field, in the details and in the metadata."""
    values, field = BAD_KEYS[name]
    before = len(admin.list_keys().api_keys)
    refusal = refused(lambda: admin.create_key(**values))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "FIELD_INVALID"
    assert refusal.fields == [field]
    assert refusal.metadata == {"field": field}
    assert len(admin.list_keys().api_keys) == before


def test_how_long_a_key_lives_is_always_a_choice(admin: Stubs) -> None:
    """Without any of the three the request is refused."""
    request = message(api_key_service_pb2.CreateApiKeyRequest, name="a", role="ROLE_DEVELOPER")
    assert refused(lambda: admin.keys.CreateApiKey(request)).fields == ["expiration"]


@pytest.mark.parametrize(
    "bad",
    [
        Timestamp(seconds=253_402_300_800),
        Timestamp(nanos=-1),
        Timestamp(nanos=10**9),
        Timestamp(seconds=-62_135_596_801),
        Timestamp(seconds=2**63 - 1),
    ],
    ids=str,
)
def test_a_timestamp_that_is_none_is_refused(admin: Stubs, bad: Timestamp) -> None:
    """Beyond the years 1 to 9999, or with nanoseconds that are none."""
    assert refused(lambda: admin.create_key(expire_time=bad)).fields == ["expire_time"]


def test_a_key_that_never_expires_has_no_expire_time(admin: Stubs) -> None:
    """Absent, never a date far away."""
    assert not admin.create_key(never_expires=True).api_key.HasField("expire_time")


# --- expiry, disabling ----------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "outcome"), [(-1, "VALID"), (0, "EXPIRED"), (1, "EXPIRED")])
def test_a_key_expires_to_the_microsecond(
    admin: Stubs, clock: FakeClock, offset: int, outcome: str
) -> None:
    """At `expire_time` itself it is refused, and shown as EXPIRED."""
    made = admin.create_key(ttl=timedelta(hours=1))
    clock.advance(HOUR + offset)
    assert admin.outcome(made.token) == outcome
    assert state(admin.key(made.api_key.id)) == ("ACTIVE" if outcome == "VALID" else "EXPIRED")


def test_disabling_is_reversible_and_says_since_when(admin: Stubs, clock: FakeClock) -> None:
    """Off, and on again, from one call to the next."""
    made = admin.create_key()
    clock.advance(SECOND)
    disabled = admin.disable_key(made.api_key.id)
    assert (state(disabled), disabled.disable_time) == ("DISABLED", moment(START + SECOND))
    assert admin.outcome(made.token) == "DISABLED"
    enabled = admin.enable_key(made.api_key.id)
    assert state(enabled) == "ACTIVE"
    assert not enabled.HasField("disable_time")
    assert admin.outcome(made.token) == "VALID"


@pytest.mark.parametrize("do", [Stubs.disable_key, Stubs.enable_key])
def test_switching_what_is_switched_so_is_ok_and_changes_nothing(
    admin: Stubs, clock: FakeClock, do: Callable[[Stubs, str], api_key_pb2.ApiKey]
) -> None:
    """Not even the time, the etag or the audit log."""
    key_id = admin.create_key().api_key.id
    once = do(admin, key_id)
    events = len(admin.events())
    clock.advance(SECOND)
    assert do(admin, key_id) == once
    assert len(admin.events()) == events


@pytest.mark.parametrize("do", [Stubs.disable_key, Stubs.enable_key])
def test_a_revoked_key_is_not_switched(
    admin: Stubs, do: Callable[[Stubs, str], api_key_pb2.ApiKey]
) -> None:
    """Revoking is final."""
    key_id = admin.create_key().api_key.id
    admin.revoke(key_id)
    refusal = refused(lambda: do(admin, key_id))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "KEY_REVOKED",
    )
    assert refusal.metadata == {"api_key_id": key_id}


# --- revoking -------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_when_the_call_returns(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """With who, when, why and the note in the record, which stays listed."""
    made = admin.create_key()
    clock.advance(SECOND)
    revoked = admin.revoke(made.api_key.id, "REVOCATION_REASON_COMPROMISED", note=" seen in a log ")
    assert admin.outcome(made.token) == "REVOKED"
    assert state(revoked) == "REVOKED"
    assert revoked.revoke_time == moment(START + SECOND)
    assert revoked.revoked_by == service.admin_user_id
    assert revoked.revocation_reason == api_key_pb2.REVOCATION_REASON_COMPROMISED
    assert revoked.revocation_note == "seen in a log"
    assert revoked in admin.list_keys().api_keys


def test_revoking_again_answers_the_first_revocations_facts(admin: Stubs, clock: FakeClock) -> None:
    """Another reason, note or time changes nothing, and writes no event."""
    key_id = admin.create_key().api_key.id
    first = admin.revoke(key_id, "REVOCATION_REASON_LOST", note="first")
    events = len(admin.events())
    clock.advance(SECOND)
    assert admin.revoke(key_id, "REVOCATION_REASON_COMPROMISED", note="second") == first
    assert len(admin.events()) == events


@pytest.mark.parametrize(
    "reason",
    [
        "REVOCATION_REASON_UNSPECIFIED",
        "REVOCATION_REASON_OWNER_DELETED",
        "REVOCATION_REASON_CREATOR_DELETED",
        "REVOCATION_REASON_REPORTED_BY_HOLDER",
        99,
        -1,
    ],
)
def test_a_reason_must_be_an_administrators_own(admin: Stubs, reason: Any) -> None:
    """The service's own words are not for requests."""
    made = admin.create_key()
    assert refused(lambda: admin.revoke(made.api_key.id, reason)).fields == ["reason"]
    assert admin.outcome(made.token) == "VALID"


def test_an_expired_key_can_be_revoked_and_is_revoked_then(admin: Stubs, clock: FakeClock) -> None:
    """REVOKED wins over EXPIRED."""
    made = admin.create_key(ttl=timedelta(seconds=1))
    clock.advance(SECOND)
    assert state(admin.revoke(made.api_key.id)) == "REVOKED"
    assert admin.outcome(made.token) == "REVOKED"


# --- rotating -------------------------------------------------------------------------------------


def test_a_rotation_keeps_the_key_and_changes_its_secret(admin: Stubs, clock: FakeClock) -> None:
    """Same id and record; the old secret is dead at once without an overlap."""
    made = admin.create_key(scopes=["a"], ttl=timedelta(days=1))
    clock.advance(SECOND)
    rotated = admin.rotate(made.api_key.id)
    assert rotated.token != made.token
    assert rotated.token.split("_")[1] == made.api_key.id
    assert (admin.outcome(made.token), admin.outcome(rotated.token)) == ("NOT_FOUND", "VALID")
    expected = api_key_pb2.ApiKey()
    expected.CopyFrom(admin.key(made.api_key.id))
    assert (rotated.api_key.secret_version, expected.secret_version) == (2, 2)
    for name in ("create_time", "expire_time", "scopes", "role", "name", "owner_id"):
        assert getattr(rotated.api_key, name) == getattr(made.api_key, name)
    assert not rotated.api_key.HasField("overlap_end_time")


@pytest.mark.parametrize(("offset", "outcome"), [(-1, "VALID"), (0, "NOT_FOUND")])
def test_an_overlap_ends_to_the_microsecond(
    admin: Stubs, clock: FakeClock, offset: int, outcome: str
) -> None:
    """At `overlap_end_time` itself the old secret is dead."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(hours=1))
    assert rotated.api_key.overlap_end_time == moment(START + HOUR)
    clock.advance(HOUR + offset)
    assert admin.outcome(made.token) == outcome
    assert admin.outcome(rotated.token) == "VALID"


def test_there_are_never_more_than_two_live_secrets(admin: Stubs) -> None:
    """A second rotation within the overlap ends the oldest at once."""
    first = admin.create_key()
    key_id = first.api_key.id
    second = admin.rotate(key_id, overlap=timedelta(hours=1))
    third = admin.rotate(key_id, overlap=timedelta(hours=1))
    outcomes = [admin.outcome(one.token) for one in (first, second, third)]
    assert outcomes == ["NOT_FOUND", "VALID", "VALID"]
    fourth = admin.rotate(key_id)
    outcomes = [admin.outcome(one.token) for one in (first, second, third, fourth)]
    assert outcomes == ["NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "VALID"]


def test_an_overlap_never_goes_past_the_keys_expiry(admin: Stubs) -> None:
    """It is cut to it."""
    made = admin.create_key(ttl=timedelta(hours=1))
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(days=30))
    assert rotated.api_key.overlap_end_time == rotated.api_key.expire_time


def test_an_overlap_is_cut_when_the_expiry_comes_nearer(admin: Stubs, clock: FakeClock) -> None:
    """An old secret never outlives its key, also when the key's end is moved later."""
    made = admin.create_key()
    admin.rotate(made.api_key.id, overlap=timedelta(days=1))
    updated = admin.update_key(made.api_key.id, paths=["expiration"], ttl=timedelta(hours=1))
    assert updated.overlap_end_time == updated.expire_time
    clock.advance(HOUR)
    assert admin.outcome(made.token) == "NOT_FOUND"


@pytest.mark.parametrize(
    "overlap", [timedelta(days=30, microseconds=1), timedelta(seconds=-1), timedelta(days=9999)]
)
def test_an_overlap_has_at_most_30_days(admin: Stubs, overlap: timedelta) -> None:
    """More, or less than nothing, is refused and nothing is rotated."""
    made = admin.create_key()
    assert refused(lambda: admin.rotate(made.api_key.id, overlap=overlap)).fields == ["overlap"]
    assert admin.outcome(made.token) == "VALID"


def test_an_overlap_of_30_days_is_taken(admin: Stubs) -> None:
    """The limit itself is within it."""
    made = admin.create_key()
    rotated = admin.rotate(made.api_key.id, overlap=timedelta(days=30))
    assert rotated.api_key.overlap_end_time == moment(START + 30 * DAY)


def test_a_dead_secrets_digest_is_erased_at_the_next_write(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Once the overlap is over, any change of the key takes it from the database."""
    key_id = admin.create_key().api_key.id
    admin.rotate(key_id, overlap=timedelta(hours=1))

    def old_digest() -> bytes | None:
        record, _ = service.app.container.store.lookup(key_id)
        assert record is not None
        return record.old_digest

    admin.update_key(key_id, {"name": "b"})
    assert old_digest() is not None
    clock.advance(HOUR)
    admin.update_key(key_id, {"name": "c"})
    assert old_digest() is None


def test_a_rotation_without_an_overlap_keeps_no_digest_of_the_old_secret(
    service: Service, admin: Stubs
) -> None:
    """It is dead at once, so it is not written at all; a revoked key's overlap ends with it."""
    key_id = admin.create_key().api_key.id
    admin.rotate(key_id)
    record, _ = service.app.container.store.lookup(key_id)
    assert record is not None
    assert (record.old_digest, record.old_secret_version) == (None, None)


@pytest.mark.parametrize(
    ("how", "reason"), [("expired", "KEY_EXPIRED"), ("revoked", "KEY_REVOKED")]
)
def test_a_dead_key_is_not_rotated(admin: Stubs, clock: FakeClock, how: str, reason: str) -> None:
    """FAILED_PRECONDITION with the key's id."""
    key_id = admin.create_key(ttl=timedelta(hours=1)).api_key.id
    if how == "revoked":
        admin.revoke(key_id)
    else:
        clock.advance(HOUR)
    refusal = refused(lambda: admin.rotate(key_id))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)
    assert refusal.metadata == {"api_key_id": key_id}


def test_a_disabled_key_stays_disabled_when_it_is_rotated(admin: Stubs) -> None:
    """Its new secret works once it is enabled."""
    key_id = admin.create_key().api_key.id
    admin.disable_key(key_id)
    rotated = admin.rotate(key_id)
    assert admin.outcome(rotated.token) == "DISABLED"
    admin.enable_key(key_id)
    assert admin.outcome(rotated.token) == "VALID"


# --- updating -------------------------------------------------------------------------------------


def test_only_the_fields_of_the_mask_change(admin: Stubs, clock: FakeClock) -> None:
    """What else the request holds is not looked at."""
    made = admin.create_key(description="old", labels={"a": "1"}, scopes=["a"]).api_key
    clock.advance(SECOND)
    values = {"name": "new", "description": "new", "labels": {"b": "2"}, "scopes": ["b"]}
    updated = admin.update_key(made.id, values, paths=["name"])
    expected = api_key_pb2.ApiKey()
    expected.CopyFrom(made)
    expected.name, expected.etag = "new", updated.etag
    expected.update_time.CopyFrom(moment(START + SECOND))
    assert updated == expected
    assert updated.etag != made.etag


UPDATES: dict[str, dict[str, Any]] = {
    "name": {"name": "other"},
    "description": {"description": ""},
    "labels": {"labels": {}},
    "scopes": {"scopes": []},
    "role": {"role": "ROLE_VALIDATOR"},
    "several": {"name": "x", "role": "ROLE_ADMIN", "scopes": []},
}


@pytest.mark.parametrize("name", sorted(UPDATES))
def test_a_field_of_the_mask_is_written_also_when_it_is_empty(admin: Stubs, name: str) -> None:
    """The answer and the record have the new value."""
    made = admin.create_key(description="old", labels={"a": "1"}, scopes=["a"]).api_key
    updated = admin.update_key(made.id, UPDATES[name])
    expected = message(api_key_pb2.ApiKey, **UPDATES[name])
    for field in UPDATES[name]:
        assert getattr(updated, field) == getattr(expected, field)
    assert admin.key(made.id) == updated


def test_an_update_that_changes_nothing_is_no_change(admin: Stubs, clock: FakeClock) -> None:
    """Neither etag, nor time, nor event."""
    made = admin.create_key(name="same").api_key
    events = len(admin.events())
    clock.advance(SECOND)
    assert admin.update_key(made.id, {"name": "same"}) == made
    assert len(admin.events()) == events


BAD_PATHS = [
    [],
    ["*"],
    ["nothing"],
    ["name", "nothing"],
    ["id"],
    ["account_id"],
    ["owner_id"],
    ["state"],
    ["create_time"],
    ["expire_time"],
    ["ttl"],
    ["secret_version"],
    ["etag"],
    ["api_key.name"],
    ["Name"],
    ["name "],
    [""],
]


@pytest.mark.parametrize("paths", BAD_PATHS, ids=repr)
def test_a_mask_that_names_what_cannot_be_written_is_refused(
    admin: Stubs, paths: list[str]
) -> None:
    """Empty, `*`, unknown and output-only paths."""
    made = admin.create_key().api_key
    refusal = refused(lambda: admin.update_key(made.id, {"name": "new"}, paths=paths))
    assert refusal.fields == ["update_mask"]
    assert admin.key(made.id) == made


BAD_UPDATES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no id": ({"id": ""}, {"paths": ["name"]}, "api_key.id"),
    "no name": ({"name": ""}, {}, "api_key.name"),
    "a long description": ({"description": "x" * 1001}, {}, "api_key.description"),
    "a bad label": ({"labels": {"A": ""}}, {}, "api_key.labels"),
    "a bad scope": ({"scopes": ["A"]}, {}, "api_key.scopes[0]"),
    "no role": ({"role": 0}, {}, "api_key.role"),
    "an unknown role": ({"role": 77}, {}, "api_key.role"),
    "scopes with ADMIN": ({"scopes": ["a"], "role": "ROLE_ADMIN"}, {}, "api_key.scopes"),
    "an expiration without a choice": ({}, {"paths": ["expiration"]}, "expiration"),
    "a choice without its path": (
        {"name": "x"},
        {"never_expires": True},
        "update_mask",
    ),
    "never_expires: false": ({}, {"paths": ["expiration"], "never_expires": False}, "expiration"),
    "an expiry now": ({}, {"paths": ["expiration"], "expire_time": NOW}, "expire_time"),
    "a ttl of 0": ({}, {"paths": ["expiration"], "ttl": timedelta()}, "ttl"),
    "an overlap that is not there": (
        {"overlap_end_time": NOW + timedelta(hours=1)},
        {},
        "api_key.overlap_end_time",
    ),
}


@pytest.mark.parametrize("name", sorted(BAD_UPDATES))
def test_a_bad_update_is_named_and_changes_nothing(admin: Stubs, name: str) -> None:
    """INVALID_ARGUMENT with the field."""
    values, fields, field = BAD_UPDATES[name]
    made = admin.create_key().api_key
    key_id = values.get("id", made.id)
    values = {key: value for key, value in values.items() if key != "id"}
    refusal = refused(lambda: admin.update_key(key_id, values, **fields))
    assert refusal.fields == [field]
    assert admin.key(made.id) == made


def test_an_admin_key_with_no_scopes_left_out_cannot_become_one_with_scopes(admin: Stubs) -> None:
    """Raising the role alone, while scopes stay, is refused as a contradiction."""
    made = admin.create_key(scopes=["a"]).api_key
    refusal = refused(lambda: admin.update_key(made.id, {"role": "ROLE_ADMIN"}))
    assert refusal.fields == ["api_key.scopes"]


@pytest.mark.parametrize("choice", ["expire_time", "ttl", "never_expires"])
def test_an_expiry_can_be_chosen_anew(admin: Stubs, choice: str) -> None:
    """By each of the three ways."""
    made = admin.create_key(ttl=timedelta(hours=1)).api_key
    chosen: dict[str, Any] = {
        "expire_time": NOW + timedelta(days=1),
        "ttl": timedelta(days=1),
        "never_expires": True,
    }
    updated = admin.update_key(made.id, paths=["expiration"], **{choice: chosen[choice]})
    if choice == "never_expires":
        assert not updated.HasField("expire_time")
    else:
        assert updated.expire_time == moment(START + DAY)


def test_an_expired_key_is_not_revived(admin: Stubs, clock: FakeClock) -> None:
    """Its name may still change, its expiry may not."""
    made = admin.create_key(ttl=timedelta(hours=1))
    clock.advance(HOUR)
    refusal = refused(
        lambda: admin.update_key(made.api_key.id, paths=["expiration"], never_expires=True)
    )
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "KEY_EXPIRED",
    )
    assert admin.update_key(made.api_key.id, {"name": "renamed"}).name == "renamed"
    assert admin.outcome(made.token) == "EXPIRED"


def test_a_revoked_key_is_not_updated(admin: Stubs) -> None:
    """Not even its name."""
    made = admin.create_key().api_key
    revoked = admin.revoke(made.id)
    assert refused(lambda: admin.update_key(made.id, {"name": "new"})).reason == "KEY_REVOKED"
    assert admin.key(made.id) == revoked


def test_an_overlap_can_be_shortened_and_not_lengthened(admin: Stubs, clock: FakeClock) -> None:
    """Earlier only, and in the future."""
    made = admin.create_key()
    key_id = made.api_key.id
    admin.rotate(key_id, overlap=timedelta(hours=2))
    path = "overlap_end_time"
    for wrong in (NOW + timedelta(hours=2, microseconds=1), NOW, NOW - timedelta(days=1)):
        refusal = refused(partial(admin.update_key, key_id, {path: wrong}))
        assert refusal.fields == [f"api_key.{path}"]
    assert refused(lambda: admin.update_key(key_id, paths=[path])).fields == [f"api_key.{path}"]
    updated = admin.update_key(key_id, {path: NOW + timedelta(minutes=1)})
    assert updated.overlap_end_time == moment(START + MINUTE)
    clock.advance(MINUTE)
    assert admin.outcome(made.token) == "NOT_FOUND"


def test_an_etag_refuses_a_change_of_what_has_changed_since(admin: Stubs) -> None:
    """ABORTED; with the current one, or none, the change is made."""
    made = admin.create_key().api_key
    second = admin.update_key(made.id, {"name": "second"}, etag=made.etag)
    refusal = refused(lambda: admin.update_key(made.id, {"name": "third"}, etag=made.etag))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    in_key = {"name": "third", "etag": made.etag}
    refusal = refused(lambda: admin.update_key(made.id, in_key, paths=["name"]))
    assert refusal.reason == "ETAG_MISMATCH"
    assert admin.key(made.id) == second
    assert admin.update_key(made.id, {"name": "third"}).name == "third"


def test_use_does_not_change_the_etag(service: Service, admin: Stubs) -> None:
    """Nor the time of the last update."""
    made = admin.create_key()
    assert admin.outcome(made.token) == "VALID"
    service.flush_uses()
    used = admin.key(made.api_key.id)
    assert used.use_count == 1
    assert (used.etag, used.update_time) == (made.api_key.etag, made.api_key.update_time)


# --- usage ----------------------------------------------------------------------------------------


def test_uses_are_counted_with_the_time_of_the_last(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Valid answers count, denials do not, and neither does reading the record."""
    made = admin.create_key()
    assert not admin.key(made.api_key.id).HasField("last_used_time")
    for _ in range(3):
        clock.advance(SECOND)
        admin.validate(made.token)
    clock.advance(SECOND)
    admin.validate(made.token, required_role="ROLE_ADMIN")
    service.flush_uses()
    used = admin.key(made.api_key.id)
    assert (used.use_count, used.last_used_time) == (3, moment(START + 3 * SECOND))


def test_calling_with_a_key_is_a_use_of_it(service: Service, admin: Stubs) -> None:
    """The management API's own callers are counted too."""
    made = admin.create_key(role="ROLE_ADMIN")
    service.as_token(made.token).who_am_i()
    service.flush_uses()
    assert admin.key(made.api_key.id).use_count == 1


def test_the_old_secrets_last_use_is_told_apart(
    service: Service, admin: Stubs, clock: FakeClock
) -> None:
    """Who still uses the old secret is seen until the next rotation."""
    made = admin.create_key()
    key_id = made.api_key.id
    rotated = admin.rotate(key_id, overlap=timedelta(hours=1))
    clock.advance(SECOND)
    admin.validate(rotated.token)
    service.flush_uses()
    assert not admin.key(key_id).HasField("old_secret_last_used_time")
    clock.advance(SECOND)
    admin.validate(made.token)
    service.flush_uses()
    assert admin.key(key_id).old_secret_last_used_time == moment(START + 2 * SECOND)
    assert not admin.rotate(key_id).api_key.HasField("old_secret_last_used_time")


# --- listing --------------------------------------------------------------------------------------


def names(admin: Stubs, **fields: Any) -> list[str]:
    """List the names of the keys but for the administrator's own, over all pages."""
    found: list[str] = []
    token = ""
    while True:
        page = admin.list_keys(page_token=token, **fields)
        found += [key.name for key in page.api_keys if key.name != "first admin key"]
        token = page.next_page_token
        if not token:
            return found


@pytest.fixture
def listed(service: Service, admin: Stubs, clock: FakeClock) -> Stubs:
    """One key in each state, with different names, expiries and uses."""
    clock.advance(MINUTE)
    used = admin.create_key(name="b used")
    clock.advance(MINUTE)
    disabled = admin.create_key(name="a disabled", ttl=timedelta(days=3)).api_key
    clock.advance(MINUTE)
    revoked = admin.create_key(name="d revoked%_", ttl=timedelta(days=2)).api_key
    clock.advance(MINUTE)
    expired = admin.create_key(name="c EXPIRED", ttl=timedelta(seconds=1))
    admin.validate(expired.token)
    clock.advance(SECOND)
    admin.validate(used.token)
    admin.disable_key(disabled.id)
    admin.revoke(revoked.id)
    service.flush_uses()
    return admin


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "cdab"),
        ({"order_by": "create_time"}, "badc"),
        ({"order_by": "create_time desc"}, "cdab"),
        ({"order_by": "name"}, "abcd"),
        ({"order_by": "name desc"}, "dcba"),
        ({"order_by": "expire_time"}, "cdab"),
        ({"order_by": "expire_time desc"}, "badc"),
        ({"order_by": " name "}, "abcd"),
        ({"states": ["API_KEY_STATE_ACTIVE"]}, "b"),
        ({"states": ["API_KEY_STATE_EXPIRED", "API_KEY_STATE_REVOKED"]}, "cd"),
        ({"states": ["API_KEY_STATE_DISABLED"]}, "a"),
        ({"name_contains": "expired"}, "c"),
        ({"name_contains": "%_"}, "d"),
        ({"name_contains": "x%"}, ""),
        ({"expires_before": NOW + timedelta(hours=1)}, "c"),
        ({"owner_id": "0" * 16}, ""),
        ({"unused_since": NOW + timedelta(minutes=4)}, "da"),
        ({"unused_since": NOW + timedelta(minutes=4, microseconds=1)}, "cda"),
    ],
)
def test_lists_are_filtered_and_ordered(
    listed: Stubs, fields: dict[str, Any], expected: str
) -> None:
    """Each filter narrows, each order holds; revoked and expired keys stay listed."""
    assert "".join(name[0] for name in names(listed, **fields)) == expected


@pytest.mark.parametrize("order", ["last_used_time", "last_used_time desc"])
def test_never_used_keys_come_first_in_rising_order_of_use(listed: Stubs, order: str) -> None:
    """As if they had been used before all others."""
    rising = "".join(name[0] for name in names(listed, order_by="last_used_time"))
    assert rising[2:] == "cb"
    falling = "".join(name[0] for name in names(listed, order_by="last_used_time desc"))
    assert falling == rising[::-1]


@pytest.mark.parametrize(
    ("order", "size"),
    list(
        itertools.product(
            ["", "create_time", "name desc", "expire_time", "last_used_time desc"], [1, 2, 3]
        )
    ),
)
def test_pages_put_together_are_the_whole_list(listed: Stubs, order: str, size: int) -> None:
    """In whatever order and size."""
    assert names(listed, order_by=order, page_size=size) == names(listed, order_by=order)


@pytest.mark.parametrize(
    "order",
    ["nothing", "name asc", "name  desc", "name desc desc", "-name", "name,create_time", "NAME"],
)
def test_an_order_that_is_none_is_refused(admin: Stubs, order: str) -> None:
    """The error names the field."""
    assert refused(lambda: admin.list_keys(order_by=order)).fields == ["order_by"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"states": [0]}, "states[0]"),
        ({"states": ["API_KEY_STATE_ACTIVE", 99]}, "states[1]"),
        ({"name_contains": "a\0"}, "name_contains"),
        ({"expires_before": Timestamp(nanos=-1)}, "expires_before"),
        ({"unused_since": Timestamp(seconds=2**62)}, "unused_since"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": "\u00e9"}, "page_token"),
    ],
)
def test_a_filter_that_is_none_is_refused(admin: Stubs, fields: dict[str, Any], field: str) -> None:
    """The error names the field."""
    assert refused(lambda: admin.list_keys(**fields)).fields == [field]


def test_a_page_token_is_bound_to_its_list(listed: Stubs) -> None:
    """With another filter or order it is of another list; another size is fine."""
    token = listed.list_keys(page_size=1).next_page_token
    assert listed.list_keys(page_size=2, page_token=token).api_keys
    others: list[dict[str, Any]] = [{"order_by": "name"}, {"name_contains": "a"}, {"states": [1]}]
    for other in others:
        refusal = refused(partial(listed.list_keys, page_token=token, **other))
        assert refusal.fields == ["page_token"]
    refusal = refused(lambda: listed.list_users(page_token=token))
    assert refusal.fields == ["page_token"]


def test_the_default_page_has_fifty_keys(admin: Stubs) -> None:
    """And a token for the rest."""
    for n in range(50):
        admin.create_key(name=f"k{n}")
    page = admin.list_keys()
    assert len(page.api_keys) == 50
    assert len(admin.list_keys(page_token=page.next_page_token).api_keys) == 1
