"""The pages of users, without a script: list, create, details, edit, delete."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from console.site import Form, Seen, Site
from fakes import FakeClock
from harness import Service
from keybearer.v1 import audit_event_pb2
from keybearer_service.domain.clock import DAY, MINUTE

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{97*103}}"
NEW = {
    "email": "Lin@Example.com",
    "display_name": "Lin",
    "role": "DEVELOPER",
    "type": "PERSON",
}


def path_of(user_id: str, change: str) -> str:
    """Return where the form of a change is."""
    return f"/console/users/{user_id}/{change}"


def form_of(site: Site, user_id: str, change: str) -> Form:
    """Return the form of a change."""
    return site.get(path_of(user_id, change)).form(path_of(user_id, change))


def new_form(site: Site) -> Form:
    """Return the form for a new user."""
    return site.get("/console/users/new").form("/console/users")


def emails_in(seen: Seen) -> list[str]:
    """Return the users in a list, in their order."""
    rows = seen.html.partition("<tbody>")[2].partition("</tbody>")[0]
    return re.findall(r'<th scope="row".*?<bdi>(.*?)</bdi>', rows)


# --- list -----------------------------------------------------------------------------------------


def test_the_list_shows_who_there_is(service: Service, signed_in: Site, clock: FakeClock) -> None:
    """Views and the filter stand in the URL; deleted users only where they are asked for."""
    clock.advance(1)
    bot = service.admin.create_user(
        "bot@example.com", role="ROLE_VALIDATOR", type="USER_TYPE_SERVICE_ACCOUNT"
    )
    clock.advance(1)
    gone = service.admin.create_user("gone@example.com", role="ROLE_DEVELOPER")
    service.admin.delete_user(gone.id)
    assert emails_in(signed_in.get("/console/users")) == ["bot@example.com", "admin@example.com"]
    for query, expected in {
        "view=admins": ["admin@example.com"],
        "view=people": ["admin@example.com"],
        "view=services": ["bot@example.com"],
        "view=deleted": ["gone@example.com", "bot@example.com", "admin@example.com"],
        "q=BOT": ["bot@example.com"],
        "view=people&q=bot": [],
    }.items():
        assert emails_in(signed_in.get(f"/console/users?{query}")) == expected, query
    row = re.findall(r"<tr.*?</tr>", signed_in.get("/console/users").html, re.DOTALL)[1]
    text = " ".join(re.sub(r"<[^>]+>", " ", row).split())
    assert text == f"{bot.email} Validator Service account just now Delete {bot.email}"


def test_a_long_list_of_users_has_pages(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """Fifty each; a page of another list is said."""
    for number in range(55):
        clock.advance(1000)
        service.admin.create_user(f"u{number:02}@example.com", role="ROLE_DEVELOPER")
    first = signed_in.get("/console/users?q=u")
    assert len(emails_in(first)) == 50
    rest = signed_in.get(next(one for one in first.links if "page=" in one))
    assert emails_in(rest) == [f"u{number:02}@example.com" for number in range(4, -1, -1)]
    assert "First page" in rest.text
    other = signed_in.get("/console/users?page=x")
    assert other.status == 400
    assert "Show all users" in other.text


# --- create ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PERSON", "SERVICE_ACCOUNT"])
def test_a_user_is_created(service: Service, signed_in: Site, kind: str) -> None:
    """A person or a service account; the details say that the user is there."""
    seen = signed_in.send(new_form(signed_in), **{**NEW, "type": kind})
    assert seen.status == 303
    page = signed_in.get(seen.location)
    assert "The user is there." in page.dialog
    user = service.admin.user(seen.location.split("/")[3].partition("?")[0])
    assert (user.email, user.display_name, user.role) == ("lin@example.com", "Lin", 2)
    assert user.type == (1 if kind == "PERSON" else 2)


def test_a_user_that_is_created_twice_is_there_once(service: Service, signed_in: Site) -> None:
    """The second sending is led to the user, and nothing that was typed is lost."""
    form = new_form(signed_in)
    first = signed_in.send(form, **NEW)
    second = signed_in.send(form, **NEW)
    assert (first.status, second.status) == (303, 409)
    assert "There is a user with this address already." in second.dialog
    assert any(one.startswith(first.location.partition("?")[0]) for one in second.links)
    assert second.form("/console/users").fields["display_name"] == "Lin"


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("email", "", "Type an e-mail address."),
        ("email", "lin", "An address like name@example.com"),
        ("display_name", " ", "Type a name"),
        ("display_name", "a\u202eb", "bidi character"),
        ("role", "KING", "Choose a role."),
        ("type", "", "Choose what it is."),
    ],
)
def test_what_is_wrong_with_a_new_user_is_said_beside_its_field(
    service: Service, signed_in: Site, field: str, value: str, text: str
) -> None:
    """What was typed stays, and nobody is created."""
    seen = signed_in.send(new_form(signed_in), **{**NEW, field: value})
    assert seen.status == 400
    assert f'id="{field}-error"' in seen.html
    assert seen.dialog.count(text) == 2
    assert len(service.admin.list_users().users) == 1


# --- details --------------------------------------------------------------------------------------


def test_the_details_show_the_keys_sessions_and_history_of_a_user(
    service: Service, signed_in: Site
) -> None:
    """And lead to what the user did."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    key = service.admin.create_key(name="terraform", role="ROLE_ADMIN", owner_id=lin.id)
    with Site.of(service) as other:
        other.sign_in(key.token)
    service.admin.update_user(lin.id, {"role": "ROLE_DEVELOPER"})
    service.admin.update_user(lin.id, {"role": "ROLE_ADMIN"})
    seen = signed_in.get(f"/console/users/{lin.id}")
    for text in ("terraform", "just now , from 127.0.0.1", "Edited", "Created", "Admin"):
        assert text in seen.dialog, text
    assert f"/console/keys/{key.api_key.id}" in seen.links
    assert f"/console/keys?owner={lin.id}" in seen.links
    did = signed_in.get(f"/console/audit?actor={lin.id}")
    assert did.html.count("<tr>") == 2  # the head, and that Lin signed in


