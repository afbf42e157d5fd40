"""The pages that change a key, without a script: edit, rotate, disable, enable, old secrets."""

import re
from datetime import timedelta
from typing import Any

import pytest

from console.site import Form, Seen, Site
from fakes import FakeClock
from harness import Service, store_of
from keybearer.v1 import audit_event_pb2
from keybearer_service.domain.clock import DAY, MINUTE
from keybearer_service.storage import Foreseen, StoreLockedError


def path_of(key_id: str, change: str) -> str:
    """Return where the form of a change is."""
    return f"/console/keys/{key_id}/{change}"


def form_of(site: Site, key_id: str, change: str) -> Form:
    """Return the form of a change."""
    return site.get(path_of(key_id, change)).form(path_of(key_id, change))


def actions_about(service: Service, target: str) -> list[str]:
    """Return what was done to something, newest first."""
    events = service.admin.events(target_id=target)
    return [
        audit_event_pb2.AuditAction.Name(one.action).removeprefix("AUDIT_ACTION_") for one in events
    ]


# --- edit -----------------------------------------------------------------------------------------


def test_a_key_is_edited(service: Service, signed_in: Site) -> None:
    """The form holds what is there; what is changed is saved, and the details say so."""
    key = service.admin.create_key(
        name="ci", description="Builds.", scopes=["a.b", "c"], labels={"team": "x", "env": "prod"}
    ).api_key
    form = form_of(signed_in, key.id, "edit")
    assert form.fields["name"] == "ci"
    assert form.fields["description"] == "Builds."
    assert form.fields["role"] == "DEVELOPER"
    assert form.fields["scopes"] == "a.b c"
    assert form.fields["labels"] == "env=prod\nteam=x"
    assert form.fields["expires"] == "keep"
    seen = signed_in.send(form, name="ci 2", scopes="d.*", labels="team=y", role="VALIDATOR")
    assert (seen.status, seen.location) == (303, f"/console/keys/{key.id}?done=edited")
    assert "The change is saved." in signed_in.get(seen.location).dialog
    edited = service.admin.key(key.id)
    assert (edited.name, list(edited.scopes), dict(edited.labels)) == (
        "ci 2",
        ["d.*"],
        {"team": "y"},
    )
    assert (edited.role, edited.description) == (1, "Builds.")
    assert not edited.HasField("expire_time")


@pytest.mark.parametrize(
    ("expires", "date", "expected"),
    [
        ("30", "", "2023-12-14T22:13:20Z"),
        ("date", "2030-12-31", "2031-01-01T00:00:00Z"),
        ("never", "", ""),
        ("keep", "2030-12-31", "2023-11-16T22:13:20Z"),
    ],
)
def test_the_end_of_a_key_is_moved(
    service: Service, signed_in: Site, expires: str, date: str, expected: str
) -> None:
    """Or left as it is, which is preset."""
    key = service.admin.create_key(ttl=timedelta(days=2)).api_key
    form = form_of(signed_in, key.id, "edit")
    assert signed_in.send(form, expires=expires, expire_date=date).status == 303
    edited = service.admin.key(key.id)
    there = edited.expire_time.ToJsonString() if edited.HasField("expire_time") else ""
    assert there == expected


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("name", " ", "Give the key a name"),
        ("scopes", "!", "of at most 100 characters"),
        ("labels", "x", "One label a line"),
        ("expires", "soon", "Choose when the key expires."),
        ("role", "", "Choose a role."),
    ],
)
def test_what_is_wrong_with_an_edit_is_said_beside_its_field(
    service: Service, signed_in: Site, field: str, value: str, text: str
) -> None:
    """What was typed stays, and nothing is changed."""
    key = service.admin.create_key(name="as it was").api_key
    form = form_of(signed_in, key.id, "edit")
    seen = signed_in.send(form, **{"description": "kept", field: value})
    assert seen.status == 400
    assert f'id="{field}-error"' in seen.html
    assert seen.dialog.count(text) == 2
    assert seen.form(path_of(key.id, "edit")).fields["description"] == "kept"
    assert service.admin.key(key.id).description == ""


