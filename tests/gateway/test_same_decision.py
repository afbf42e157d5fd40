"""One decision at every entry point: a table of situations, asked at each of them."""

from typing import NamedTuple

import pytest

from gateway.gateway_clients import DENIALS, ENTRY_POINTS, Answer, Asked
from gateway.support import KEY_NAME_OUT, Cast, Gated


class Situation(NamedTuple):
    """Who asks about what, and what the answer is, in the words of ValidateToken."""

    token: str
    expected: str
    asked: Asked = ()
    gateway: str = "gateway"


def _with(*asked: tuple[str, str]) -> Asked:
    return asked


TENANT = ("account_id", "{tenant_account}")
ANY = ("account_id", "-")

SITUATIONS = {
    "a good key": Situation("good", "VALID"),
    "an admin's key": Situation("admin", "VALID"),
    "the gateway's own key": Situation("gateway", "VALID"),
    "unknown": Situation("unknown", "NOT_FOUND"),
    "malformed": Situation("malformed", "NOT_FOUND"),
    "revoked": Situation("revoked", "REVOKED"),
    "disabled": Situation("disabled", "DISABLED"),
    "expired": Situation("expired", "EXPIRED"),
    "its owner deleted": Situation("orphaned", "REVOKED"),
    "superseded": Situation("superseded", "NOT_FOUND"),
    "role met": Situation("good", "VALID", _with(("required_role", "DEVELOPER"))),
    "lower role met": Situation("good", "VALID", _with(("required_role", "VALIDATOR"))),
    "role not met": Situation("good", "ROLE_INSUFFICIENT", _with(("required_role", "ADMIN"))),
    "role met by the granted role alone": Situation(
        "demoted", "ROLE_INSUFFICIENT", _with(("required_role", "ADMIN"))
    ),
    "scope met": Situation("good", "VALID", _with(("required_scopes", "clusters.read"))),
    "scope met by a wildcard": Situation("good", "VALID", _with(("required_scopes", "logs.tail"))),
    "scopes met": Situation("good", "VALID", _with(("required_scopes", "clusters.read,logs.a.b"))),
    "scope not met": Situation(
        "good", "SCOPE_INSUFFICIENT", _with(("required_scopes", "clusters.write"))
    ),
    "one scope of two not met": Situation(
        "good", "SCOPE_INSUFFICIENT", _with(("required_scopes", "clusters.read,clusters.write"))
    ),
    "scopes of an admin": Situation(
        "admin", "VALID", _with(("required_scopes", "anything.at.all"))
    ),
    "role before scope": Situation(
        "good",
        "ROLE_INSUFFICIENT",
        _with(("required_role", "ADMIN"), ("required_scopes", "clusters.write")),
    ),
    "state before role": Situation("revoked", "REVOKED", _with(("required_role", "ADMIN"))),
    "another account's key": Situation("tenant", "NOT_FOUND"),
    "another account's key, asked for": Situation("tenant", "VALID", _with(TENANT), "wide_gateway"),
    "any account's key, asked for": Situation("tenant", "VALID", _with(ANY), "wide_gateway"),
    "our key, asked for in another account": Situation(
        "good", "NOT_FOUND", _with(TENANT), "wide_gateway"
    ),
    "a tenant's gateway and its own": Situation("tenant", "VALID", gateway="tenant_gateway"),
    "a tenant's gateway names its own": Situation(
        "tenant", "VALID", _with(TENANT), "tenant_gateway"
    ),
    "a tenant's gateway and another's": Situation("good", "NOT_FOUND", gateway="tenant_gateway"),
    "an account that is not there": Situation(
        "good", "NOT_FOUND", _with(("account_id", "A" * 16)), "wide_gateway"
    ),
}


def _asked(situation: Situation, keys: Cast) -> Asked:
    return [(name, value.format(**vars(keys))) for name, value in situation.asked]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("name", SITUATIONS)
def test_every_entry_point_decides_alike(
    world: Gated, keys: Cast, name: str, entry_point: str
) -> None:
    """The verdict does not depend on the entry point."""
    situation = SITUATIONS[name]
    token = getattr(keys, situation.token)

    answer = ENTRY_POINTS[entry_point](
        world, getattr(keys, situation.gateway), token, _asked(situation, keys)
    )

    if situation.expected == "VALID":
        assert (answer.kind, answer.key_id) == ("admitted", token.split("_")[1])
    elif entry_point == "introspection":
        assert answer == Answer("inactive")
    else:
        assert (answer.kind, answer.reason) == DENIALS[situation.expected]
        assert not answer.identity


