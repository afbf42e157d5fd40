"""The pages of keys, without a script: list, create, shown once, details, revoke."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from console.site import Seen, Site
from fakes import FakeClock
from harness import Service, store_of
from keybearer_service.domain.clock import DAY, HOUR, MINUTE
from keybearer_service.storage import CommitFailedError, Foreseen

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{97*103}}"


def names_in(seen: Seen) -> list[str]:
    """Return the names of the keys in a list, in their order."""
    rows = seen.html.partition("<tbody>")[2].partition("</tbody>")[0]
    return re.findall(r'<th scope="row".*?<bdi>(.*?)</bdi>', rows)


def row_of(seen: Seen, name: str) -> str:
    """Return what the list says of one key."""
    rows = re.findall(r"<tr.*?</tr>", seen.html.partition("<tbody>")[2], re.DOTALL)
    row = next(one for one in rows if f"<bdi>{name}</bdi>" in one)
    return " ".join(re.sub(r"<[^>]+>", " ", row).split())


# --- list -----------------------------------------------------------------------------------------


def test_the_list_has_the_columns_of_the_description(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """Name with its role, status, who created it and for whom, created, last used, expires."""
    deploy = service.admin.create_user("deploy@example.com", role="ROLE_DEVELOPER")
    made = service.admin.create_key(
        name="ci", role="ROLE_ADMIN", owner_id=deploy.id, ttl=timedelta(days=12)
    )
    clock.advance(3 * HOUR)
    service.admin.validate(made.token, account_id="-")
    service.flush_uses()
    signed_in.sign_in(service.admin_token)
    seen = signed_in.get("/console/keys")
    heads = re.findall(r'<th scope="col".*?</th>', seen.html)
    titles = [re.sub(r"<[^>]+>", "", one).split(" ↓")[0] for one in heads]
    assert titles == [
        "Ticked",
        "Name",
        "Status",
        "Created by",
        "Created",
        "Last used",
        "Expires",
        "Actions",
    ]
    assert row_of(seen, "ci") == (
        "Tick ci ci Developer (granted Admin) Active admin@example.com for deploy@example.com "
        "3 hours ago just now in 11 days Revoke ci"
    )


def test_an_account_without_keys_says_what_a_key_is(service: Service, site: Site) -> None:
    """A filter that finds nothing offers to clear it instead."""
    site.sign_in(service.admin_token)
    seen = site.get("/console/keys?view=expiring")
    assert "No key matches." in seen.text
    assert "Show all keys" in seen.text


VIEWS = {
    "": {"active", "soon", "idle", "disabled", "revoked", "expired"},
    "active": {"active", "soon", "idle"},
    "expiring": {"soon"},
    "unused": {"idle"},
    "over": {"revoked", "expired"},
}


def test_every_view_has_its_keys_and_the_urgent_ones_a_count(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """All, active, expiring within 30 days, unused for 90 days, revoked and expired."""
    admin = service.admin
    admin.create_key(name="expired", ttl=timedelta(days=1))
    idle = admin.create_key(name="idle")
    clock.advance(92 * DAY)
    admin.create_key(name="active")
    admin.create_key(name="soon", ttl=timedelta(days=30))
    admin.disable_key(admin.create_key(name="disabled").api_key.id)
    admin.revoke(admin.create_key(name="revoked").api_key.id)
    assert idle.token
    signed_in.sign_in(service.admin_token)
    service.flush_uses()
    first = names_in(signed_in.get("/console/keys"))
    assert set(first) >= VIEWS[""]
    others = set(first) - VIEWS[""]  # the administrator's own
    for view, names in VIEWS.items():
        seen = signed_in.get(f"/console/keys?view={view}")
        assert set(names_in(seen)) - others == names, view
    counts = re.findall(r'>([\w ]+) <span class="count">(.*?)</span>', seen.html)
    assert counts == [("Expiring soon", "1"), ("Unused for 90 days", "1")]


def test_the_list_is_sorted_filtered_and_paged_by_its_url(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """Each is a page of its own, which can be linked."""
    for number in range(60):
        clock.advance(1000)
        service.admin.create_key(name=f"key {number:02}")
    seen = signed_in.get("/console/keys?order=name&q=KEY+")
    assert names_in(seen) == [f"key {number:02}" for number in range(50)]
    target = next(one for one in seen.links if "page=" in one)
    rest = signed_in.get(target)
    assert names_in(rest) == [f"key {number:02}" for number in range(50, 60)]
    assert "First page" in rest.text
    assert names_in(signed_in.get("/console/keys?order=name-last&q=key+"))[0] == "key 59"
    assert names_in(signed_in.get("/console/keys?q=key+"))[0] == "key 59"
    assert names_in(signed_in.get("/console/keys?order=oldest&q=key+"))[0] == "key 00"
    assert 'aria-sort="ascending"' in seen.html


def test_a_page_of_another_list_is_said(signed_in: Site) -> None:
    """An old link leads to a sentence, and to the list."""
    seen = signed_in.get("/console/keys?page=abc")
    assert seen.status == 400
    assert "Not a token of this list" in seen.text
    assert "Show all keys" in seen.text


# --- create and shown once ------------------------------------------------------------------------


def test_a_key_is_created_as_the_form_says(service: Service, signed_in: Site) -> None:
    """Every field of the form arrives at the key, and the token that is shown works."""
    deploy = service.admin.create_user("deploy@example.com", role="ROLE_DEVELOPER")
    seen = signed_in.create(
        name=" ci ",
        description="Publishes.\nSecret in the vault.",
        scopes="clusters.read  backups.*",
        expires="365",
        owner="Deploy@example.com",
        labels="team = platform\n\nenv=prod",
    )
    assert service.admin.outcome(seen.token) == "VALID"
    key = service.admin.key(seen.token.split("_")[1])
    assert key.name == "ci"
    assert key.description == "Publishes. Secret in the vault."
    assert list(key.scopes) == ["clusters.read", "backups.*"]
    assert key.owner_id == deploy.id
    assert key.created_by == service.admin_user_id
    assert dict(key.labels) == {"team": "platform", "env": "prod"}
    assert key.expire_time.seconds - key.create_time.seconds == 365 * 86400


@pytest.mark.parametrize(
    ("expires", "date", "expected"),
    [
        ("30", "", "2023-12-14T22:13:20Z"),
        ("90", "", "2024-02-12T22:13:20Z"),
        ("date", "2024-12-31", "2025-01-01T00:00:00Z"),
        ("never", "", ""),
    ],
)
def test_a_key_expires_when_the_form_says(
    service: Service, signed_in: Site, expires: str, date: str, expected: str
) -> None:
    """After a span, at the end of a day in UTC, or never."""
    seen = signed_in.create(expires=expires, expire_date=date)
    key = service.admin.key(seen.token.split("_")[1])
    shown = key.expire_time.ToJsonString() if key.HasField("expire_time") else ""
    assert shown == expected


WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    "no name": ({"name": " "}, "name", "Give the key a name"),
    "long name": ({"name": "n" * 101}, "name", "At most 100 characters; this has 101."),
    "control": ({"name": "a\u202eb"}, "name", "bidi character"),
    "no role": ({"role": ""}, "role", "Choose a role."),
    "another role": ({"role": "KING"}, "role", "Choose a role."),
    "scope": ({"scopes": "Clusters!"}, "scopes", "characters"),
    "scopes of an admin": ({"role": "ADMIN", "scopes": "a"}, "scopes", "carries none"),
    "no expiry": ({"expires": ""}, "expires", "Choose when the key expires."),
    "no date": ({"expires": "date"}, "expires", "A day is needed"),
    "the past": ({"expires": "date", "expire_date": "2020-01-01"}, "expires", "future"),
    "labels": ({"labels": "team"}, "labels", "One label a line"),
    "label": ({"labels": "Team=x"}, "labels", "Keys are name"),
    "twice": ({"labels": "a=1\na=2"}, "labels", "twice"),
    "owner": ({"owner": "nobody@example.com"}, "owner", "No user of this account"),
    "long owner": ({"owner": "x" * 300}, "owner", "No user of this account"),
    "description": ({"description": "d" * 1001}, "description", "At most 1000"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_is_wrong_is_said_beside_its_field(
    service: Service, signed_in: Site, case: str
) -> None:
    """And in a summary above; what was typed stays, and nothing is created."""
    fields, name, text = WRONG[case]
    seen = signed_in.create(**{"description": "kept", **fields})
    assert seen.status == 400
    assert f'id="{name}-error"' in seen.html
    assert seen.dialog.count(text) == 2
    kept = seen.form("/console/keys").fields
    for typed, value in fields.items():
        if typed not in ("role", "expires") or value in ("ADMIN", "date"):
            assert kept.get(typed, "").strip() == value.strip()
    assert len(service.admin.list_keys().api_keys) == 1


def test_several_errors_are_said_at_once(signed_in: Site) -> None:
    """Nobody mends one after the other."""
    seen = signed_in.create(name="", role="", scopes="!", labels="x")
    assert sorted(re.findall(r'id="(\w+)-error"', seen.html)) == [
        "labels",
        "name",
        "role",
        "scopes",
    ]


def test_a_form_that_is_sent_twice_creates_one_key(service: Service, signed_in: Site) -> None:
    """A reload gets 409 and no secret; the token that was shown works on."""
    form = signed_in.new_key_form()
    first = signed_in.send(form, name="once", role="DEVELOPER")
    second = signed_in.send(form, name="once", role="DEVELOPER")
    assert (first.status, second.status) == (200, 409)
    assert second.token == ""
    assert "This key exists already" in second.text
    assert "22:13 UTC" in second.text
    assert service.admin.outcome(first.token) == "VALID"
    assert [one.name for one in service.admin.list_keys().api_keys].count("once") == 1


def test_a_form_that_is_sent_many_times_at_once_creates_one_key(
    service: Service, signed_in: Site
) -> None:
    """One answer has the secret, which works, and the others have none."""
    form = signed_in.new_key_form()
    fields = {**form.fields, "name": "at once", "role": "DEVELOPER"}

    def send(_: int) -> Seen:
        with Site.of(service) as other:
            other.cookies.update(signed_in.cookies)
            return other.post(form.action, fields)

    with ThreadPoolExecutor(8) as executor:
        seen = list(executor.map(send, range(8)))
    tokens = [one.token for one in seen if one.token]
    assert len(tokens) == 1
    assert sorted(one.status for one in seen) == [200] + [409] * 7
    assert service.admin.outcome(tokens[0]) == "VALID"
    assert [one.name for one in service.admin.list_keys().api_keys].count("at once") == 1


def test_a_secret_that_was_lost_is_replaced_only_when_asked(
    service: Service, signed_in: Site
) -> None:
    """The button is there while nobody has used the secret; the one before stops working."""
    form = signed_in.new_key_form()
    first = signed_in.send(form, name="lost", role="DEVELOPER", scopes="a.b")
    again = signed_in.send(form, name="lost", role="DEVELOPER", scopes="a.b")
    assert "Show a new secret" in again.text
    second = signed_in.send(again.form("/console/keys"))
    assert second.token not in ("", first.token)
    assert service.admin.outcome(first.token) == "NOT_FOUND"
    assert service.admin.outcome(second.token) == "VALID"
    third = signed_in.send(again.form("/console/keys"))
    assert third.status == 409
    assert "Show a new secret" not in third.text


def test_an_answer_that_is_lost_after_the_commit_costs_no_second_key(
    service: Service, signed_in: Site
) -> None:
    """The page does not know whether it was done; the form sent again does, and one token works."""
    store = store_of(service.app)
    write = store.write

    @contextmanager
    def lost(foreseen: Foreseen) -> Iterator[Any]:
        with write(foreseen) as tx:
            yield tx
        raise CommitFailedError("the answer was lost", is_fatal=False)

    form = signed_in.new_key_form()
    with store.replacing(write=lost):
        first = signed_in.send(form, name="lost answer", role="DEVELOPER")
    assert first.status == 503
    assert "not known whether this was done" in first.text
    second = signed_in.send(first.form("/console/keys"))
    if second.status == 403:  # the page of an outage has no secret of the session
        second = signed_in.send(second.form("/console/keys"))
    assert second.status == 409
    third = signed_in.send(second.form("/console/keys"))
    assert service.admin.outcome(third.token) == "VALID"
    names = [one.name for one in service.admin.list_keys().api_keys]
    assert names.count("lost answer") == 1


def test_a_secret_of_long_ago_is_not_replaced(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """After ten minutes there is no button."""
    form = signed_in.new_key_form()
    signed_in.send(form, name="old", role="DEVELOPER")
    clock.advance(10 * MINUTE)
    again = signed_in.send(form, name="old", role="DEVELOPER")
    assert again.status == 409
    assert "Show a new secret" not in again.text
    assert "See the key" in again.text


def test_a_form_that_is_changed_and_sent_again_creates_nothing(
    service: Service, signed_in: Site
) -> None:
    """The page says what the form has created, and offers another one."""
    form = signed_in.new_key_form()
    signed_in.send(form, name="one", role="DEVELOPER")
    seen = signed_in.send(form, name="two", role="DEVELOPER")
    assert seen.status == 409
    assert "This form was used already" in seen.text
    assert "one" in seen.dialog
    assert "two" not in {one.name for one in service.admin.list_keys().api_keys}


@pytest.mark.parametrize(
    ("field", "value"),
    [("request_id", ""), ("request_id", "x"), ("attempt", "-1"), ("attempt", "9" * 30)],
)
def test_hidden_fields_that_were_altered_are_refused(
    service: Service, signed_in: Site, field: str, value: str
) -> None:
    """With a sentence, and nothing is created."""
    seen = signed_in.create(**{field: value})
    assert seen.status == 400
    assert "cannot be sent again" in seen.text
    assert len(service.admin.list_keys().api_keys) == 1


def test_the_page_after_a_secret_changes_a_cookie(signed_in: Site) -> None:
    """So a browser that keeps pages as they were throws the one with the secret away."""
    name = "__Host-keybearer-shown"
    seen = signed_in.create()
    assert signed_in.cookies[name]
    cookie = next(one for one in seen.response.headers.get_list("set-cookie") if name in one)
    assert "HttpOnly" in cookie
    seen = signed_in.send(next(one for one in seen.forms if one.action.endswith("/saved")))
    assert seen.status == 303
    assert name not in signed_in.cookies
    values = set()
    for _ in range(2):
        signed_in.create()
        values.add(signed_in.cookies[name])
    assert len(values) == 2


# --- details --------------------------------------------------------------------------------------


def test_the_details_say_everything_about_a_key(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """Facts, history with who and from where, and what somebody should know, each once."""
    lin = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
    made = service.admin.create_key(
        name="terraform",
        role="ROLE_ADMIN",
        owner_id=lin.id,
        description="Plans.",
        labels={"team": "platform"},
        ttl=timedelta(days=20),
    )
    service.admin.update_user(lin.id, {"role": "ROLE_DEVELOPER"})
    service.admin.validate(made.token)
    service.admin.rotate(made.api_key.id, overlap=timedelta(days=7))
    clock.advance(2 * DAY)
    service.admin.validate(made.token)
    service.flush_uses()
    clock.advance(4 * HOUR)
    signed_in.sign_in(service.admin_token)
    seen = signed_in.get(f"/console/keys/{made.api_key.id}")
    for text in (
        "API Key Details",
        "Granted Admin, counts as Developer.",
        "The old secret works until Nov 21, 2023, 22:13 UTC",
        "It was last used 4 hours ago: something still has it.",
        "Expires in 17 days.",
        "Plans.",
        "team=platform",
        "about 2 uses",
        "lin@example.com",
        "Rotated",
        "Created",
        "admin@example.com from 127.0.0.1",
    ):
        assert text in seen.dialog, text
    assert "Never used" not in seen.dialog


def test_a_long_history_has_pages(service: Service, signed_in: Site) -> None:
    """Twenty events at first, then the older ones."""
    key = service.admin.create_key(name="busy").api_key.id
    for _ in range(12):
        service.admin.disable_key(key)
        service.admin.enable_key(key)
    seen = signed_in.get(f"/console/keys/{key}")
    assert seen.html.count('<span class="when">') == 20
    older = signed_in.get(next(one for one in seen.links if "history=" in one))
    assert older.html.count('<span class="when">') == 5
    assert signed_in.get(f"/console/keys/{key}?history=x").html.count('<span class="when">') == 20


# --- revoke ---------------------------------------------------------------------------------------


def test_a_key_is_revoked_with_its_reason(service: Service, signed_in: Site) -> None:
    """The page says what will happen and what depends on it; the list says that it has happened."""
    made = service.admin.create_key(name="old bot")
    service.admin.validate(made.token)
    service.flush_uses()
    key = made.api_key.id
    page = signed_in.get(f"/console/keys/{key}/revoke?view=active")
    assert "refused at once. This cannot be undone." in page.dialog
    assert "Something depends on it." in page.dialog
    assert "checked" not in page.html
    seen = signed_in.send(
        page.form(f"/console/keys/{key}/revoke"), reason="COMPROMISED", note="seen in a log"
    )
    assert (seen.status, seen.location) == (303, f"/console/keys?view=active&revoked={key}")
    seen = signed_in.get(seen.location)
    assert "old bot” is revoked" in seen.text.replace(" ”", "”")
    revoked = service.admin.key(key)
    assert revoked.revocation_note == "seen in a log"
    assert service.admin.outcome(made.token) == "REVOKED"
    details = signed_in.get(f"/console/keys/{key}").dialog
    assert "Its secret may be known to somebody else" in details
    assert "seen in a log" in details


def test_a_reason_must_be_chosen(service: Service, signed_in: Site) -> None:
    """None is preset, so that the log tells the truth; the service's own cannot be given."""
    key = service.admin.create_key().api_key.id
    for reason in ("", "OWNER_DELETED", "UNSPECIFIED", "x"):
        seen = signed_in.send(signed_in.revoke_form(key), reason=reason, note="kept")
        assert seen.status == 400
        assert "Choose a reason." in seen.dialog
        assert seen.form(f"/console/keys/{key}/revoke").fields["note"] == "kept"
    assert service.admin.key(key).revoke_time.seconds == 0