def test_a_key_that_somebody_changed_meanwhile_is_not_overwritten(
    service: Service, signed_in: Site
) -> None:
    """What was typed is kept beside what is there now; a second press saves it."""
    key = service.admin.create_key(name="old", description="old").api_key
    form = form_of(signed_in, key.id, "edit")
    service.admin.update_key(key.id, {"name": "theirs", "labels": {"a": "b"}})
    seen = signed_in.send(form, name="mine")
    assert seen.status == 409
    assert "Somebody changed this key at 22:13 UTC." in seen.dialog
    assert re.findall(r"<dt>(.*?)</dt><dd><bdi>(.*?)</bdi>", seen.html) == [
        ("Name", "theirs"),
        ("Labels", "a=b"),
    ]
    assert service.admin.key(key.id).name == "theirs"
    again = seen.form(path_of(key.id, "edit"))
    assert again.fields["name"] == "mine"
    assert signed_in.send(again).status == 303
    assert service.admin.key(key.id).name == "mine"


def test_an_edit_that_is_sent_twice_is_one_edit(service: Service, signed_in: Site) -> None:
    """The second one finds what it wants to save, and says that it is saved."""
    key = service.admin.create_key(name="old", ttl=timedelta(days=2)).api_key
    form = form_of(signed_in, key.id, "edit")
    seen = [signed_in.send(form, name="new", expires="30") for _ in range(2)]
    assert [one.status for one in seen] == [303, 303]
    assert actions_about(service, key.id) == ["API_KEY_UPDATED", "API_KEY_CREATED"]


