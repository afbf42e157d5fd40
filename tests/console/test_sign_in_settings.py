"""What the settings of the sign-in do: verified addresses, and tokens beside the provider."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console.provider import provider_running
from console.signing import SignIns, signing_in
from console.site import SESSION, Site
from harness import ANY_PORT, make_app
from keybearer_service.domain.clock import MINUTE
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.net.sign_in import SignInSettings


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignIns]:
    """A service at which a verified address is enough."""
    data = tmp_path_factory.mktemp("settings") / "data"
    with signing_in(data, bind="verified-email") as running:
        yield running


@pytest.fixture
def sign_ins(shared: SignIns) -> SignIns:
    """The same; nobody has tried anything in this minute."""
    shared.next_minute()
    return shared


@pytest.fixture
def site(sign_ins: SignIns) -> Iterator[Site]:
    """A browser in which nobody is signed in."""
    with sign_ins.browser() as opened:
        yield opened


def test_a_verified_address_binds_once(sign_ins: SignIns, site: Site) -> None:
    """Whatever its case; afterwards issuer and subject count, and nobody else gets in by it."""
    _, email = sign_ins.administrator()
    claims: dict[str, Any] = {"email": email.upper(), "email_verified": True}
    assert sign_ins.sign_in(site, f"by {email}", **claims).status == 200
    with sign_ins.browser() as again, sign_ins.browser() as other:
        assert sign_ins.sign_in(again, f"by {email}").status == 200
        assert sign_ins.sign_in(other, f"another by {email}", **claims).status == 403
    assert sign_ins.refusals()[0] == "USER_HAS_IDENTITY"


@pytest.mark.parametrize("verified", ["true", 1, 1.0, [True], {}, None, False], ids=repr)
def test_only_true_is_verified(sign_ins: SignIns, site: Site, verified: object) -> None:
    """Neither a text nor a number that looks like it."""
    _, email = sign_ins.administrator()
    claims: dict[str, Any] = {"email": email, "email_verified": verified}
    assert sign_ins.sign_in(site, f"by {email}", **claims).status == 403
    assert SESSION not in site.cookies
    assert sign_ins.refusals()[0] == "EMAIL_NOT_VERIFIED"


@pytest.mark.parametrize("email", [7, ["a@example.com"], None, "", "nobody@example.com", "a" * 999])
def test_an_address_that_is_none_is_nobodys(sign_ins: SignIns, site: Site, email: object) -> None:
    """Whatever its type."""
    claims: dict[str, Any] = {"email": email, "email_verified": True}
    assert sign_ins.sign_in(site, "strange", **claims).status == 403
    assert sign_ins.refusals()[0] == "EMAIL_UNKNOWN"


def test_an_address_of_a_machine_a_developer_or_another_account_is_not_enough(
    sign_ins: SignIns, site: Site
) -> None:
    """And nothing is bound by trying."""
    admin, tenant = sign_ins.service.admin, sign_ins.service.tenant()
    machine = "robot@example.com"
    admin.create_user(machine, role="ROLE_ADMIN", type="USER_TYPE_SERVICE_ACCOUNT")
    developer, email = sign_ins.administrator("ROLE_DEVELOPER")
    tenant.stubs.create_user("elsewhere@example.com")
    for address in (machine, email, "elsewhere@example.com"):
        claims: dict[str, Any] = {"email": address, "email_verified": True}
        assert sign_ins.sign_in(site, f"by {address}", **claims).status == 403
    admin.update_user(developer, {"role": "ROLE_ADMIN"})
    assert sign_ins.sign_in(site, f"by {email}").status == 403


def test_tokens_are_taken_while_nobody_can_sign_in_otherwise(sign_ins: SignIns, site: Site) -> None:
    """Not once an operator is connected; again when the provider has been gone for a minute."""
    _, email = sign_ins.administrator()
    claims: dict[str, Any] = {"email": email, "email_verified": True}
    with sign_ins.browser() as person:
        assert sign_ins.sign_in(person, f"by {email}", **claims).status == 200
    token = {"token": sign_ins.service.admin_token}
    assert "Token of an Admin key" not in site.get("/console/sign-in").text
    assert site.post("/console/sign-in", token).status == 403
    sign_ins.provider.raw["/.well-known/openid-configuration"] = (500, {}, b"")
    sign_ins.clock.advance(10 * MINUTE)
    assert "Token of an Admin key" not in site.get("/console/sign-in").text
    sign_ins.clock.advance(MINUTE)
    assert "has not answered for a minute" in site.get("/console/sign-in").text
    assert site.post("/console/sign-in", token).status == 303
    (event, *_) = sign_ins.service.admin.events(actions=["AUDIT_ACTION_SIGNED_IN"])
    assert {one.field: one.after for one in event.changes} == {
        "method": "TOKEN",
        "provider": "unreachable",
    }
    sign_ins.provider.behave()
    sign_ins.clock.advance(MINUTE)
    with sign_ins.browser() as other:
        assert "Token of an Admin key" not in other.get("/console/sign-in").text


def test_who_is_connected_at_another_provider_locks_no_token_out(tmp_path: Path) -> None:
    """When the setting names another one, nobody can sign in by what was connected before."""
    with signing_in(tmp_path / "data") as sign_ins, sign_ins.browser() as site:
        sign_ins.admin(site)
        seen = sign_ins.sign_in(site, "me", "connect")
        site.follow(site.send(seen.form("/console/sign-in/confirm")))
        service, token = sign_ins.service, sign_ins.service.admin_token
        with sign_ins.browser() as other:
            assert other.post("/console/sign-in", {"token": token}).status == 403
        service.close()
        with provider_running(sign_ins.clock) as another:
            sign_in = SignInSettings(provider=another.settings())
            service.app = make_app(
                service.data_dir,
                sign_ins.clock,
                service.app.container.entropy,
                http=HttpConfig(console=ANY_PORT, sign_in=sign_in),
            )
            service.app.start()
            with sign_ins.browser() as other:
                assert other.sign_in(token).status == 200
                page = f"/console/users/{service.admin_user_id}/sign-in"
                assert "not the provider that is set now" in other.get(page).text