def test_a_deleted_user_is_shown_and_cannot_be_changed(service: Service, signed_in: Site) -> None:
    """Nor deleted once more: the page says since when."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_DEVELOPER")
    edit, delete = (form_of(signed_in, lin.id, one) for one in ("edit", "delete"))
    service.admin.delete_user(lin.id)
    seen = signed_in.get(f"/console/users/{lin.id}")
    assert "Deleted Nov 14, 2023" in seen.dialog
    assert not any(one.startswith(f"/console/users/{lin.id}/") for one in seen.links)
    assert signed_in.get(path_of(lin.id, "edit")).status == 404
    assert signed_in.send(edit, display_name="x").status == 404
    assert "deleted already" in signed_in.get(path_of(lin.id, "delete")).dialog
    assert signed_in.send(delete).status == 303


# --- edit -----------------------------------------------------------------------------------------


def test_a_user_is_demoted(service: Service, signed_in: Site) -> None:
    """The keys of the user count as less from the next check on, and say why."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    made = service.admin.create_key(name="t", role="ROLE_ADMIN", owner_id=lin.id)
    form = form_of(signed_in, lin.id, "edit")
    assert (form.fields["display_name"], form.fields["role"]) == ("lin@example.com", "ADMIN")
    seen = signed_in.send(form, role="DEVELOPER", display_name="Lin")
    assert "The change is saved." in signed_in.get(seen.location).dialog
    assert service.admin.user(lin.id).display_name == "Lin"
    assert service.admin.outcome(made.token, required_role="ROLE_ADMIN") == "ROLE_INSUFFICIENT"
    details = signed_in.get(f"/console/keys/{made.api_key.id}").dialog
    assert "Granted Admin, counts as Developer." in details


