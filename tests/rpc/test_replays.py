"""Replays: a lost answer costs neither a key nor a second one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest

from fakes import FakeClock
from harness import Service, Stubs, refused
from keybearer_service.domain.clock import HOUR, MINUTE, SECOND

R1 = "11111111-1111-4111-8111-111111111111"
R2 = "22222222-2222-4222-8222-222222222222"


def test_a_greater_attempt_mints_a_fresh_token_of_the_same_key(admin: Stubs) -> None:
    """Same id, another token, `replayed`; the lost token is dead."""
    first = admin.create_key(request_id=R1)
    second = admin.create_key(request_id=R1, attempt=1)
    assert (first.replayed, second.replayed) == (False, True)
    assert second.api_key.id == first.api_key.id
    assert second.token != first.token
    assert (admin.outcome(first.token), admin.outcome(second.token)) == ("NOT_FOUND", "VALID")


def test_a_replay_makes_no_second_key(admin: Stubs) -> None:
    """However often the answer is lost."""
    before = len(admin.list_keys().api_keys)
    for attempt in range(5):
        admin.create_key(request_id=R1, attempt=attempt)
    assert len(admin.list_keys().api_keys) == before + 1


@pytest.mark.parametrize("attempt", [3, 2, 0])
def test_an_equal_or_smaller_attempt_is_a_delayed_duplicate(admin: Stubs, attempt: int) -> None:
    """ALREADY_EXISTS with the key's id, and the token that was answered goes on working."""
    made = admin.create_key(request_id=R1, attempt=3)
    refusal = refused(lambda: admin.create_key(request_id=R1, attempt=attempt))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "REPLAY_IMPOSSIBLE",
    )
    assert refusal.metadata == {"api_key_id": made.api_key.id}
    assert admin.outcome(made.token) == "VALID"


BODIES: dict[str, dict[str, Any]] = {
    "another name": {"name": "other"},
    "another role": {"role": "ROLE_VALIDATOR"},
    "another scope": {"scopes": ["b"]},
    "another label": {"labels": {"a": "2"}},
    "another expiry": {"ttl": timedelta(hours=1)},
    "another description": {"description": "x"},
}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_another_body_under_the_same_request_id_is_refused(admin: Stubs, name: str) -> None:
    """REQUEST_ID_REUSED with the id of the key that was made, which is left alone."""
    body: dict[str, Any] = {"name": "a", "scopes": ["a"], "labels": {"a": "1", "b": "2"}}
    made = admin.create_key(request_id=R1, **body)
    refusal = refused(
        lambda: admin.create_key(request_id=R1, attempt=1, **{**body, **BODIES[name]})
    )
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
    )
    assert refusal.metadata == {"api_key_id": made.api_key.id}
    assert admin.outcome(made.token) == "VALID"


def test_a_request_id_is_the_same_in_either_case(admin: Stubs) -> None:
    """A UUID has no case."""
    upper = "ABCDEFAB-CDEF-4ABC-8DEF-ABCDEFABCDEF"
    made = admin.create_key(request_id=upper)
    replayed = admin.create_key(request_id=upper.lower(), attempt=1)
    assert replayed.api_key.id == made.api_key.id


def _use(service: Service, admin: Stubs, made: Any, clock: FakeClock) -> None:
    assert admin.outcome(made.token) == "VALID"


def _call_with(service: Service, admin: Stubs, made: Any, clock: FakeClock) -> None:
    service.as_token(made.token).who_am_i()


def _rotate(service: Service, admin: Stubs, made: Any, clock: FakeClock) -> None:
    admin.rotate(made.api_key.id, overlap=timedelta(hours=1))


def _revoke(service: Service, admin: Stubs, made: Any, clock: FakeClock) -> None:
    admin.revoke(made.api_key.id)


def _disable(service: Service, admin: Stubs, made: Any, clock: FakeClock) -> None:
    admin.disable_key(made.api_key.id)


def _wait(service: Service, admin: Stubs, made: Any, clock: FakeClock) -> None:
    clock.advance(10 * MINUTE)


@pytest.mark.parametrize("between", [_use, _call_with, _rotate, _revoke, _disable, _wait])
def test_a_replay_is_impossible_once_the_first_answer_may_matter(
    service: Service,
    admin: Stubs,
    clock: FakeClock,
    between: Callable[[Service, Stubs, Any, FakeClock], None],
) -> None:
    """Used, rotated, revoked, disabled, or ten minutes old."""
    made = admin.create_key(request_id=R1)
    between(service, admin, made, clock)
    refusal = refused(lambda: admin.create_key(request_id=R1, attempt=1))
    assert (refusal.reason, refusal.metadata) == (
        "REPLAY_IMPOSSIBLE",
        {"api_key_id": made.api_key.id},
    )


