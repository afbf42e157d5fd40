"""The rules of time: states, outcomes and how long an answer may be reused."""

import itertools
from typing import Any

import pytest

from fakes import START, at
from keybearer._wire.enums import ApiKeyState, Outcome, members_of
from keybearer.access import AccessRule, Role
from keybearer_service.domain.clock import DAY, SECOND, Micros
from keybearer_service.domain.model import key_state
from keybearer_service.domain.verdict import TokenRecord, cache_for_at, outcome_at
from samples import sample_key

ANY = AccessRule()


def record(**changes: Any) -> TokenRecord:
    """A record of an ACTIVE DEVELOPER key of an ADMIN in an enabled account."""
    values: dict[str, Any] = {
        "key_id": "K" * 16,
        "account_id": "A" * 16,
        "owner_id": "O" * 16,
        "key_name": "key",
        "role": 2,
        "scopes": "",
        "labels": "",
        "expire_time": None,
        "disable_time": None,
        "revoke_time": None,
        "secret_version": 1,
        "secret_used": 0,
        "secret_create_time": START,
        "digest": b"",
        "pepper_id": "p",
        "old_digest": None,
        "old_pepper_id": None,
        "old_secret_version": None,
        "overlap_end_time": None,
        "owner_role": 3,
        "owner_email": "o@example.com",
        "owner_type": 1,
        "owner_delete_time": None,
        "account_disable_time": None,
        "account_is_operator": 0,
    }
    return TokenRecord(**{**values, **changes})


@pytest.mark.parametrize(
    ("revoked", "expired", "disabled"), list(itertools.product([False, True], repeat=3))
)
def test_revoked_wins_over_expired_and_expired_over_disabled(
    *, revoked: bool, expired: bool, disabled: bool
) -> None:
    """Whatever else is true, the first of REVOKED, EXPIRED, DISABLED is the state."""
    state = key_state(
        at(-1) if revoked else None,
        START if expired else at(1),
        at(-1) if disabled else None,
        START,
    )
    expected = [
        name
        for name, holds in (
            (ApiKeyState.REVOKED, revoked),
            (ApiKeyState.EXPIRED, expired),
            (ApiKeyState.DISABLED, disabled),
            (ApiKeyState.ACTIVE, True),
        )
        if holds
    ]
    assert state is expected[0]


@pytest.mark.parametrize(
    ("offset", "state"),
    [(-1, ApiKeyState.ACTIVE), (0, ApiKeyState.EXPIRED), (1, ApiKeyState.EXPIRED)],
)
def test_a_key_expires_to_the_microsecond(offset: int, state: ApiKeyState) -> None:
    """At `expire_time` itself it is expired."""
    assert sample_key(expire_time=at(DAY)).state_at(at(DAY + offset)) is state


@pytest.mark.parametrize(("offset", "overlaps"), [(-1, True), (0, False), (1, False)])
def test_an_overlap_ends_to_the_microsecond(offset: int, *, overlaps: bool) -> None:
    """At `overlap_end_time` itself the old secret is dead."""
    assert sample_key(overlap_end_time=START).overlaps_at(at(offset)) == overlaps


@pytest.mark.parametrize(("granted", "owner"), list(itertools.product([1, 2, 3], repeat=2)))
def test_the_effective_role_is_the_lower_of_both(granted: int, owner: int) -> None:
    """A key never holds more than its owner, nor more than it was granted."""
    assert record(role=granted, owner_role=owner).effective_role == min(granted, owner)
    key = sample_key(role=Role(granted), owner_role=Role(owner))
    assert key.effective_role == min(granted, owner)


ORDER: list[tuple[Outcome, dict[str, Any]]] = [
    (Outcome.REVOKED, {"revoke_time": START}),
    (Outcome.EXPIRED, {"expire_time": START}),
    (Outcome.DISABLED, {"disable_time": START}),
    (Outcome.ROLE_INSUFFICIENT, {"owner_role": 1}),
    (Outcome.SCOPE_INSUFFICIENT, {"scopes": "other"}),
]
"""In the order of the contract, with what of a record brings each about."""
RULE = AccessRule(role=Role.DEVELOPER, scopes=("a.b",))