def test_a_user_that_somebody_changed_meanwhile_is_not_overwritten(
    service: Service, signed_in: Site
) -> None:
    """What was typed is kept beside what is there now; the same form sent twice is one change."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    form = form_of(signed_in, lin.id, "edit")
    service.admin.update_user(lin.id, {"role": "ROLE_DEVELOPER"})
    seen = signed_in.send(form, display_name="Lin")
    assert seen.status == 409
    assert "Somebody changed this user at 22:13 UTC." in seen.dialog
    assert re.findall(r"<dt>(.*?)</dt><dd><bdi>(.*?)</bdi>", seen.html) == [
        ("Name", "lin@example.com"),
        ("Role", "Developer"),
    ]
    again = seen.form(path_of(lin.id, "edit"))
    assert [signed_in.send(again).status for _ in range(2)] == [303, 303]
    user = service.admin.user(lin.id)
    assert (user.display_name, user.role) == ("Lin", 3)


@pytest.mark.parametrize("change", ["edit", "delete"])
def test_the_last_administrator_stays(service: Service, signed_in: Site, change: str) -> None:
    """The page says whose turn it is, and keeps what was typed."""
    form = form_of(signed_in, service.admin_user_id, change) if change == "edit" else None
    if form is None:
        page = signed_in.get(path_of(service.admin_user_id, change))
        assert page.status == 409
        form = page.form(path_of(service.admin_user_id, change))
    seen = signed_in.send(form, role="DEVELOPER", display_name="typed")
    assert seen.status == 409
    assert "only administrator of the account" in seen.dialog
    if change == "edit":
        kept = seen.form(path_of(service.admin_user_id, "edit")).fields
        assert (kept["display_name"], kept["role"]) == ("typed", "DEVELOPER")
    assert service.admin.user(service.admin_user_id).role == 3


# --- delete ---------------------------------------------------------------------------------------


def _with_keys(service: Service, clock: FakeClock) -> tuple[str, dict[str, Any]]:
    """Make a user with keys of every kind; return the user's id and the keys by name."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    bot = service.admin.create_user("bot@example.com", role="ROLE_DEVELOPER")
    own = service.admin.create_key(name="lin's", role="ROLE_ADMIN", owner_id=lin.id)
    as_lin = service.as_token(own.token)
    made = {
        "own": own,
        "used": as_lin.create_key(name="used by lin", never_expires=True),
        "old": as_lin.create_key(name="used long ago"),
        "for bot": as_lin.create_key(name="for the bot", owner_id=bot.id),
        "dead": as_lin.create_key(name="dead already"),
        "admin's": service.admin.create_key(name="of the admin"),
    }
    service.admin.revoke(made["dead"].api_key.id)
    service.admin.validate(made["old"].token)
    service.flush_uses()
    clock.advance(8 * DAY)
    for name in ("used", "for bot"):
        service.admin.validate(made[name].token)
    service.flush_uses()
    return lin.id, made


@pytest.mark.parametrize("revokes_created", [False, True])
def test_deleting_says_first_what_ends_with_the_user(
    service: Service, site: Site, clock: FakeClock, *, revokes_created: bool
) -> None:
    """The user's keys, those made for others, which are in use; then exactly these end."""
    user_id, made = _with_keys(service, clock)
    site.sign_in(service.admin_token)
    page = site.get(path_of(user_id, "delete"))
    for text in (
        "3 keys of this user end",
        "lin's",
        "used by lin",
        "1 key that this user made for others",
        "for the bot",
        "1 of them was used in the last 7 days.",
    ):
        assert text in page.dialog, text
    assert "dead already" not in page.dialog
    assert "of the admin" not in page.dialog
    assert service.admin.outcome(made["own"].token) == "VALID"
    form = page.form(path_of(user_id, "delete"))
    assert "revoke_created" not in form.fields
    seen = site.send(form, **({"revoke_created": "1"} if revokes_created else {}))
    assert (seen.status, seen.location) == (303, f"/console/users?deleted={user_id}")
    assert "lin@example.com ” is deleted." in site.get(seen.location).text
    outcomes = {name: service.admin.outcome(one.token) for name, one in made.items()}
    assert outcomes == {
        **dict.fromkeys(("own", "used", "old", "dead"), "REVOKED"),
        "for bot": "REVOKED" if revokes_created else "VALID",
        "admin's": "VALID",
    }