def test_a_replay_is_possible_until_the_tenth_minute(admin: Stubs, clock: FakeClock) -> None:
    """To the microsecond."""
    admin.create_key(request_id=R1)
    clock.advance(10 * MINUTE - 1)
    assert admin.create_key(request_id=R1, attempt=1).replayed


def test_a_replay_does_not_begin_the_ten_minutes_afresh(admin: Stubs, clock: FakeClock) -> None:
    """They are counted from the first try."""
    admin.create_key(request_id=R1)
    clock.advance(9 * MINUTE)
    admin.create_key(request_id=R1, attempt=1)
    clock.advance(MINUTE)
    refusal = refused(lambda: admin.create_key(request_id=R1, attempt=2))
    assert refusal.reason == "REPLAY_IMPOSSIBLE"


def test_a_replayed_token_that_was_used_cannot_be_replayed(admin: Stubs) -> None:
    """The second answer arrived, so a third try is a duplicate."""
    admin.create_key(request_id=R1)
    second = admin.create_key(request_id=R1, attempt=1)
    assert admin.outcome(second.token) == "VALID"
    refusal = refused(lambda: admin.create_key(request_id=R1, attempt=2))
    assert refusal.reason == "REPLAY_IMPOSSIBLE"


def test_a_request_is_forgotten_after_a_day(admin: Stubs, clock: FakeClock) -> None:
    """Then the same id makes another key."""
    made = admin.create_key(request_id=R1)
    clock.advance(24 * HOUR + 1)
    again = admin.create_key(request_id=R1)
    assert not again.replayed
    assert again.api_key.id != made.api_key.id


def test_another_users_request_of_the_same_id_is_another_request(
    service: Service, admin: Stubs
) -> None:
    """Request ids belong to users."""
    other = admin.create_user("other@example.com")
    others = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=other.id).token)
    made = admin.create_key(request_id=R1)
    theirs = others.create_key(request_id=R1, attempt=1)
    assert not theirs.replayed
    assert theirs.api_key.id != made.api_key.id


def test_another_key_of_the_same_user_may_repeat_a_create(service: Service, admin: Stubs) -> None:
    """The identity of a caller is its user."""
    made = admin.create_key(request_id=R1)
    replayed = service.with_role("ROLE_ADMIN").create_key(request_id=R1, attempt=1)
    assert replayed.api_key.id == made.api_key.id


def test_a_rotation_can_be_replayed(admin: Stubs) -> None:
    """The lost new secret is replaced; the old one lives on for its overlap."""
    made = admin.create_key()
    key_id = made.api_key.id
    lost = admin.rotate(key_id, overlap=timedelta(hours=1), request_id=R1)
    found = admin.rotate(key_id, overlap=timedelta(hours=1), request_id=R1, attempt=1)
    assert found.replayed
    assert found.api_key.overlap_end_time == lost.api_key.overlap_end_time
    outcomes = [admin.outcome(one.token) for one in (made, lost, found)]
    assert outcomes == ["VALID", "NOT_FOUND", "VALID"]


def test_a_use_of_the_old_secret_does_not_forbid_replaying_a_rotation(admin: Stubs) -> None:
    """Its public go on using it while the new one is still lost."""
    made = admin.create_key()
    rotation: dict[str, Any] = {"overlap": timedelta(hours=1), "request_id": R1}
    admin.rotate(made.api_key.id, **rotation)
    assert admin.outcome(made.token) == "VALID"
    assert admin.rotate(made.api_key.id, attempt=1, **rotation).replayed


def test_a_rotation_replayed_after_its_overlap_leaves_the_old_secret_dead(
    admin: Stubs, clock: FakeClock
) -> None:
    """A replay never brings a dead secret back."""
    made = admin.create_key()
    rotation: dict[str, Any] = {"overlap": timedelta(minutes=1), "request_id": R1}
    admin.rotate(made.api_key.id, **rotation)
    clock.advance(MINUTE)
    found = admin.rotate(made.api_key.id, attempt=1, **rotation)
    assert (admin.outcome(made.token), admin.outcome(found.token)) == ("NOT_FOUND", "VALID")


