"""Signing in at the provider: invitations, connecting, what ends it, and proving it again."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from console.provider import callback
from console.signing import SignIns, signing_in
from console.site import SESSION, Seen, Site
from harness import store_of
from keybearer.v1 import account_service_pb2
from keybearer_service.domain.clock import HOUR, MINUTE
from keybearer_service.domain.token_format import checksum
from keybearer_service.storage import Foreseen

ATTEMPT = "__Host-keybearer-signin"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignIns]:
    """A service and a provider for all tests of this file."""
    with signing_in(tmp_path_factory.mktemp("sign-ins") / "data", key_sign_in="on") as running:
        yield running


@pytest.fixture
def sign_ins(shared: SignIns) -> SignIns:
    """The same; the provider is a good one, and nobody has tried anything in this minute."""
    shared.next_minute()
    return shared


@pytest.fixture
def site(sign_ins: SignIns) -> Iterator[Site]:
    """A browser in which nobody is signed in."""
    with sign_ins.browser() as opened:
        yield opened


def changes_of(sign_ins: SignIns, action: str) -> list[dict[str, str]]:
    """Return the changes of the events of an action, newest first."""
    return [
        {change.field: change.after or change.before for change in event.changes}
        for event in sign_ins.service.admin.events(actions=[f"AUDIT_ACTION_{action}"])
    ]


# --- invitations ----------------------------------------------------------------------------------


def test_an_invitation_binds_whoever_accepts_it(sign_ins: SignIns, site: Site) -> None:
    """The page names account and user before anything happens, and asks again before it binds."""
    user_id, email = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/console/invitation#kbinv1_\w{16}_\w{49}", link)
    seen = site.post("/console/invitation", {"invitation": link.partition("#")[2]})
    assert email in seen.text
    assert "of the account" in seen.text
    seen = sign_ins.sign_in(site, "alice", "invitation", email="alice@id.example.com")
    assert "alice@id.example.com" in seen.text
    assert email in seen.text
    assert not site.is_signed_in
    seen = site.follow(site.send(seen.form("/console/sign-in/confirm")))
    assert seen.status == 200
    assert email in seen.text
    bound, signed_in = changes_of(sign_ins, "IDENTITY_BOUND"), changes_of(sign_ins, "SIGNED_IN")
    assert bound[0] == {
        "issuer": sign_ins.provider.issuer,
        "subject": "alice",
        "bound_by": "invitation",
    }
    assert signed_in[0] == {"method": "OIDC", "issuer": sign_ins.provider.issuer}


def test_who_is_bound_signs_in_without_an_invitation(sign_ins: SignIns, site: Site) -> None:
    """From another browser too; the actor of the event is the session of that person."""
    user_id, subject = sign_ins.bound(site)
    with sign_ins.browser() as other:
        assert sign_ins.sign_in(other, subject).status == 200
        session_id = other.session.split("_")[1]
    (event, *_) = sign_ins.service.admin.events(actions=["AUDIT_ACTION_SIGNED_IN"])
    assert (event.target.id, event.actor.session_id) == (session_id, session_id)
    assert (event.actor.user_id, event.actor.key_id) == (user_id, "")


def test_somebody_who_was_never_invited_gets_nothing(sign_ins: SignIns, site: Site) -> None:
    """A verified address and a role among the claims change nothing."""
    claims: dict[str, Any] = {
        "email": "admin@example.com",
        "email_verified": True,
        "groups": ["ADMIN"],
    }
    seen = sign_ins.sign_in(site, "mallory", **claims)
    assert seen.status == 403
    assert "Ask an administrator" in seen.text
    assert SESSION not in site.cookies
    assert sign_ins.refusals()[0] == "NOT_INVITED"


def _used(sign_ins: SignIns, user_id: str, link: str) -> None:
    with sign_ins.browser() as other:
        sign_ins.accept(other, link, f"other of {user_id}")


SPOILS: dict[str, Callable[[SignIns, str, str], object]] = {
    "over": lambda sign_ins, *_: sign_ins.clock.advance(72 * HOUR),
    "replaced": lambda sign_ins, user_id, _: sign_ins.invite(user_id),
    "user deleted": lambda sign_ins, user_id, _: sign_ins.service.admin.delete_user(user_id),
    "used": _used,
}


@pytest.mark.parametrize("how", sorted(SPOILS))
def test_an_invitation_works_once_and_for_three_days(
    sign_ins: SignIns, site: Site, how: str
) -> None:
    """What is over, replaced, used, or for a deleted user is not even looked at."""
    user_id, _ = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    SPOILS[how](sign_ins, user_id, link)
    sign_ins.next_minute()
    seen = site.post("/console/invitation", {"invitation": link})
    assert seen.status == 400
    assert "does not work any more" in seen.text


@pytest.mark.parametrize("how", ["replaced", "user deleted", "used"])
def test_an_invitation_that_ends_before_the_last_press_binds_nobody(
    sign_ins: SignIns, site: Site, how: str
) -> None:
    """It is judged again where it is used up."""
    user_id, _ = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    site.post("/console/invitation", {"invitation": link})
    form = sign_ins.sign_in(site, f"late {how}", "invitation").form("/console/sign-in/confirm")
    SPOILS[how](sign_ins, user_id, link)
    seen = site.send(form)
    assert seen.status == 403
    assert SESSION not in site.cookies
    sign_ins.next_minute()
    assert sign_ins.sign_in(site, f"late {how}").status == 403


def test_an_altered_invitation_is_none(sign_ins: SignIns, site: Site) -> None:
    """Neither another secret for the same id, nor something else."""
    user_id, _ = sign_ins.administrator()
    token = sign_ins.invite(user_id).partition("#")[2]
    body = token[:-7] + ("0" if token[-7] != "0" else "1")
    another = body + checksum(body)
    for wrong in (another, token[:-1], token.replace("kbinv1", "kbses1"), "", "#", "x" * 600):
        assert site.post("/console/invitation", {"invitation": wrong}).status == 400
    assert site.post("/console/invitation", {"invitation": token}).status == 200


@pytest.mark.parametrize("column", ["user_id", "account_id", "create_time"])
def test_the_row_of_an_invitation_that_was_altered_invites_nobody(
    sign_ins: SignIns, site: Site, column: str
) -> None:
    """Who writes to the database turns it to no other user or account, nor lets it live on."""
    user_id, _ = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    tenant = sign_ins.service.tenant()
    store = sign_ins.service.app.container.store
    with store.write() as tx:
        invitation = tx.invitation_of(user_id)
        assert invitation is not None
        others: dict[str, Any] = {
            "user_id": tenant.user_id,
            "account_id": tenant.account_id,
            "create_time": invitation.create_time + 1,
        }
        tx.delete_invitation(user_id)
        tx.put_invitation(replace(invitation, **{column: others[column]}))
    assert site.post("/console/invitation", {"invitation": link}).status == 400


def test_one_sign_in_is_one_user(sign_ins: SignIns, site: Site) -> None:
    """Who is bound already accepts no second invitation."""
    _, subject = sign_ins.bound(site)
    other, _ = sign_ins.administrator()
    link = sign_ins.invite(other)
    with sign_ins.browser() as second:
        second.post("/console/invitation", {"invitation": link})
        seen = sign_ins.sign_in(second, subject, "invitation")
        seen = second.send(seen.form("/console/sign-in/confirm"))
    assert seen.status == 403
    assert "connected with a user already" in seen.text


@pytest.mark.parametrize("case", ["developer", "service account", "connected", "nobody"])
def test_only_administrators_without_a_sign_in_are_invited(
    sign_ins: SignIns, site: Site, case: str
) -> None:
    """Others get a sentence that says why."""
    admin = sign_ins.service.admin
    user_id = "0" * 16
    if case == "developer":
        user_id, _ = sign_ins.administrator("ROLE_DEVELOPER")
    if case == "service account":
        made = admin.create_user(
            "robot@example.com", role="ROLE_ADMIN", type="USER_TYPE_SERVICE_ACCOUNT"
        )
        user_id = made.id
    if case == "connected":
        user_id, _ = sign_ins.bound(site)
    with sign_ins.browser() as other:
        sign_ins.admin(other)
        csrf = other.new_key_form().fields["csrf"]
        seen = other.post(f"/console/users/{user_id}/sign-in/invite", {"csrf": csrf})
    assert seen.status == (404 if case == "nobody" else 400)
    assert not seen.token


def test_an_administrator_of_another_account_is_nobody(sign_ins: SignIns, site: Site) -> None:
    """A tenant neither sees nor changes how the operator's people sign in; the operator may."""
    tenant = sign_ins.service.tenant()
    site.sign_in(tenant.stubs.token)
    csrf = site.new_key_form().fields["csrf"]
    page = f"/console/users/{sign_ins.service.admin_user_id}/sign-in"
    assert site.get(page).status == 404
    for change in ("invite", "remove"):
        assert site.post(f"{page}/{change}", {"csrf": csrf}).status == 404
    with sign_ins.browser() as other:
        seen = sign_ins.admin(other).post_invite(tenant.user_id)
    assert seen.token