@pytest.mark.parametrize("wrong", list(itertools.product([False, True], repeat=len(ORDER))))
def test_the_first_thing_wrong_is_told(
    wrong: tuple[bool, ...],
) -> None:
    """REVOKED, EXPIRED, DISABLED, role, scopes: over all 32 combinations."""
    changes: dict[str, Any] = {"scopes": "a.*"}
    for (_, how), holds in zip(ORDER, wrong, strict=True):
        changes |= how if holds else {}
    expected = [outcome for (outcome, _), holds in zip(ORDER, wrong, strict=True) if holds]
    assert outcome_at(record(**changes), RULE, START) is (expected or [Outcome.VALID])[0]


def test_a_disabled_account_disables_its_keys() -> None:
    """After REVOKED and EXPIRED, as a disabled key."""
    assert outcome_at(record(account_disable_time=START), ANY, START) is Outcome.DISABLED
    revoked = record(account_disable_time=START, revoke_time=START)
    assert outcome_at(revoked, ANY, START) is Outcome.REVOKED
    expired = record(account_disable_time=START, expire_time=START)
    assert outcome_at(expired, ANY, START) is Outcome.EXPIRED


def test_a_deleted_owners_key_is_never_valid() -> None:
    """Should such a row ever be read unrevoked, it is a denial all the same."""
    assert outcome_at(record(owner_delete_time=START), ANY, START) is Outcome.REVOKED


NEGATIVE = [one for one in members_of(Outcome) if one is not Outcome.VALID]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (None, 60 * SECOND),
        (61 * SECOND, 60 * SECOND),
        (60 * SECOND, 60 * SECOND),
        (60 * SECOND - 1, 60 * SECOND - 1),
        (1, 1),
        (0, 0),
        (-1, 0),
    ],
)
def test_a_valid_answer_is_reused_up_to_60_seconds_and_never_past_its_end(
    left: int | None, expected: int
) -> None:
    """The end is the expiry, or for an old secret the end of its overlap."""
    until = None if left is None else at(left)
    assert cache_for_at(Outcome.VALID, until, START) == expected


@pytest.mark.parametrize("outcome", NEGATIVE)
@pytest.mark.parametrize("left", [None, DAY, 1, 0, -DAY])
def test_a_negative_answer_is_reused_for_at_most_a_second(
    outcome: Outcome, left: int | None
) -> None:
    """Whatever the reason and whatever is left of the key."""
    until = None if left is None else at(left)
    assert 0 <= cache_for_at(outcome, until, START) <= SECOND


@pytest.mark.parametrize("outcome", [Outcome.ROLE_INSUFFICIENT, Outcome.SCOPE_INSUFFICIENT])
def test_a_refusal_of_the_question_never_outlives_the_key(outcome: Outcome) -> None:
    """Its identity is what a client keeps, and that ends with the key."""
    assert cache_for_at(outcome, at(5), START) == 5


ROTATED = {
    "secret_version": 2,
    "old_secret_version": 1,
    "overlap_end_time": at(DAY),
    "expire_time": at(2 * DAY),
}


@pytest.mark.parametrize(
    ("changes", "version", "moment", "expected"),
    [
        ({}, 1, START, (1, None, True)),
        ({}, 2, START, None),
        ({}, 0, START, None),
        (ROTATED, 2, START, (2, at(2 * DAY), True)),
        (ROTATED, 2, at(3 * DAY), (2, at(2 * DAY), True)),
        (ROTATED, 1, at(DAY - 1), (1, at(DAY), False)),
        (ROTATED, 1, at(DAY), None),
        (ROTATED, 3, START, None),
        ({**ROTATED, "overlap_end_time": None}, 1, START, None),
        ({"secret_version": 3, "overlap_end_time": at(DAY)}, 1, START, None),
    ],
)
def test_a_secret_works_while_it_is_current_or_overlaps(
    changes: dict[str, Any],
    version: int,
    moment: Micros,
    expected: tuple[int, Micros | None, bool] | None,
) -> None:
    """The old one until the end of its overlap; the key's own expiry is judged elsewhere."""
    found = record(**changes).secret_of(version, moment)
    assert (None if found is None else found[1:]) == expected
