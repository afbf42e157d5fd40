"""Access rules: roles, and the lattice of scopes."""

import itertools
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keybearer.access import (
    NO_CONTEXT,
    AccessRule,
    Decision,
    Role,
    RuleError,
    decide,
    is_held_scope,
    is_required_scope,
)

VALIDATOR, DEVELOPER, ADMIN = Role.VALIDATOR, Role.DEVELOPER, Role.ADMIN
ROLES = (VALIDATOR, DEVELOPER, ADMIN)


part = st.text(alphabet="ab0", min_size=1, max_size=3)
scope = st.builds(".".join, st.lists(part, min_size=1, max_size=3))
held_scope = st.one_of(st.just("*"), scope, scope.map(lambda one: f"{one}.*"))


def scope_met(required: str, held: Collection[str]) -> bool:
    """Tell whether `held` scopes let a Developer pass where only `required` is asked for."""
    return decide(AccessRule(scopes=(required,)), DEVELOPER, held, NO_CONTEXT) is Decision.ALLOWED


@pytest.mark.parametrize(("least", "held"), list(itertools.product(ROLES, ROLES)))
def test_a_least_role_is_met_by_it_and_by_every_greater_one(least: Role, held: Role) -> None:
    """VALIDATOR < DEVELOPER < ADMIN."""
    allowed = decide(AccessRule(role=least), held, (), NO_CONTEXT) is Decision.ALLOWED
    assert allowed == (ROLES.index(held) >= ROLES.index(least))


@pytest.mark.parametrize("held", ROLES)
def test_only_roles_are_met_by_themselves_alone(held: Role) -> None:
    """A validating method takes VALIDATOR and ADMIN and refuses DEVELOPER."""
    rule = AccessRule(only_roles=(VALIDATOR, ADMIN))
    expected = Decision.ROLE_INSUFFICIENT if held is DEVELOPER else Decision.ALLOWED
    assert decide(rule, held, (), NO_CONTEXT) is expected


@pytest.mark.parametrize("held", ROLES)
def test_a_least_role_and_only_roles_must_both_hold(held: Role) -> None:
    """The stricter of the two decides."""
    rule = AccessRule(role=DEVELOPER, only_roles=(VALIDATOR, ADMIN))
    assert (decide(rule, held, (), NO_CONTEXT) is Decision.ALLOWED) == (held is ADMIN)


@pytest.mark.parametrize("held", ROLES)
def test_an_empty_rule_asks_for_any_key(held: Role) -> None:
    """Neither role nor scope is asked for."""
    assert decide(AccessRule(), held, (), NO_CONTEXT) is Decision.ALLOWED


def test_nobody_is_of_no_role() -> None:
    """A role that is unspecified meets no least role."""
    for least in ROLES:
        assert (
            decide(AccessRule(role=least), Role.UNSPECIFIED, ("*",), NO_CONTEXT)
            is not Decision.ALLOWED
        )


@pytest.mark.parametrize(
    ("required", "held", "met"),
    [
        ("a", (), False),
        ("a", ("*",), True),
        ("a", ("a",), True),
        ("a", ("a.*",), False),
        ("a.", ("a.*",), True),
        ("a.b", ("a.*",), True),
        ("a.b.c", ("a.*",), True),
        ("ab", ("a.*",), False),
        ("a.b", ("a",), False),
        ("a", ("a.b",), False),
        ("a.b", ("a.b.*",), False),
        ("a.b", ("b", "a.*"), True),
        ("a:b", ("a:*",), False),
        ("a:b", ("a.*",), False),
    ],
)
def test_scopes_meet_as_the_contract_says(
    required: str, held: tuple[str, ...], *, met: bool
) -> None:
    """`*` meets all, `a.*` all that begins with `a.`, anything else itself."""
    assert scope_met(required, held) == met


@given(scope, st.lists(held_scope, max_size=4))
def test_more_scopes_never_meet_less(required: str, held: list[str]) -> None:
    """Taking one scope away never opens what was closed."""
    if not scope_met(required, held):
        for place in range(len(held)):
            assert not scope_met(required, held[:place] + held[place + 1 :])