# --- the first administrator ----------------------------------------------------------------------


def test_an_administrator_connects_the_own_sign_in(sign_ins: SignIns, site: Site) -> None:
    """Signed in with a token: to the provider and back, one question, and it is connected."""
    user_id, _ = sign_ins.administrator()
    token = sign_ins.service.admin.create_key(
        role="ROLE_ADMIN", owner_id=user_id, never_expires=True
    ).token
    site.sign_in(token)
    seen = sign_ins.sign_in(site, f"me {user_id}", "connect")
    seen = site.follow(site.send(seen.form("/console/sign-in/confirm")))
    assert f"me {user_id}" in seen.text
    with sign_ins.browser() as other:
        assert sign_ins.sign_in(other, f"me {user_id}").status == 200


def test_only_the_session_that_began_it_connects(sign_ins: SignIns, site: Site) -> None:
    """Somebody else who has signed in meanwhile in the same browser is not connected."""
    sign_ins.admin(site)
    seen = sign_ins.sign_in(site, "stranger", "connect")
    form = seen.form("/console/sign-in/confirm")
    user_id, _ = sign_ins.administrator()
    other = sign_ins.service.admin.create_key(role="ROLE_ADMIN", owner_id=user_id).token
    site.post("/console/sign-in", {"token": other})
    assert site.send(form).status == 403
    site.cookies.pop(SESSION)
    assert site.send(form).status in (400, 401)
    with sign_ins.browser() as third:
        assert sign_ins.sign_in(third, "stranger").status == 403


