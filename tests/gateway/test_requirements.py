"""What gateways require: all sources together, and nothing unreadable is left out."""

from typing import Any

import pytest

from gateway.gateway_clients import (
    ENTRY_POINTS,
    check_request,
    forward_auth_request,
    of_response,
    send_check,
)
from gateway.support import Cast, Gated

ROLE = "x-keybearer-required-role"
SCOPES = "x-keybearer-required-scopes"
ACCOUNT = "x-keybearer-account"


def ask(
    world: Gated,
    keys: Cast,
    token: str,
    headers: list[tuple[str, str]],
    query: str = "",
    path: str = "/v1/auth",
    gateway: str = "",
) -> tuple[int, str]:
    """Ask for a verdict; return the status, and the reason of a denial."""
    mine = forward_auth_request(gateway or keys.gateway, token, ())
    response = world.http.get(path + query, headers=[*mine, *headers])
    return response.status_code, of_response(response).reason


UNITED = {
    "the higher role of header and query": ([(ROLE, "DEVELOPER")], "?required_role=ADMIN"),
    "the higher role of query and header": ([(ROLE, "ADMIN")], "?required_role=DEVELOPER"),
    "the higher of two headers": ([(ROLE, "ADMIN"), (ROLE, "VALIDATOR")], ""),
    "the higher of two in a query": ([], "?required_role=ADMIN&required_role=VALIDATOR"),
    "a role beside met scopes": ([(SCOPES, "clusters.read")], "?required_role=ADMIN"),
}


@pytest.mark.parametrize("case", UNITED)
def test_the_highest_role_counts(world: Gated, keys: Cast, case: str) -> None:
    """A DEVELOPER is denied wherever one source asks for an ADMIN."""
    headers, query = UNITED[case]
    assert ask(world, keys, keys.good, headers, query) == (403, "ROLE_INSUFFICIENT")
    assert ask(world, keys, keys.admin, headers, query)[0] == 200


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ([(SCOPES, "clusters.read")], "?required_scopes=clusters.write"),
        ([(SCOPES, "clusters.write")], "?required_scopes=clusters.read"),
        ([(SCOPES, "clusters.read"), (SCOPES, "clusters.write")], ""),
        ([(SCOPES, "clusters.read, clusters.write")], ""),
    ],
)
def test_every_scope_counts(
    world: Gated, keys: Cast, headers: list[tuple[str, str]], query: str
) -> None:
    """A scope that one source asks for is asked for, whatever the others say."""
    assert ask(world, keys, keys.good, headers, query) == (403, "SCOPE_INSUFFICIENT")


def test_sources_that_agree_are_one(world: Gated, keys: Cast) -> None:
    """The same requirement twice is met by what meets it once."""
    mine = world.service.account_id
    headers = [(SCOPES, "clusters.read"), (ROLE, "DEVELOPER"), (ACCOUNT, mine)]
    query = f"?required_scopes=clusters.read&required_role=role_developer&account_id={mine}"
    assert ask(world, keys, keys.good, headers, query)[0] == 200


def test_conflicting_accounts_admit_nobody(world: Gated, keys: Cast) -> None:
    """No key is of two accounts."""
    headers = [(ACCOUNT, world.service.account_id)]
    query = f"?account_id={keys.tenant_account}"
    for token in (keys.good, keys.tenant, keys.admin):
        answer = ask(world, keys, token, headers, query, gateway=keys.wide_gateway)
        assert answer == (403, "ROLE_INSUFFICIENT")


def test_any_account_does_not_relax_a_named_one(world: Gated, keys: Cast) -> None:
    """`-` beside an account means that account."""
    for headers, query in (
        ([(ACCOUNT, "-")], f"?account_id={keys.tenant_account}"),
        ([(ACCOUNT, keys.tenant_account)], "?account_id=-"),
    ):
        wide = keys.wide_gateway
        answer = ask(world, keys, keys.good, headers, query, gateway=wide)
        assert answer == (401, "CREDENTIALS_INVALID")
        assert ask(world, keys, keys.tenant, headers, query, gateway=wide)[0] == 200