def test_a_key_that_is_revoked_already_says_so(service: Service, signed_in: Site) -> None:
    """The first reason stays, and is shown."""
    key = service.admin.create_key().api_key.id
    form = signed_in.revoke_form(key)
    service.admin.revoke(key, "REVOCATION_REASON_LOST")
    seen = signed_in.send(form, reason="COMPROMISED")
    assert "revoked already" in seen.dialog
    assert "Its secret was lost" in seen.dialog
    assert service.admin.key(key).revocation_reason == 1


def test_a_link_cannot_say_that_a_key_is_revoked(service: Service, signed_in: Site) -> None:
    """`revoked` in a URL is said only of a key that is."""
    live = service.admin.create_key(name="alive").api_key.id
    for key_id in (live, "0000000000000000", "x"):
        assert "is revoked" not in signed_in.get(f"/console/keys?revoked={key_id}").text


# --- texts that people choose ---------------------------------------------------------------------


def test_hostile_texts_are_texts(service: Service, signed_in: Site) -> None:
    """In names, descriptions, labels, notes and queries, on every page that shows them."""
    made = service.admin.create_key(
        name=HOSTILE[:100], description=HOSTILE, labels={"a": HOSTILE[:200]}
    )
    key = made.api_key.id
    pages = [
        signed_in.get("/console/keys"),
        signed_in.get("/console/keys", params={"q": HOSTILE, "owner": HOSTILE, "view": HOSTILE}),
        signed_in.get(f"/console/keys/{key}"),
        signed_in.get(f"/console/keys/{key}/revoke"),
        signed_in.create(name=HOSTILE[:100], description=HOSTILE, owner=HOSTILE, labels=HOSTILE),
        signed_in.create(name=HOSTILE[:100]),
        signed_in.get("/console/sign-in", params={"next": HOSTILE}),
    ]
    service.admin.revoke(key, note=HOSTILE)
    pages += [
        signed_in.get(f"/console/keys/{key}"),
        signed_in.get("/console/keys", params={"revoked": key}),
    ]
    for seen in pages:
        assert "<script>alert" not in seen.html
        assert "<img src=x" not in seen.html
        assert "9991" not in seen.text


def test_a_choice_of_colours_is_kept(signed_in: Site) -> None:
    """In a cookie; another value is not taken."""
    form = signed_in.get("/console/keys?view=active").form("/console/theme")
    seen = signed_in.send(form, theme="dark")
    assert (seen.status, seen.location) == (303, "/console/keys?view=active")
    assert 'data-theme="dark"' in signed_in.get("/console/keys").html
    signed_in.send(form, theme="x")
    assert 'data-theme="dark"' in signed_in.get("/console/keys").html