def test_connecting_needs_the_secret_of_the_form(sign_ins: SignIns, site: Site) -> None:
    """A page of another origin cannot have it pressed."""
    user_id, _ = sign_ins.administrator()
    token = sign_ins.service.admin.create_key(role="ROLE_ADMIN", owner_id=user_id).token
    site.sign_in(token)
    form = sign_ins.sign_in(site, "forced", "connect").form("/console/sign-in/confirm")
    assert site.send(form, csrf="").status == 403
    headers = {"sec-fetch-site": "cross-site"}
    assert site.post(form.action, form.fields, headers=headers).status == 403
    with sign_ins.browser() as other:
        assert sign_ins.sign_in(other, "forced").status == 403


# --- what ends a session --------------------------------------------------------------------------


def _remove(sign_ins: SignIns, user_id: str) -> None:
    with sign_ins.browser() as other:
        page = f"/console/users/{user_id}/sign-in"
        form = sign_ins.admin(other).get(page).form(f"{page}/remove")
        assert other.send(form).status == 303


ENDS: dict[str, Callable[[SignIns, str], object]] = {
    "identity removed": _remove,
    "demoted": lambda sign_ins, user_id: sign_ins.service.admin.update_user(
        user_id, {"role": "ROLE_DEVELOPER"}
    ),
    "deleted": lambda sign_ins, user_id: sign_ins.service.admin.delete_user(user_id),
    "idle": lambda sign_ins, _: sign_ins.clock.advance(30 * MINUTE),
}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_what_ends_the_sign_in_ends_the_session(sign_ins: SignIns, site: Site, end: str) -> None:
    """At the next click, and the same person does not get in again but by what allows it."""
    user_id, subject = sign_ins.bound(site)
    assert site.is_signed_in
    ENDS[end](sign_ins, user_id)
    assert not site.is_signed_in
    sign_ins.next_minute()
    seen = sign_ins.sign_in(site, subject)
    assert seen.status == (200 if end == "idle" else 403)


def test_a_disabled_account_ends_the_session(sign_ins: SignIns, site: Site) -> None:
    """Its administrators are out at the next click."""
    tenant = sign_ins.service.tenant()
    assert sign_ins.accept(site, sign_ins.invite(tenant.user_id), "tenant").status == 200
    sign_ins.service.admin.accounts.DisableAccount(
        account_service_pb2.DisableAccountRequest(id=tenant.account_id)
    )
    assert not site.is_signed_in
    assert sign_ins.sign_in(site, "tenant").status == 403