def test_a_link_cannot_say_that_a_user_is_deleted(service: Service, signed_in: Site) -> None:
    """`deleted` in a URL is said only of a user who is."""
    for user_id in (service.admin_user_id, "0000000000000000", "x", ""):
        assert "is deleted" not in signed_in.get(f"/console/users?deleted={user_id}").text


def test_the_own_deletion_warns_and_signs_out(service: Service, site: Site) -> None:
    """One's own sessions end with one's keys."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    made = service.admin.create_key(role="ROLE_ADMIN", owner_id=lin.id)
    site.sign_in(made.token)
    page = site.get(path_of(lin.id, "delete"))
    assert "This is you." in page.dialog
    assert site.send(page.form(path_of(lin.id, "delete"))).status == 303
    assert not site.is_signed_in


# --- in another window ----------------------------------------------------------------------------

LOSSES: dict[str, Callable[[Service, str], object]] = {
    "demoted": lambda service, user: service.admin.update_user(user, {"role": "ROLE_DEVELOPER"}),
    "deleted": lambda service, user: service.admin.delete_user(user),
}


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_somebody_who_loses_the_role_in_another_window_changes_nothing_and_loses_no_text(
    service: Service, site: Site, loss: str
) -> None:
    """Every form comes back filled in, says nothing of others, and has done nothing."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    target = service.admin.create_user("target@example.com", role="ROLE_DEVELOPER")
    key = service.admin.create_key(name="target key").api_key
    site.sign_in(service.admin.create_key(role="ROLE_ADMIN", owner_id=lin.id).token)
    forms = {
        "create": (new_form(site), {**NEW, "email": "new@example.com"}),
        "edit": (form_of(site, target.id, "edit"), {"display_name": "typed", "role": "ADMIN"}),
        "delete": (form_of(site, target.id, "delete"), {"revoke_created": "1"}),
        "key": (
            site.get(f"/console/keys/{key.id}/edit").form(f"/console/keys/{key.id}/edit"),
            {"name": "typed"},
        ),
    }
    before = len(service.admin.events())
    LOSSES[loss](service, lin.id)
    for name, (form, typed) in forms.items():
        seen = site.send(form, **typed)
        assert seen.status == 401, name
        assert "You are signed out." in seen.text
        kept = seen.form(form.action.partition("?")[0]).fields
        assert {field: kept.get(field) for field in typed} == typed, name
        assert "target@example.com" not in seen.html
    names = [audit_event_pb2.AuditAction.Name(one.action) for one in service.admin.events()]
    done = [one for one in names if one != "AUDIT_ACTION_CALL_REFUSED"]
    assert len(done) == before + 1
    assert service.admin.key(key.id).name == "target key"