def test_a_create_and_a_rotate_never_share_a_request(admin: Stubs) -> None:
    """The method is part of what was asked."""
    made = admin.create_key(request_id=R1)
    refusal = refused(lambda: admin.rotate(made.api_key.id, request_id=R1, attempt=1))
    assert refusal.reason == "REQUEST_ID_REUSED"


def test_a_rotation_of_oneself_can_be_replayed_with_the_old_secret(service: Service) -> None:
    """Within the overlap the caller still holds what it called with."""
    caller = service.with_role("ROLE_DEVELOPER")
    lost = caller.rotate_self(overlap=timedelta(hours=1), request_id=R1)
    found = caller.rotate_self(overlap=timedelta(hours=1), request_id=R1, attempt=1)
    assert found.replayed
    assert found.token != lost.token
    assert service.admin.outcome(lost.token) == "NOT_FOUND"
    assert service.as_token(found.token).who_am_i().secret_version == 3


def test_rotating_oneself_never_answers_with_another_keys_token(
    service: Service, admin: Stubs
) -> None:
    """The same request id from another key of the same user is another request."""
    mighty = service.with_role("ROLE_DEVELOPER", scopes=["*"])
    weak = service.with_role("ROLE_DEVELOPER", scopes=["a"])
    mighty.rotate_self(overlap=timedelta(hours=1), request_id=R1)
    refusal = refused(
        lambda: weak.rotate_self(overlap=timedelta(hours=1), request_id=R1, attempt=1)
    )
    assert refusal.reason == "REQUEST_ID_REUSED"


def test_an_account_can_be_replayed(service: Service, admin: Stubs) -> None:
    """Account, user and key are those of the first try; the token is fresh."""
    lost = admin.create_account("acme", request_id=R1)
    found = admin.create_account("acme", request_id=R1, attempt=1)
    assert (lost.replayed, found.replayed) == (False, True)
    assert (found.account, found.user) == (lost.account, lost.user)
    assert found.api_key.id == lost.api_key.id
    assert service.as_token(found.token).who_am_i().account_id == lost.account.id
    assert admin.outcome(lost.token, account_id="-") == "NOT_FOUND"


def test_a_replay_is_audited_and_counts_as_a_change(admin: Stubs) -> None:
    """The lost secret's end must reach those who remember it."""
    made = admin.create_key(request_id=R1)
    before = admin.who_am_i().revision
    admin.create_key(request_id=R1, attempt=1)
    assert admin.who_am_i().revision == before + 1
    event = admin.events(target_id=made.api_key.id)[0]
    assert event.action == 17
    assert event.request_id == R1


def test_a_replay_by_somebody_who_may_no_longer_grant_is_refused(
    service: Service, admin: Stubs
) -> None:
    """A demoted administrator's try mints nothing."""
    other = admin.create_user("other@example.com")
    others = service.as_token(admin.create_key(role="ROLE_ADMIN", owner_id=other.id).token)
    lost = others.create_key(request_id=R1)
    admin.update_user(other.id, {"role": "ROLE_DEVELOPER"})
    refusal = refused(lambda: others.create_key(request_id=R1, attempt=1))
    assert refusal.reason == "ROLE_INSUFFICIENT"
    assert admin.outcome(lost.token) == "VALID"


def test_two_requests_make_two_keys(admin: Stubs) -> None:
    """Each id stands for itself, and none at all for nothing."""
    ids = {
        admin.create_key(request_id=R1).api_key.id,
        admin.create_key(request_id=R2).api_key.id,
        admin.create_key().api_key.id,
        admin.create_key().api_key.id,
    }
    assert len(ids) == 4


def test_nothing_recoverable_is_stored(service: Service, admin: Stubs) -> None:
    """No file of the installation holds a token or its secret, lost or answered."""
    made = [admin.create_key(request_id=R1, attempt=n).token for n in range(3)]
    secrets = [token.split("_")[2] for token in made]
    service.flush_uses()
    for path in service.data_dir.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [one for one in secrets if one[:43].encode() in content], path.name


def test_time_alone_does_not_spoil_a_rotation(admin: Stubs, clock: FakeClock) -> None:
    """The ten minutes of a rotation are its own, not the key's."""
    made = admin.create_key()
    clock.advance(HOUR)
    admin.rotate(made.api_key.id, request_id=R1)
    clock.advance(SECOND)
    assert admin.rotate(made.api_key.id, request_id=R1, attempt=1).replayed