def test_a_session_of_a_person_lives_for_eight_hours(sign_ins: SignIns, site: Site) -> None:
    """However busy it is."""
    sign_ins.bound(site)
    for _ in range(16):
        sign_ins.clock.advance(29 * MINUTE)
        assert site.is_signed_in
    sign_ins.clock.advance(16 * MINUTE)
    assert not site.is_signed_in


@pytest.mark.parametrize("end", ["identity removed", "demoted", "deleted"])
def test_a_change_is_refused_when_the_sign_in_ends_before_it(
    sign_ins: SignIns, site: Site, end: str
) -> None:
    """Between the judgement of the request and its change; what was typed is kept."""
    user_id, _ = sign_ins.bound(site)
    form = site.new_key_form()
    store = store_of(sign_ins.service.app)
    write = store.write
    pending = [True]

    def end_first(foreseen: Foreseen) -> Any:
        if pending:
            pending.clear()
            ENDS[end](sign_ins, user_id)
        return write(foreseen)

    with store.replacing(write=end_first):
        seen = site.send(form, name="late", role="DEVELOPER")
    assert seen.status == 401
    assert seen.form("/console/keys").fields["name"] == "late"
    assert not seen.token


def _sign_out_at_provider(sign_ins: SignIns, _site: Site, subject: str, _account: str) -> None:
    token = sign_ins.provider.logout_token(sub=subject, jti=f"logout of {subject}")
    with sign_ins.browser() as provider:
        fields = {"logout_token": token}
        assert provider.request("POST", "/console/backchannel-logout", data=fields).status == 200


def _end_by_another(sign_ins: SignIns, site: Site, _subject: str, account: str) -> None:
    with sign_ins.browser() as other:
        listed = sign_ins.admin(other).get(f"/console/sessions?account={account}")
        end = f"/console/sessions/{site.session.split('_')[1]}/end"
        assert other.send(listed.form(end)).status == 303


def _disable_account(sign_ins: SignIns, _site: Site, _subject: str, account: str) -> None:
    request = account_service_pb2.DisableAccountRequest(id=account)
    sign_ins.service.admin.accounts.DisableAccount(request)


SESSION_ENDS: dict[str, Callable[[SignIns, Site, str, str], None]] = {
    "signed out at the provider": _sign_out_at_provider,
    "ended by another": _end_by_another,
    "disabled account": _disable_account,
}


@pytest.mark.parametrize("end", sorted(SESSION_ENDS))
def test_a_change_is_refused_when_the_session_ends_before_it(
    sign_ins: SignIns, site: Site, end: str
) -> None:
    """Between the judgement of the request and its change, of somebody who stays what they are."""
    tenant = sign_ins.service.tenant()
    subject = f"ends {end}"
    assert sign_ins.accept(site, sign_ins.invite(tenant.user_id), subject).status == 200
    sign_ins.next_minute()
    form = site.new_key_form()
    store = store_of(sign_ins.service.app)
    write = store.write
    pending = [True]

    def end_first(foreseen: Foreseen = ()) -> Any:
        if pending:
            pending.clear()
            SESSION_ENDS[end](sign_ins, site, subject, tenant.account_id)
        return write(foreseen)

    with store.replacing(write=end_first):
        seen = site.send(form, name="late", role="DEVELOPER")
    assert seen.status == 401
    assert not seen.token
    assert not site.is_signed_in


def test_a_deleted_users_person_can_be_another_user(sign_ins: SignIns, site: Site) -> None:
    """The identity goes with the user."""
    user_id, subject = sign_ins.bound(site)
    sign_ins.service.admin.delete_user(user_id)
    other, email = sign_ins.administrator()
    assert email in sign_ins.accept(site, sign_ins.invite(other), subject).text


def test_the_page_warns_when_nobody_would_be_left(sign_ins: SignIns, site: Site) -> None:
    """Of an account without a key that works, whose last person is to be taken away."""
    tenant = sign_ins.service.tenant()
    revoking = f"/console/keys/{tenant.key_id}/revoke"
    with sign_ins.browser() as other:
        other.sign_in(tenant.stubs.token)
        assert "nobody can administer" in other.get(revoking).text
    sign_ins.accept(site, sign_ins.invite(tenant.user_id), f"last of {tenant.user_id}")
    page = f"/console/users/{tenant.user_id}/sign-in"
    assert "nobody can administer" not in site.get(page).text
    assert "nobody can administer" not in site.get(revoking).text
    added = tenant.stubs.create_user("second@example.com", role="ROLE_ADMIN")
    tenant.stubs.create_key(role="ROLE_ADMIN", owner_id=added.id)
    assert "nobody can administer" not in site.get(f"/console/users/{added.id}/delete").text
    tenant.stubs.delete_user(added.id)
    tenant.stubs.revoke(tenant.key_id)
    assert "nobody can administer" in site.get(page).text


