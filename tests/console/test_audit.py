"""The pages of the audit log and of sessions, without a script."""

import re

import pytest

from console.site import SESSION, Seen, Site
from fakes import FakeClock
from harness import Service
from keybearer.v1 import audit_event_pb2
from keybearer_service.domain.clock import DAY, MINUTE


def lines_in(seen: Seen) -> list[str]:
    """Return the lines of the log, in their order."""
    rows = re.findall(r"<tr>.*?</tr>", seen.html.partition("<tbody>")[2], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", one).split()) for one in rows]


def whats_in(seen: Seen) -> list[str]:
    """Return what happened, line by line."""
    return re.findall(r'<td class="what">([^<]*)', seen.html)


# --- the log --------------------------------------------------------------------------------------


def test_the_log_says_who_did_what_to_what(service: Service, signed_in: Site) -> None:
    """Newest first, with what changed and from where; things are called by their names."""
    key = service.admin.create_key(name="ci").api_key.id
    service.admin.update_key(key, {"name": "ci 2"})
    seen = signed_in.get("/console/audit")
    newest = lines_in(seen)[0]
    assert newest.startswith("Nov 14, 2023, 22:13 UTC Number ")
    for text in (
        "API key updated",
        "name: ci → ci 2",
        "API key ci 2",
        "admin@example.com from 127.0.0.1",
    ):
        assert text in newest, text
    assert whats_in(seen)[:3] == ["API key updated", "API key created", "Signed in"]
    assert f"/console/keys/{key}" in seen.links


FILTERS = {
    "actor=lin@example.com": ["API key created", "Signed in"],
    "actor={lin}": ["API key created", "Signed in"],
    "actor={lin_key}": ["API key created", "Signed in"],
    "actor=nobody@example.com": [],
    "target=LIN@example.com": ["User updated", "User created"],
    "target={key}": ["API key revoked", "API key created"],
    "action=API_KEY_REVOKED": ["API key revoked"],
    "action=API_KEY_REVOKED&target={lin}": [],
    "after=2023-11-16": ["Signed in", "API key revoked"],
    "before=2023-11-14&action=USER_CREATED": ["User created"],
    "after=2023-11-14&before=2023-11-14&target={lin}": ["User updated", "User created"],
}


@pytest.mark.parametrize("query", sorted(FILTERS))
def test_the_log_is_filtered_by_its_url(
    service: Service, site: Site, clock: FakeClock, query: str
) -> None:
    """By who, about what, which action, and days, which count as a whole."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_DEVELOPER")
    service.admin.update_user(lin.id, {"role": "ROLE_ADMIN"})
    lin_key = service.admin.create_key(name="lin's", role="ROLE_ADMIN", owner_id=lin.id)
    site.sign_in(lin_key.token)
    made = site.create(name="made by lin").token.split("_")[1]
    clock.advance(2 * DAY)
    service.admin.revoke(made)
    site.sign_in(service.admin_token)
    named = {"lin": lin.id, "lin_key": lin_key.api_key.id, "key": made}
    found = whats_in(site.get(f"/console/audit?{query.format(**named)}"))
    assert found == FILTERS[query]


@pytest.mark.parametrize("query", ["action=KING", "after=x", "before=2023-99-99", "page=x"])
def test_a_filter_that_means_nothing_is_said(signed_in: Site, query: str) -> None:
    """With a way back to the whole log."""
    seen = signed_in.get(f"/console/audit?{query}")
    assert seen.status == 400
    assert "Show all events" in seen.text


def test_the_log_has_pages(service: Service, signed_in: Site) -> None:
    """Fifty events each, in one order, each once."""
    key = service.admin.create_key(name="busy").api_key.id
    for _ in range(30):
        service.admin.disable_key(key)
        service.admin.enable_key(key)
    first = signed_in.get(f"/console/audit?target={key}")
    rest = signed_in.get(next(one for one in first.links if "page=" in one))
    numbers = [
        int(re.findall(r"Number (\d+)", line)[0])
        for seen in (first, rest)
        for line in lines_in(seen)
    ]
    assert len(numbers) == 61
    assert numbers == sorted(set(numbers), reverse=True)


def test_the_foot_names_the_head_of_the_chain(service: Service, signed_in: Site) -> None:
    """The number and hash of the newest event, as `audit verify --expect` takes them."""
    newest = service.admin.events(page_size=1)[0]
    seen = signed_in.get("/console/audit?action=USER_DELETED")
    assert f"--expect {newest.seq}:{newest.hash.hex()}" in seen.text


def test_a_tenant_sees_its_own_log_alone(service: Service, site: Site) -> None:
    """Also when it names what belongs to others."""
    service.admin.create_user("lin@example.com")
    tenant = service.tenant()
    site.sign_in(tenant.stubs.token)
    assert whats_in(site.get("/console/audit")) == ["Signed in", "Account created"]
    for wanted in ("lin@example.com", "admin@example.com", service.admin_user_id):
        assert lines_in(site.get(f"/console/audit?target={wanted}")) == []


def test_every_action_can_be_asked_for(signed_in: Site) -> None:
    """By the names that the API has for them."""
    seen = signed_in.get("/console/audit")
    options = re.findall(r'<option value="(\w+)"', seen.html)
    known = [one.removeprefix("AUDIT_ACTION_") for one in audit_event_pb2.AuditAction.keys()[1:]]
    assert options == known


# --- sessions -------------------------------------------------------------------------------------


def sessions_in(seen: Seen) -> list[str]:
    """Return who is signed in, as the page says it."""
    rows = re.findall(r"<tr>.*?</tr>", "".join(seen.html.split("<tbody>")[1:]), re.DOTALL)
    texts = [" ".join(re.sub(r"<[^>]+>", " ", one).split()) for one in rows]
    return [one for one in texts if not one.startswith("Who ")]


def ids_in(seen: Seen) -> list[str]:
    """Return the sessions that can be ended, in their order."""
    return [one.action.split("/")[3] for one in seen.forms if one.action.endswith("/end")]


def test_who_is_signed_in_is_shown(service: Service, signed_in: Site, clock: FakeClock) -> None:
    """One's own sessions and those of the account, without those that have ended by whatever."""
    lin = service.admin.create_user("lin@example.com")
    made = [service.admin.create_key(role="ROLE_ADMIN", owner_id=lin.id) for _ in range(3)]
    tenant = service.tenant()
    sites = []
    for token in (*(one.token for one in made), tenant.stubs.token):
        with Site.of(service) as other:
            other.sign_in(token)
            sites.append(other)
    service.admin.revoke(made[1].api_key.id)
    with Site.of(service) as other:
        other.cookies.update(sites[2].cookies)
        other.send(other.get("/console/keys").form("/console/sign-out"))
    clock.advance(2 * MINUTE)
    seen = signed_in.get("/console/sessions")
    lines = sessions_in(seen)
    assert len(lines) == 2
    assert lines[0].startswith("admin@example.com This browser 2 minutes ago just now 127.0.0.1")
    assert lines[1].startswith("lin@example.com 2 minutes ago 2 minutes ago 127.0.0.1")


def test_a_session_of_somebody_else_is_ended(service: Service, signed_in: Site) -> None:
    """At the next click it opens nothing; the log says who ended it."""
    lin = service.admin.create_user("lin@example.com")
    with Site.of(service) as other:
        other.sign_in(service.admin.create_key(role="ROLE_ADMIN", owner_id=lin.id).token)
        assert other.is_signed_in
        page = signed_in.get("/console/sessions")
        session_id = other.session.split("_")[1]
        form = page.form(f"/console/sessions/{session_id}/end")
        assert [signed_in.send(form).status for _ in range(2)] == [303, 303]
        assert not other.is_signed_in
    assert signed_in.is_signed_in
    events = service.admin.events(actions=["AUDIT_ACTION_SESSION_ENDED"])
    assert [(one.target.id, one.actor.user_email) for one in events] == [
        (session_id, "admin@example.com")
    ]
    assert "A session was ended" in signed_in.get(f"/console/users/{lin.id}").dialog


def test_ending_ones_own_session_signs_out(signed_in: Site) -> None:
    """The next page asks to sign in."""
    form = signed_in.get("/console/sessions").form(
        f"/console/sessions/{signed_in.session.split('_')[1]}/end"
    )
    seen = signed_in.send(form)
    assert seen.status == 303
    seen = signed_in.get(seen.location)
    assert (seen.status, seen.location) == (303, "/console/sign-in?next=%2Fconsole%2Fsessions")


def test_a_session_of_another_account_answers_like_none(service: Service, signed_in: Site) -> None:
    """And goes on; without the secret of the form nothing ends either."""
    own_id = signed_in.session.split("_")[1]
    with Site.of(service) as site:
        site.sign_in(service.tenant().stubs.token)
        page = site.get("/console/sessions")
        assert ids_in(page) == [site.session.split("_")[1]]
        csrf = {"csrf": next(one for one in page.forms if "csrf" in one.fields).fields["csrf"]}

        def answer(session_id: str) -> tuple[int, str]:
            seen = site.post(f"/console/sessions/{session_id}/end", csrf)
            return seen.status, seen.html.replace(session_id, "ID")

        assert answer(own_id) == answer("0000000000000000")
        assert answer(own_id)[0] == 404
        forged = site.post(f"/console/sessions/{site.session.split('_')[1]}/end", {"csrf": "x"})
        assert forged.status == 403
        assert site.is_signed_in
    assert signed_in.is_signed_in


def test_the_secret_of_no_session_is_shown(signed_in: Site) -> None:
    """The page names sessions by their ids alone."""
    secret = signed_in.session.split("_")[2]
    assert secret[:20] not in signed_in.get("/console/sessions").html
    assert SESSION in signed_in.cookies