@pytest.mark.parametrize("path", ["/v1/auth/", "/v1/auth/orders", "/v1/auth/v1/auth"])
def test_the_query_behind_a_longer_path_is_the_clients(world: Gated, keys: Cast, path: str) -> None:
    """A client can neither ask for more, nor reach another account, nor break anything."""
    for query in ("?required_role=ADMIN", "?account_id=-", "?anything=%zz", "?"):
        assert ask(world, keys, keys.good, [], query, path)[0] == 200
    assert ask(world, keys, keys.tenant, [], "?account_id=-", path)[0] == 401


# Whose keys pass over HTTP, by gateway: without an account in the request, with `-`, with the
# operator's account, with the tenant's. O is a key of the operator account, T one of the tenant's;
# "x" stands for 403.
ACCOUNTS = {
    "gateway": ("O", "x", "O", "x"),
    "wide_gateway": ("OT", "OT", "O", "T"),
    "naming_gateway": ("OT", "x", "O", "T"),
    "tenant_gateway": ("T", "x", "x", "T"),
    "wide_tenant_gateway": ("T", "x", "x", "T"),
}


@pytest.mark.parametrize("gateway", ACCOUNTS)
@pytest.mark.parametrize("source", ["header", "query", "both"])
def test_a_request_narrows_what_its_gateway_may_ask_about_and_never_widens_it(
    world: Gated, keys: Cast, gateway: str, source: str
) -> None:
    """What widens it stands in the gateway's own key, and counts in the operator account alone."""
    accounts = ("", "-", world.service.account_id, keys.tenant_account)
    found = []
    for account in accounts:
        headers = [(ACCOUNT, account)] if account and source != "query" else []
        query = f"?account_id={account}" if account and source != "header" else ""
        mine = getattr(keys, gateway)
        answers = [ask(world, keys, one, headers, query, gateway=mine) for one in pair(keys)]
        if (403, "OPERATOR_ONLY") in answers:
            assert len(set(answers)) == 1
            found.append("x")
        else:
            assert {status for status, _ in answers} <= {200, 401}
            found.append(
                "".join(
                    name for name, (status, _) in zip("OT", answers, strict=True) if status == 200
                )
            )
    assert tuple(found) == ACCOUNTS[gateway]


def pair(keys: Cast) -> tuple[str, str]:
    """Return a key of the operator account and one of the tenant's."""
    return keys.good, keys.tenant


@pytest.mark.parametrize("gateway", ["gateway", "naming_gateway", "tenant_gateway"])
def test_introspection_is_narrowed_alike(world: Gated, keys: Cast, gateway: str) -> None:
    """By header and by form."""
    mine = getattr(keys, gateway)
    for account, column in (("", 0), ("-", 1), (keys.tenant_account, 3)):
        expected = ACCOUNTS[gateway][column]
        for name, token in zip("OT", pair(keys), strict=True):
            asked = [("account_id", account)] if account else []
            answer = ENTRY_POINTS["introspection"](world, mine, token, asked)
            assert answer.kind == ("admitted" if name in expected else "inactive")
            form = {"token": token, **dict(asked)}
            headers = forward_auth_request(mine, None, ())
            response = world.http.post("/oauth2/introspect", data=form, headers=headers)
            assert response.json()["active"] is (name in expected)


def test_a_label_is_none_of_envoys_business(world: Gated, keys: Cast) -> None:
    """Its requirements come from its own file, and without one it means its own account."""
    for extensions, status in (({}, 16), ({"account_id": keys.tenant_account}, 0)):
        request = check_request({"authorization": f"Bearer {keys.tenant}"}, extensions)
        for gateway in (keys.gateway, keys.wide_gateway):
            assert send_check(world, gateway, request).status.code == status


def test_an_account_that_may_not_be_asked_about_is_in_the_log(
    world: Gated, keys: Cast, capfd: pytest.CaptureFixture[str]
) -> None:
    """A gateway that lost the right with an update finds out why all of its clients are denied."""
    world.clock.advance(61_000_000)
    world.service.app.housekeeper.flush()
    ask(world, keys, keys.tenant, [(ACCOUNT, "-")])
    told = capfd.readouterr().out
    assert "requirement_invalid" in told
    assert "the gateway may not ask about the keys of this account" in told