def test_the_page_of_a_user_leads_to_the_sign_in_and_back(sign_ins: SignIns, site: Site) -> None:
    """Of people alone, and within the account of the user."""
    tenant = sign_ins.service.tenant("led-to")
    sign_ins.admin(site)
    user = f"/console/users/{tenant.user_id}"
    assert f"{user}/sign-in" in site.get(user).links
    seen = site.get(f"{user}/sign-in")
    for area in ("keys", "users", "audit"):
        assert f"/console/{area}?account={tenant.account_id}" in seen.links
    assert f"{user}?account={tenant.account_id}" in seen.links
    robot = sign_ins.service.admin.create_user(
        "led@example.com", role="ROLE_ADMIN", type="USER_TYPE_SERVICE_ACCOUNT"
    )
    assert f"/console/users/{robot.id}/sign-in" not in site.get(f"/console/users/{robot.id}").links


@pytest.mark.parametrize("kind", ["ROLE_DEVELOPER", "USER_TYPE_SERVICE_ACCOUNT"])
def test_nobody_is_offered_an_invitation_that_would_be_refused(
    sign_ins: SignIns, site: Site, kind: str
) -> None:
    """The page says why instead."""
    role = kind if kind.startswith("ROLE") else "ROLE_ADMIN"
    type_ = "USER_TYPE_PERSON" if kind.startswith("ROLE") else kind
    user = sign_ins.service.admin.create_user(f"{kind}@example.com", role=role, type=type_)
    sign_ins.admin(site)
    seen = site.get(f"/console/users/{user.id}/sign-in")
    assert seen.status == 200
    assert "nly " in seen.text
    assert [one.action for one in seen.forms if one.action.endswith("/invite")] == []


# --- proving it again -----------------------------------------------------------------------------


def wait_an_hour(sign_ins: SignIns, site: Site) -> None:
    """Let an hour go by in which the session is in use."""
    for _ in range(3):
        sign_ins.clock.advance(20 * MINUTE)
        assert site.is_signed_in


def test_a_secret_is_handed_out_only_shortly_after_a_sign_in(sign_ins: SignIns, site: Site) -> None:
    """The form is kept; after signing in again beside it, two presses create one key."""
    _, subject = sign_ins.bound(site)
    wait_an_hour(sign_ins, site)
    seen = site.send(site.new_key_form(), name="typed before", role="DEVELOPER")
    assert seen.status == 403
    assert "more than an hour ago" in seen.text
    assert "/console/sign-in/start?for=again" in seen.links
    form = seen.form("/console/keys")
    before = site.session
    assert "You have signed in again" in sign_ins.sign_in(site, subject, "again").text
    assert site.session != before
    seen = site.send(form)
    assert seen.status == 403
    seen = site.send(seen.form("/console/keys"))
    assert sign_ins.service.admin.outcome(seen.token) == "VALID"
    names = [one.name for one in sign_ins.service.admin.list_keys().api_keys]
    assert names.count("typed before") == 1
    with sign_ins.browser() as other:
        other.cookies[SESSION] = before
        assert not other.is_signed_in


def test_the_provider_is_asked_to_have_the_person_sign_in_now(
    sign_ins: SignIns, site: Site
) -> None:
    """And a provider that only says that somebody had signed in is not believed."""
    _, subject = sign_ins.bound(site)
    started = site.get("/console/sign-in/start?for=again")
    assert "max_age=0" in started.location
    assert "prompt=login" in started.location
    before = site.session
    long_ago = sign_ins.provider.now_s() - 120
    seen = sign_ins.sign_in(site, subject, "again", auth_time=long_ago)
    assert seen.status == 403
    assert sign_ins.refusals()[0] == "SIGNED_IN_LONG_AGO"
    assert site.session == before