def test_a_key_that_is_over_says_what_cannot_be_changed(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """An expired one keeps its end; of a revoked one nothing changes, also when it is sent late."""
    expired = service.admin.create_key(ttl=timedelta(days=1)).api_key.id
    revoked = service.admin.create_key().api_key.id
    form = form_of(signed_in, revoked, "edit")
    late = form_of(signed_in, expired, "edit")
    clock.advance(DAY)
    service.admin.revoke(revoked)
    signed_in.sign_in(service.admin_token)
    page = signed_in.get(path_of(expired, "edit"))
    assert "is not revived" in page.dialog
    assert signed_in.send(page.form(path_of(expired, "edit")), name="renamed").status == 303
    assert service.admin.key(expired).name == "renamed"
    csrf = signed_in.new_key_form().fields["csrf"]
    seen = signed_in.send(late, csrf=csrf, expires="never", etag="")
    assert seen.status == 409
    assert "is not revived" in seen.dialog
    seen = signed_in.send(form, csrf=csrf, name="late")
    assert seen.status == 409
    assert "This key is revoked" in seen.dialog
    assert "<input" not in seen.html.partition("<dialog")[2].partition("</dialog>")[0]


def test_a_session_that_ends_in_the_middle_of_an_edit_loses_nothing(
    service: Service, signed_in: Site
) -> None:
    """401 with the form filled in, and nothing of the key; after signing in it is saved."""
    key = service.admin.create_key(name="secret name").api_key.id
    form = form_of(signed_in, key, "edit")
    typed = {"name": "typed", "description": "first\nsecond", "labels": "a=b", "expires": "never"}
    session = dict(signed_in.cookies)
    signed_in.send(signed_in.get("/console/keys").form("/console/sign-out"))
    signed_in.cookies.update(session)
    seen = signed_in.send(form, **typed)
    assert seen.status == 401
    assert "secret name" not in seen.html
    kept = seen.form(path_of(key, "edit"))
    assert {name: kept.fields[name] for name in typed} == typed
    assert kept.fields["etag"] == form.fields["etag"]
    signed_in.sign_in(service.admin_token)
    seen = signed_in.send(kept)
    assert seen.status == 403
    assert signed_in.send(seen.form(path_of(key, "edit"))).status == 303
    assert service.admin.key(key).description == "first second"


# --- rotate ---------------------------------------------------------------------------------------


def test_a_key_is_rotated_with_an_overlap(service: Service, signed_in: Site) -> None:
    """The new secret is shown once; the old one works on, and the details say until when."""
    made = service.admin.create_key(name="ci")
    seen = signed_in.send(form_of(signed_in, made.api_key.id, "rotate"), overlap="7d")
    assert seen.status == 200
    assert seen.token not in ("", made.token)
    assert "This is the only time the key is shown." in seen.dialog
    assert service.admin.outcome(seen.token) == "VALID"
    assert service.admin.outcome(made.token) == "VALID"
    details = signed_in.get(f"/console/keys/{made.api_key.id}")
    assert "The old secret works until Nov 21, 2023, 22:13 UTC" in details.dialog
    assert "End it now" in details.dialog


def test_an_old_secret_ends_at_once_when_asked(service: Service, signed_in: Site) -> None:
    """Nothing is preset: how long it lives is always a choice."""
    made = service.admin.create_key()
    form = form_of(signed_in, made.api_key.id, "rotate")
    seen = signed_in.send(form)
    assert seen.status == 400
    assert "Choose what becomes of the old secret." in seen.dialog
    assert service.admin.outcome(made.token) == "VALID"
    seen = signed_in.send(form, overlap="0")
    assert service.admin.outcome(made.token) == "NOT_FOUND"
    assert service.admin.outcome(seen.token) == "VALID"


def test_a_rotation_that_is_sent_twice_is_one_rotation(service: Service, signed_in: Site) -> None:
    """The second gets 409 and no secret; only when asked it is replaced."""
    made = service.admin.create_key(name="ci")
    form = form_of(signed_in, made.api_key.id, "rotate")
    first = signed_in.send(form, overlap="1d")
    second = signed_in.send(form, overlap="1d")
    assert (second.status, second.token) == (409, "")
    assert "This key was rotated already" in second.dialog
    assert service.admin.key(made.api_key.id).secret_version == 2
    third = signed_in.send(second.form(path_of(made.api_key.id, "rotate")))
    assert third.token not in ("", first.token)
    assert service.admin.outcome(first.token) == "NOT_FOUND"
    assert service.admin.outcome(made.token) == "VALID"
    changed = signed_in.send(form, overlap="0")
    assert changed.status == 409
    assert "This form was used already" in changed.dialog
    assert service.admin.outcome(made.token) == "VALID"


def test_a_key_that_is_over_gets_no_secret(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """The page says so, also when it ended while somebody chose."""
    key = service.admin.create_key().api_key.id
    form = form_of(signed_in, key, "rotate")
    service.admin.revoke(key)
    seen = signed_in.send(form, overlap="0")
    assert seen.status == 409
    assert "This key is revoked." in seen.dialog
    assert not seen.token
    assert "This key is revoked." in signed_in.get(path_of(key, "rotate")).dialog


def test_rotating_the_key_one_is_signed_in_with_shows_its_secret_first(
    service: Service, signed_in: Site
) -> None:
    """The page warns; the session ends with the old secret."""
    page = signed_in.get(path_of(service.admin_key_id, "rotate"))
    assert "You are signed in with this key." in page.dialog
    seen = signed_in.send(page.form(path_of(service.admin_key_id, "rotate")), overlap="0")
    assert service.as_token(seen.token).who_am_i().valid
    assert not signed_in.is_signed_in


def test_a_secret_is_shown_although_the_store_fails_behind_its_change(
    service: Service, signed_in: Site
) -> None:
    """What is committed is never said not to be: the page comes without the list."""
    made = service.admin.create_key(name="ci")
    store = store_of(service.app)
    write, is_written = store.write, []

    def noted(foreseen: Foreseen = ()) -> Any:
        is_written.append(True)
        return write(foreseen)

    def fail(*_: Any) -> Any:
        raise StoreLockedError("away")

    def read(*arguments: Any) -> Any:
        return fail() if is_written else store_read(*arguments)

    store_read = store.read
    new, rotate = signed_in.new_key_form(), form_of(signed_in, made.api_key.id, "rotate")
    with store.replacing(write=noted, read=read):
        created = signed_in.send(new, name="x", role="DEVELOPER")
        is_written.clear()
        rotated = signed_in.send(rotate, overlap="0")
    assert (created.status, rotated.status) == (200, 200)
    for seen in (created, rotated):
        assert service.admin.outcome(seen.token) == "VALID"
        assert "<table>" not in seen.html


# --- disable, enable, end the old secret ----------------------------------------------------------


def test_a_key_is_disabled_and_enabled(service: Service, signed_in: Site) -> None:
    """Each asks first, says what will happen, and says afterwards that it has."""
    made = service.admin.create_key(name="ci")
    key = made.api_key.id
    page = signed_in.get(path_of(key, "disable"))
    assert "refused at once, until it is enabled again" in page.dialog
    assert service.admin.outcome(made.token) == "VALID"
    seen = signed_in.send(page.form(path_of(key, "disable")))
    assert "It is disabled." in signed_in.get(seen.location).dialog
    assert service.admin.outcome(made.token) == "DISABLED"
    seen = signed_in.send(form_of(signed_in, key, "enable"))
    assert "It is enabled" in signed_in.get(seen.location).dialog
    assert service.admin.outcome(made.token) == "VALID"
    # A link does not say what is not so.
    assert "It is disabled." not in signed_in.get(f"/console/keys/{key}?done=disabled").dialog


def test_a_switch_that_is_sent_twice_or_late_is_one(service: Service, signed_in: Site) -> None:
    """A key that is so already stays; a revoked one is said to be."""
    key = service.admin.create_key().api_key.id
    form = form_of(signed_in, key, "disable")
    assert [signed_in.send(form).status for _ in range(2)] == [303, 303]
    assert actions_about(service, key) == ["API_KEY_DISABLED", "API_KEY_CREATED"]
    assert "This key is disabled." in signed_in.get(path_of(key, "disable")).dialog
    enabling = form_of(signed_in, key, "enable")
    service.admin.revoke(key)
    seen = signed_in.send(enabling)
    assert seen.status == 409
    assert "This key is revoked." in seen.dialog


def test_an_old_secret_is_ended(service: Service, signed_in: Site, clock: FakeClock) -> None:
    """The page says whether something still has it; the new one works on."""
    made = service.admin.create_key(name="ci")
    key = made.api_key.id
    new = service.admin.rotate(key, overlap=timedelta(days=7))
    clock.advance(MINUTE)
    service.admin.validate(made.token)
    service.flush_uses()
    page = signed_in.get(path_of(key, "end-old-secret"))
    assert "something still has it" in page.dialog
    seen = signed_in.send(page.form(path_of(key, "end-old-secret")))
    assert "The old secret is refused." in signed_in.get(seen.location).dialog
    assert service.admin.outcome(made.token) == "NOT_FOUND"
    assert service.admin.outcome(new.token) == "VALID"
    assert actions_about(service, key)[0] == "API_KEY_OVERLAP_ENDED"
    assert "No old secret" in signed_in.get(path_of(key, "end-old-secret")).dialog


# --- whose key it is ------------------------------------------------------------------------------

CHANGES = ("edit", "rotate", "disable", "enable", "end-old-secret")


def test_a_key_of_another_account_cannot_be_changed_and_answers_like_none(
    service: Service, site: Site
) -> None:
    """Both ends of every change, word for word."""
    site.sign_in(service.tenant().stubs.token)
    csrf = site.new_key_form().fields["csrf"]
    typed = {"csrf": csrf, "name": "x", "role": "DEVELOPER", "expires": "keep", "overlap": "0"}
    typed |= {"request_id": "123e4567-e89b-42d3-a456-426614174000", "attempt": "0"}

    def answers(key_id: str) -> list[tuple[int, str]]:
        seen: list[Seen] = []
        for change in CHANGES:
            seen += [
                site.get(path_of(key_id, change)),
                site.post(path_of(key_id, change), typed),
            ]
        return [(one.status, one.html.replace(key_id, "ID")) for one in seen]

    foreign = answers(service.admin_key_id)
    assert foreign == answers("0000000000000000")
    assert {status for status, _ in foreign} == {404}
    assert actions_about(service, service.admin_key_id) == ["INSTALLATION_CREATED"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_another_site_or_without_the_forms_secret_does_nothing(
    service: Service, signed_in: Site, change: str
) -> None:
    """And what was typed is there again in the second case."""
    made = service.admin.create_key(name="target")
    key = made.api_key.id
    if change == "enable":
        service.admin.disable_key(key)
    if change == "end-old-secret":
        service.admin.rotate(key, overlap=timedelta(days=1))
    before = actions_about(service, key)
    form = form_of(signed_in, key, change)
    typed = {**form.fields, "overlap": "0", "name": "forged"}
    seen = signed_in.post(form.action, typed, headers={"sec-fetch-site": "cross-site"})
    assert (seen.status, seen.text.count("not sent from the console")) == (403, 1)
    seen = signed_in.post(form.action, {**typed, "csrf": "0" * 64})
    assert seen.status == 403
    kept = seen.form(form.action).fields
    assert kept["csrf"] == form.fields["csrf"]
    assert kept.get("name", "forged") == "forged"
    assert actions_about(service, key) == before


def test_an_operator_changes_a_key_of_a_tenant(service: Service, signed_in: Site) -> None:
    """The page then stands above the keys of that account, and names it."""
    tenant = service.tenant()
    key = tenant.stubs.create_key(name="theirs").api_key.id
    details = signed_in.get(f"/console/keys/{key}")
    assert details.status == 200
    assert "<title>theirs · tenant · keybearer</title>" in details.html
    form = form_of(signed_in, key, "edit")
    seen = signed_in.send(form, name="renamed")
    assert seen.status == 303
    assert f"account={tenant.account_id}" in seen.location
    assert tenant.stubs.key(key).name == "renamed"