REFUSED_GATEWAYS = {
    "unknown": "CREDENTIALS_INVALID",
    "revoked": "CREDENTIALS_INVALID",
    "expired": "CREDENTIALS_EXPIRED",
    "developer_gateway": "ROLE_INSUFFICIENT",
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("gateway", REFUSED_GATEWAYS)
def test_a_gateway_without_authority_gets_nothing(
    world: Gated, keys: Cast, gateway: str, entry_point: str
) -> None:
    """Nobody learns anything about a token without a VALIDATOR key of one's own."""
    answer = ENTRY_POINTS[entry_point](world, getattr(keys, gateway), keys.good, ())
    reason = REFUSED_GATEWAYS[gateway]
    if entry_point.startswith("forward_auth"):
        # Passed on to a client whose own key may be good.
        assert (answer.kind, answer.reason, answer.challenge) == (
            "forbidden",
            "ROLE_INSUFFICIENT",
            "",
        )
    else:
        kind = "forbidden" if reason == "ROLE_INSUFFICIENT" else "unauthenticated"
        assert (answer.kind, answer.reason) == (kind, reason)
    assert not answer.identity


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("asked", [TENANT, ANY], ids=["another", "any"])
def test_a_tenants_gateway_reaches_no_other_account(
    world: Gated, keys: Cast, asked: tuple[str, str], entry_point: str
) -> None:
    """Naming another account is for the operator's gateways, whether the account exists or not."""
    other = (asked[0], asked[1].replace("{tenant_account}", world.service.account_id))
    answer = ENTRY_POINTS[entry_point](world, keys.tenant_gateway, keys.tenant, [other])
    assert answer.kind in ("forbidden", "inactive")
    assert answer.reason in ("OPERATOR_ONLY", "")


@pytest.mark.parametrize("entry_point", ["ext_authz", "forward_auth"])
def test_an_admission_names_the_whole_identity_in_printable_ascii(
    world: Gated, keys: Cast, entry_point: str
) -> None:
    """Every header is there, and a name in other letters is percent-encoded."""
    answer = ENTRY_POINTS[entry_point](world, keys.gateway, keys.good, ())
    assert answer.identity == {
        "x-keybearer-key-id": keys.good_key_id,
        "x-keybearer-key-name": KEY_NAME_OUT,
        "x-keybearer-account": world.service.account_id,
        "x-keybearer-owner": world.service.admin_user_id,
        "x-keybearer-owner-email": "admin@example.com",
        "x-keybearer-role": "DEVELOPER",
        "x-keybearer-scopes": "clusters.read,logs.*",
    }


@pytest.mark.parametrize("entry_point", ["ext_authz", "forward_auth"])
def test_what_an_admission_does_not_know_is_empty_and_there(
    world: Gated, keys: Cast, entry_point: str
) -> None:
    """A header that is left out would be the client's own."""
    identity = ENTRY_POINTS[entry_point](world, keys.gateway, keys.admin, ()).identity
    assert identity["x-keybearer-scopes"] == ""
    assert len(identity) == 7


CHALLENGES = {
    "unknown": ((), 'error="invalid_token"'),
    "expired": ((), 'error="invalid_token"'),
    "good": ((("required_scopes", "a.b,c.d"),), 'error="insufficient_scope"'),
}


@pytest.mark.parametrize("entry_point", ["ext_authz", "forward_auth"])
@pytest.mark.parametrize("token", CHALLENGES)
def test_a_denial_carries_the_challenge_of_rfc_6750(
    world: Gated, keys: Cast, token: str, entry_point: str
) -> None:
    """The refusal says what would be right."""
    asked, error = CHALLENGES[token]
    challenge = ENTRY_POINTS[entry_point](
        world, keys.gateway, getattr(keys, token), asked
    ).challenge
    assert challenge.startswith('Bearer realm="keybearer", ')
    assert error in challenge
    assert ('scope="a.b c.d"' in challenge) == (token == "good")