def test_proving_to_be_somebody_else_changes_nothing(sign_ins: SignIns, site: Site) -> None:
    """Neither for the one nor for the other."""
    with sign_ins.browser() as other:
        _, second = sign_ins.bound(other)
    sign_ins.bound(site)
    before = site.session
    seen = sign_ins.sign_in(site, second, "again")
    assert seen.status == 403
    assert "signed in as somebody else" in seen.text
    assert site.session == before
    assert site.is_signed_in
    assert sign_ins.refusals()[0] == "SOMEBODY_ELSE"


@pytest.mark.parametrize("trouble", ["somebody else", "long ago", "unreachable"])
def test_proving_it_again_in_vain_leads_to_proving_it_again(
    sign_ins: SignIns, site: Site, trouble: str
) -> None:
    """The page offers no sign-in as anybody, which would make the session that person's."""
    _, subject = sign_ins.bound(site)
    long_ago = sign_ins.provider.now_s() - 120
    if trouble == "somebody else":
        seen = sign_ins.sign_in(site, "stranger", "again")
    elif trouble == "long ago":
        seen = sign_ins.sign_in(site, subject, "again", auth_time=long_ago)
    else:
        started = site.get("/console/sign-in/start?for=again")
        answer = callback(sign_ins.provider.answer(started.location, subject))
        sign_ins.provider.raw["/token"] = (503, {}, b"")
        seen = site.get(answer)
        assert seen.status == 503
    assert "Sign in again" in seen.text
    starts = [one for one in seen.links if one.startswith("/console/sign-in/start")]
    assert starts == ["/console/sign-in/start?for=again"]


def test_a_token_proves_it_again_for_the_same_user_alone(sign_ins: SignIns, site: Site) -> None:
    """Who signed in with a token is asked for it; the token of somebody else is none."""
    sign_ins.admin(site)
    started = site.get("/console/sign-in/start?for=again")
    assert started.location == "/console/sign-in?again=1"
    user_id, _ = sign_ins.administrator()
    other = sign_ins.service.admin.create_key(role="ROLE_ADMIN", owner_id=user_id).token
    before = site.session
    seen = site.post(started.location, {"token": other})
    assert seen.status == 403
    assert "somebody else" in seen.text
    assert site.session == before
    assert site.post(started.location, {"token": sign_ins.service.admin_token}).status == 303
    assert site.session != before


def test_a_single_revoke_never_waits(sign_ins: SignIns, site: Site) -> None:
    """It is what one does in an emergency."""
    sign_ins.bound(site)
    key = sign_ins.service.admin.create_key().api_key.id
    wait_an_hour(sign_ins, site)
    assert site.send(site.revoke_form(key), reason="COMPROMISED").status == 303
    assert sign_ins.service.admin.key(key).revoke_time.seconds


def test_an_invitation_needs_a_fresh_sign_in_and_removing_one_does_not(
    sign_ins: SignIns, site: Site
) -> None:
    """Handing out authority waits, taking it away does not."""
    with sign_ins.browser() as other:
        connected, _ = sign_ins.bound(other)
    user_id, _ = sign_ins.administrator()
    sign_ins.next_minute()
    sign_ins.bound(site)
    wait_an_hour(sign_ins, site)
    seen = site.post_invite(user_id)
    assert seen.status == 403
    assert not seen.token
    assert "/console/sign-in/start?for=again" in seen.links
    page = f"/console/users/{connected}/sign-in"
    assert site.send(site.get(page).form(f"{page}/remove")).status == 303


# --- one answer for one attempt -------------------------------------------------------------------


def test_an_answer_is_taken_once(sign_ins: SignIns, site: Site) -> None:
    """A copy of the browser that sends the same answer again gets nothing."""
    _, subject = sign_ins.bound(site)
    with sign_ins.browser() as other, sign_ins.browser() as copy:
        started = other.get("/console/sign-in/start")
        path = callback(sign_ins.provider.answer(started.location, subject))
        copy.cookies.update(other.cookies)
        assert other.get(path).status == 303
        seen = copy.get(path)
        assert seen.status == 403
        assert SESSION not in copy.cookies
    assert sign_ins.refusals()[0] == "STATE_USED"


def test_an_answer_belongs_to_the_browser_that_asked(sign_ins: SignIns, site: Site) -> None:
    """Nobody can have another one's browser signed in as themselves."""
    _, subject = sign_ins.bound(site)
    with sign_ins.browser() as attacker, sign_ins.browser() as victim:
        started = attacker.get("/console/sign-in/start")
        path = callback(sign_ins.provider.answer(started.location, subject))
        assert victim.get(path).status == 400
        victim.get("/console/sign-in/start")
        assert victim.get(path).status == 403
        assert SESSION not in victim.cookies
    assert sign_ins.refusals()[0] == "STATE"