@given(scope, st.lists(held_scope, max_size=4))
def test_a_scope_is_met_exactly_when_one_of_them_meets_it(required: str, held: list[str]) -> None:
    """Scopes do not add up to something that none of them meets."""
    assert scope_met(required, held) == any(scope_met(required, [one]) for one in held)


@given(scope.flatmap(lambda one: st.sampled_from([one, f"{one}.", f"{one}.."])), held_scope)
def test_a_wildcard_meets_all_that_begins_as_it_does(required: str, held: str) -> None:
    """As section 5 of the wire contract says it, whatever `decide` works out ahead."""
    begins = held.endswith(".*") and required.startswith(held[:-1])
    assert scope_met(required, [held]) == (held in (required, "*") or begins)


@given(scope)
def test_every_scope_meets_itself_and_is_met_by_the_star(required: str) -> None:
    """The ends of the lattice."""
    assert scope_met(required, [required])
    assert scope_met(required, ["*"])
    assert not scope_met(required, [])


@given(st.lists(scope, min_size=1, max_size=3), st.lists(held_scope, max_size=4))
def test_all_required_scopes_must_be_met(required: list[str], held: list[str]) -> None:
    """One that is not met is enough to refuse."""
    decision = decide(AccessRule(scopes=tuple(required)), DEVELOPER, held, NO_CONTEXT)
    expected = all(scope_met(one, held) for one in required)
    assert (decision is Decision.ALLOWED) == expected
    assert decision in (Decision.ALLOWED, Decision.SCOPE_INSUFFICIENT)


@given(st.lists(scope, min_size=1, max_size=3))
def test_an_admin_meets_every_scope(required: list[str]) -> None:
    """Without carrying any."""
    assert decide(AccessRule(scopes=tuple(required)), ADMIN, (), NO_CONTEXT) is Decision.ALLOWED


def test_the_role_is_judged_before_the_scopes() -> None:
    """A caller who lacks both learns of the role."""
    rule = AccessRule(role=ADMIN, scopes=("a",))
    assert decide(rule, VALIDATOR, (), NO_CONTEXT) is Decision.ROLE_INSUFFICIENT


LONG = "a" * 100


@pytest.mark.parametrize(
    ("text", "required", "held"),
    [
        ("a", True, True),
        ("0", True, True),
        ("a.b_c:d-e", True, True),
        (LONG, True, True),
        (LONG + "a", False, False),
        ("a" * 98 + ".*", False, True),
        ("a" * 99 + ".*", False, False),
        ("*", False, True),
        ("a.*", False, True),
        (".*", False, False),
        ("a*", False, False),
        ("*.a", False, False),
        ("a.*.b", False, False),
        ("a.*.*", False, False),
        ("", False, False),
        ("A", False, False),
        ("a b", False, False),
        ("a\n", False, False),
        ("_a", False, False),
        ("\u0661", False, False),
        ("ä", False, False),
    ],
)
def test_what_a_scope_looks_like(text: str, *, required: bool, held: bool) -> None:
    """A required scope has no wildcard; a held one may be `*` or end in `.*`."""
    assert is_required_scope(text) == required
    assert is_held_scope(text) == held


@pytest.mark.parametrize(
    "asked",
    [
        {"role": VALIDATOR},
        {"scopes": ("a",)},
        {"only_roles": (ADMIN,)},
        {"operator_only": True},
    ],
)
def test_a_public_method_asks_for_nothing_else(asked: dict[str, object]) -> None:
    """A rule that contradicts itself is none."""
    with pytest.raises(RuleError):
        AccessRule(public=True, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "ADMIN"},
        {"role": 3},
        {"only_roles": ("ADMIN",)},
        {"only_roles": (3,)},
        {"scopes": "a.b"},
        {"public": "no"},
        {"operator_only": "no"},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    """A rule that means something else than it looks like would be judged silently."""
    with pytest.raises(TypeError, match=next(iter(wrong))):
        AccessRule(**wrong)


def test_a_rule_cannot_require_a_wildcard() -> None:
    """It would be met by nobody, or by everybody."""
    with pytest.raises(RuleError):
        AccessRule(scopes=("a.*",))