UNREADABLE: dict[str, tuple[list[tuple[str, str]], str]] = {
    "unknown role": ([(ROLE, "ROOT")], ""),
    "no role": ([(ROLE, "")], ""),
    "unspecified role": ([(ROLE, "ROLE_UNSPECIFIED")], ""),
    "two roles in one": ([(ROLE, "DEVELOPER,ADMIN")], ""),
    "a placeholder's text": ([(ROLE, "{http.vars.role}")], ""),
    "no scope": ([(SCOPES, "")], ""),
    "an empty scope": ([(SCOPES, "clusters.read,,")], ""),
    "a wildcard": ([(SCOPES, "clusters.*")], ""),
    "scopes with blanks": ([(SCOPES, "clusters.read clusters.write")], ""),
    "too many scopes": ([(SCOPES, ",".join(f"s{n}" for n in range(65)))], ""),
    "no account": ([(ACCOUNT, "")], ""),
    "an account's name": ([(ACCOUNT, "tenant")], ""),
    "unknown header": ([("x-keybearer-required-scope", "clusters.read")], ""),
    "unknown header of ours": ([("x-keybearer-account-id", "-")], ""),
    "unknown name": ([], "?required_scope=clusters.read"),
    "a name in capitals": ([], "?Required_Role=ADMIN"),
    "a client's query": ([], "?page=2"),
    "no role in the query": ([], "?required_role="),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_denies_everybody(world: Gated, keys: Cast, case: str) -> None:
    """A typing error in a gateway's configuration opens nothing, and is no server error."""
    headers, query = UNREADABLE[case]
    for token in (keys.good, keys.admin, keys.unknown):
        assert ask(world, keys, token, headers, query) == (403, "ROLE_INSUFFICIENT")


@pytest.mark.parametrize(
    "extensions",
    [
        {"required_role": "ROOT"},
        {"required_role": ""},
        {"required_scopes": "a,,b"},
        {"required_scope": "clusters.read"},
        {"account_id": "tenant"},
        {"keep_authorization": "yes"},
        {"Required_Role": "ADMIN"},
    ],
    ids=str,
)
def test_what_cannot_be_read_in_a_route_denies_everybody(
    world: Gated, keys: Cast, extensions: dict[str, str]
) -> None:
    """The same for Envoy's context extensions."""
    for token in (keys.good, keys.admin):
        request = check_request({"authorization": f"Bearer {token}"}, extensions)
        response = send_check(world, keys.gateway, request)
        assert response.status.code == 7
        assert response.denied_response.status.code == 403


def test_what_cannot_be_read_is_in_the_log(
    world: Gated, keys: Cast, capfd: pytest.CaptureFixture[str]
) -> None:
    """The one who can mend it is told the name and what would be right."""
    # The other tests of this file have used up this minute's share.
    world.clock.advance(61_000_000)
    world.service.app.housekeeper.flush()
    ask(world, keys, keys.good, [("x-keybearer-required-scope", "a")])
    told = capfd.readouterr().out
    assert "requirement_invalid" in told
    assert "'x-keybearer-required-scope' is none of required_role" in told


@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [""],
        ["Bearer"],
        ["Basic dXNlcjpwYXNz"],
        ["{good}"],
        ["Bearer {good}", "Bearer {good}"],
        ["Bearer {good}, Bearer {good}"],
        ["Bearer é"],
    ],
    ids=str,
)
def test_anything_but_one_bearer_token_is_401(
    world: Gated, keys: Cast, authorization: list[str]
) -> None:
    """Two credentials are none: a gateway and keybearer could believe in different ones."""
    values = [value.format(good=keys.good) for value in authorization]
    headers: Any = [(b"authorization", value.encode("latin-1")) for value in values] + [
        (b"x-keybearer-caller", f"Bearer {keys.gateway}".encode())
    ]
    response = world.http.get("/v1/auth", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith('Bearer realm="keybearer"')


def test_a_missing_credential_is_challenged_without_an_error(world: Gated, keys: Cast) -> None:
    """RFC 6750 section 3.1: whoever showed nothing is told nothing of an error."""
    response = world.http.get("/v1/auth", headers=forward_auth_request(keys.gateway, None, ()))
    assert response.headers["www-authenticate"] == 'Bearer realm="keybearer"'
    assert of_response(response).reason == "CREDENTIALS_MISSING"