def test_an_attempt_is_over_after_ten_minutes(sign_ins: SignIns, site: Site) -> None:
    """The page says so, and offers to begin anew."""
    _, subject = sign_ins.bound(site)
    with sign_ins.browser() as other:
        started = other.get("/console/sign-in/start")
        path = callback(sign_ins.provider.answer(started.location, subject))
        sign_ins.clock.advance(10 * MINUTE)
        seen = other.get(path)
    assert seen.status == 400
    assert "ten minutes" in seen.text


def test_two_tabs_sign_in_beside_each_other(sign_ins: SignIns, site: Site) -> None:
    """The one that began first comes back last; each answer finds its own attempt."""
    _, subject = sign_ins.bound(site)
    with sign_ins.browser() as browser:
        paths = [
            callback(
                sign_ins.provider.answer(browser.get("/console/sign-in/start").location, subject)
            )
            for _ in range(2)
        ]
        assert [browser.get(path).status for path in reversed(paths)] == [303, 303]
        assert browser.is_signed_in
        assert not [name for name in browser.cookies if name.startswith(ATTEMPT)]


def test_an_answer_with_another_state_is_refused(sign_ins: SignIns, site: Site) -> None:
    """Also one that begins as that of an attempt does, by which its cookie is found."""
    _, subject = sign_ins.bound(site)
    with sign_ins.browser() as browser:
        started = browser.get("/console/sign-in/start")
        query = sign_ins.provider.answer(started.location, subject)
        query["state"] = query["state"][:-1] + ("a" if query["state"][-1] != "a" else "b")
        assert browser.get(callback(query)).status == 403


def test_a_browser_keeps_few_attempts(sign_ins: SignIns) -> None:
    """Whoever begins again and again and never comes back gets no headers without end."""
    with sign_ins.browser() as browser:
        for _ in range(20):
            browser.get("/console/sign-in/start")
            assert sum(name.startswith(ATTEMPT) for name in browser.cookies) <= 4


def test_the_cookie_of_an_attempt_is_sealed_and_forgotten(sign_ins: SignIns, site: Site) -> None:
    """Nothing of it can be read, changed, or used for something else."""
    started = site.get("/console/sign-in/start")
    (cookie,) = started.response.headers.get_list("set-cookie")
    assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/", "Max-Age=600"} <= set(
        cookie.split("; ")
    )
    query = sign_ins.provider.answer(started.location, "nobody")
    name = f"{ATTEMPT}-{query['state'][:8]}"
    sealed = site.cookies[name]
    assert query["state"] not in sealed
    for wrong in (sealed[:-2], sealed.replace(".", "..", 1), "", "x", site.session or "y"):
        site.cookies[name] = wrong
        assert site.get(callback(query)).status == 400
        assert name not in site.cookies
    site.cookies["__Host-keybearer-person"] = sealed
    assert site.get("/console/sign-in/confirm").status == 400


def test_one_address_has_twenty_tries_a_minute(sign_ins: SignIns, site: Site) -> None:
    """The next one is refused whatever it brings."""
    for _ in range(20):
        assert site.get("/console/sign-in/callback").status == 400
    assert site.get("/console/sign-in/callback").status == 429


def test_one_goes_on_to_a_page_of_the_console_and_nowhere_else(
    sign_ins: SignIns, site: Site
) -> None:
    """What stood in `next` when the sign-in began."""
    _, subject = sign_ins.bound(site)
    wanted = {
        "/console/keys?view=active": "/console/keys?view=active",
        "https://example.com/": "/console/keys",
        "//example.com/console/keys": "/console/keys",
    }
    for asked, target in wanted.items():
        with sign_ins.browser() as other:
            started = other.get("/console/sign-in/start", params={"next": asked})
            path = callback(sign_ins.provider.answer(started.location, subject))
            assert other.get(other.get(path).location).location == target


# --- races ----------------------------------------------------------------------------------------


def at_once(*calls: Callable[[], Seen]) -> list[int]:
    """Make calls at the same moment; return their statuses, sorted."""
    barrier = threading.Barrier(len(calls))

    def made(call: Callable[[], Seen]) -> int:
        barrier.wait()
        return call().status

    with ThreadPoolExecutor(len(calls)) as executor:
        return sorted(executor.map(made, calls))