@pytest.mark.slow
def test_no_change_by_a_session_is_later_than_the_demotion_of_its_user(
    service: Service, clock: FakeClock
) -> None:
    """1,000 races: the change is committed before the demotion, or refused and not there."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    token = service.admin.create_key(role="ROLE_ADMIN", owner_id=lin.id).token
    admin = service.admin
    before = after = 0
    barrier = threading.Barrier(2)
    with Site.of(service) as site, ThreadPoolExecutor(1) as executor:
        site.sign_in(token)
        form = new_form(site)
        for number in range(1000):
            if number % 50 == 49:
                clock.advance(MINUTE)
                site.cookies.clear()  # who is signed in gets no form to sign in at
                site.sign_in(token)
                form = new_form(site)

            def demote() -> None:
                barrier.wait()
                admin.update_user(lin.id, {"role": "ROLE_DEVELOPER"})

            demotion = executor.submit(demote)
            barrier.wait()
            email = f"race{number}@example.com"
            status = site.send(form, **{**NEW, "email": email}).status
            demotion.result()
            events = admin.events(actions=["AUDIT_ACTION_USER_CREATED"], page_size=1)
            demoted = admin.events(actions=["AUDIT_ACTION_USER_UPDATED"], page_size=1)[0]
            is_there = bool(admin.list_users(email_contains=email).users)
            if status == 303:
                assert is_there
                assert events[0].seq < demoted.seq
                before += 1
            else:
                assert status == 401
                assert not is_there
                after += 1
            admin.update_user(lin.id, {"role": "ROLE_ADMIN"})
    assert before + after == 1000
    assert min(before, after) > 0, (before, after)


# --- what is not one's own ------------------------------------------------------------------------


def test_a_user_of_another_account_answers_like_none(service: Service, site: Site) -> None:
    """Details and both ends of every change, word for word."""
    site.sign_in(service.tenant().stubs.token)
    csrf = new_form(site).fields["csrf"]

    def answers(user_id: str) -> list[tuple[int, str]]:
        seen = [site.get(f"/console/users/{user_id}")]
        for change in ("edit", "delete"):
            seen += [
                site.get(path_of(user_id, change)),
                site.post(path_of(user_id, change), {**NEW, "csrf": csrf}),
            ]
        return [(one.status, one.html.replace(user_id, "ID")) for one in seen]

    foreign = answers(service.admin_user_id)
    assert foreign == answers("0000000000000000")
    assert {status for status, _ in foreign} == {404}


def test_the_pages_of_another_account_are_not_there(service: Service, site: Site) -> None:
    """Whether the account that the URL names exists or not."""
    site.sign_in(service.tenant().stubs.token)
    for area in ("keys", "users", "audit", "sessions"):
        seen = [
            site.get(f"/console/{area}?account={account}")
            for account in (service.account_id, "0000000000000000", "x")
        ]
        assert {one.status for one in seen} == {404}
        assert "admin@example.com" not in "".join(one.html for one in seen)


@pytest.mark.parametrize("path", ["users", "users/{user}/edit", "users/{user}/delete"])
def test_a_form_of_another_site_changes_no_user(
    service: Service, signed_in: Site, path: str
) -> None:
    """Although the cookie and the form's secret are right; without the secret it is shown again."""
    user = service.admin.create_user("target@example.com", role="ROLE_DEVELOPER")
    csrf = new_form(signed_in).fields["csrf"]
    target = f"/console/{path.format(user=user.id)}"
    form = {**NEW, "csrf": csrf}
    seen = signed_in.post(target, form, headers={"sec-fetch-site": "same-site"})
    assert seen.status == 403
    seen = signed_in.post(target, {**form, "csrf": "0" * 64})
    assert seen.status == 403
    assert seen.form(target).fields["csrf"] == csrf
    users = service.admin.list_users(show_deleted=True).users
    assert {one.email for one in users} == {"target@example.com", "admin@example.com"}
    assert service.admin.user(user.id) == user


def test_hostile_names_of_users_are_texts(service: Service, signed_in: Site) -> None:
    """On every page that shows them, and in every query."""
    email = "<img/src=x>@example.com"
    user = service.admin.create_user(email, role="ROLE_ADMIN", display_name=HOSTILE[:100])
    key = service.admin.create_key(name=HOSTILE[:100], owner_id=user.id, role="ROLE_ADMIN")
    with Site.of(service) as other:
        form = other.get("/console/sign-in").form("/console/sign-in")
        agent = {"user-agent": HOSTILE}
        other.post(form.action, {"token": key.token}, headers=agent)
    pages = [
        signed_in.get("/console/users"),
        signed_in.get("/console/users", params={"q": HOSTILE, "view": HOSTILE, "deleted": HOSTILE}),
        signed_in.get(f"/console/users/{user.id}"),
        signed_in.get(f"/console/users/{user.id}?history={HOSTILE}&done={HOSTILE}"),
        signed_in.get(path_of(user.id, "edit")),
        signed_in.get(path_of(user.id, "delete")),
        signed_in.send(new_form(signed_in), email=HOSTILE, display_name=HOSTILE, role=HOSTILE),
        signed_in.get("/console/audit"),
        signed_in.get(
            "/console/audit",
            params=dict.fromkeys(("actor", "target", "action", "after", "before"), HOSTILE),
        ),
        signed_in.get("/console/sessions"),
        signed_in.get("/console/sessions", params={"account": HOSTILE}),
    ]
    assert signed_in.get("/console/sessions").text.count(HOSTILE) == 1
    for seen in pages:
        assert "<script>alert" not in seen.html
        assert "<img" not in seen.html
        assert "9991" not in seen.text