@pytest.mark.parametrize("turn", range(5))
def test_one_answer_that_comes_twice_at_once_opens_one_session(
    sign_ins: SignIns, site: Site, turn: int
) -> None:
    """Whoever copied it as well as the browser."""
    _, subject = sign_ins.bound(site)
    sign_ins.next_minute()
    with sign_ins.browser() as one, sign_ins.browser() as copy:
        path = callback(
            sign_ins.provider.answer(one.get("/console/sign-in/start").location, subject)
        )
        copy.cookies.update(one.cookies)
        statuses = at_once(lambda: one.get(path), lambda: copy.get(path))
        sessions = [SESSION in browser.cookies for browser in (one, copy)]
    assert statuses == [303, 403], turn
    assert sorted(sessions) == [False, True]


@pytest.mark.parametrize("turn", range(5))
def test_one_invitation_that_is_accepted_twice_at_once_binds_one(
    sign_ins: SignIns, turn: int
) -> None:
    """Of two people who both have the link."""
    user_id, _ = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    before = len(changes_of(sign_ins, "IDENTITY_BOUND"))
    with sign_ins.browser() as one, sign_ins.browser() as other:
        forms = []
        for browser, subject in ((one, "first"), (other, "second")):
            browser.post("/console/invitation", {"invitation": link})
            seen = sign_ins.sign_in(browser, f"{subject} of {user_id}", "invitation")
            forms.append(seen.form("/console/sign-in/confirm"))
        statuses = at_once(lambda: one.send(forms[0]), lambda: other.send(forms[1]))
        sessions = [SESSION in browser.cookies for browser in (one, other)]
    assert statuses == [303, 403], turn
    assert sorted(sessions) == [False, True]
    assert len(changes_of(sign_ins, "IDENTITY_BOUND")) == before + 1


@pytest.mark.parametrize("turn", range(5))
def test_an_invitation_that_is_withdrawn_while_it_is_accepted_leaves_nobody_in(
    sign_ins: SignIns, site: Site, turn: int
) -> None:
    """Withdrawing takes a sign-in away that was connected just before."""
    user_id, _ = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    sign_ins.admin(site)
    page = f"/console/users/{user_id}/sign-in"
    withdrawal = site.get(page).form(f"{page}/remove")
    with sign_ins.browser() as other:
        other.post("/console/invitation", {"invitation": link})
        seen = sign_ins.sign_in(other, f"late {user_id}", "invitation")
        form = seen.form("/console/sign-in/confirm")
        statuses = at_once(lambda: site.send(withdrawal), lambda: other.send(form))
        assert statuses in ([303, 303], [303, 403]), turn
        assert not other.is_signed_in
    sign_ins.next_minute()
    with sign_ins.browser() as again:
        assert sign_ins.sign_in(again, f"late {user_id}").status == 403


# --- what is never said ---------------------------------------------------------------------------


def test_no_secret_stands_in_a_url_a_log_or_the_audit_log(
    sign_ins: SignIns, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of everything from the invitation to the session."""
    capfd.readouterr()
    user_id, _ = sign_ins.administrator()
    link = sign_ins.invite(user_id)
    secret = link.partition("#")[2].split("_")[2][:30]
    site.post("/console/invitation", {"invitation": link})
    started = site.get("/console/sign-in/start?for=invitation")
    query = sign_ins.provider.answer(started.location, "quiet")
    seen = site.follow(site.get(callback(query)))
    site.follow(site.send(seen.form("/console/sign-in/confirm")))
    assert site.is_signed_in
    printed = "".join(capfd.readouterr())
    assert "HTTP Request" not in printed  # of the library that asks the provider
    audited = "".join(map(str, sign_ins.service.admin.events()))
    cookies = "".join(site.cookies.values())
    assert secret not in started.location
    for one in (secret, query["code"], query["state"], site.session.split("_")[2][:20]):
        assert one not in printed
        assert one not in audited
    assert secret not in cookies


def test_signing_out_offers_to_sign_out_at_the_provider_too(sign_ins: SignIns, site: Site) -> None:
    """By a link to a route of ours, which leads there."""
    sign_ins.bound(site)
    seen = site.send(site.get("/console/keys").form("/console/sign-out"))
    assert "/console/sign-out/provider" in seen.links
    target = site.get("/console/sign-out/provider").location
    assert target == f"{sign_ins.provider.issuer}/logout?client_id=keybearer-console"
