"""Several keys at once, other accounts, and lists as files; without a script."""

import csv
import io
import re
from datetime import timedelta
from typing import Any

import httpx
import pytest

from console.site import Seen, Site
from harness import Service, store_of
from keybearer.access import Role
from keybearer_service.console.exports import PAGE, file_parts
from keybearer_service.storage import StoreLockedError
from keybearer_service.usecases.issuing import NEVER_EXPIRES, NewKey
from keybearer_service.usecases.pagination import Listed

REVOKE = "/console/keys/revoke"


def ticking(site: Site, *key_ids: str, query: str = "") -> Seen:
    """Tick keys in the list and press the button."""
    ticked = "&".join(f"key={one}" for one in key_ids)
    return site.get(f"{REVOKE}?{query}{ticked}")


def send(site: Site, page: Seen, *key_ids: str, **fields: str) -> Seen:
    """Send the form of the ticked keys, which repeats a field."""
    form = page.form(REVOKE)
    pairs = {**form.fields, **fields}
    pairs.pop("key", None)
    body: dict[str, Any] = {**pairs, "key": list(key_ids)}
    headers = {"sec-fetch-site": "same-origin", "origin": site.origin}
    return site.request("POST", form.action, data=body, headers=headers)


def results_in(seen: Seen) -> list[str]:
    """Return what became of each key."""
    items = re.findall(r"<li>(.*?)</li>", seen.html.partition("<dialog")[2], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", one).split()) for one in items]


# --- revoke those ticked --------------------------------------------------------------------------


def test_one_ticked_key_is_spoken_of_as_one(service: Service, signed_in: Site) -> None:
    """Not as one of several."""
    made = service.admin.create_key(name="the only one")
    service.admin.validate(made.token)
    service.flush_uses()
    page = ticking(signed_in, made.api_key.id)
    assert "Every program that uses this key is refused at once." in page.dialog
    assert "It was used in the last 7 days. Something depends on it." in page.dialog
    assert "Keep it" in page.dialog
    assert "them" not in page.dialog


def test_ticked_keys_are_revoked_with_one_reason(service: Service, signed_in: Site) -> None:
    """The page names them and what is in use; afterwards it says of each what became of it."""
    made = [service.admin.create_key(name=f"key {number}") for number in range(3)]
    service.admin.validate(made[1].token)
    service.flush_uses()
    listed = signed_in.get("/console/keys?view=active")
    assert len(re.findall(r'name="key"', listed.html)) == 4
    ids = [one.api_key.id for one in made[:2]]
    page = ticking(signed_in, *ids, query="view=active&")
    assert "Revoke 2 keys" in page.dialog
    assert "1 of them was used in the last 7 days." in page.dialog
    assert results_in(page) == ["key 0 Active · never used", "key 1 Active · used just now"]
    assert service.admin.outcome(made[0].token) == "VALID"
    service.admin.revoke(ids[1], "REVOCATION_REASON_COMPROMISED")
    seen = send(signed_in, page, *ids, "0000000000000000", reason="SUPERSEDED", note="n")
    assert seen.status == 200
    assert results_in(seen) == [
        "key 0 Revoked.",
        "key 1 It was revoked before: Its secret may be known to somebody else.",
        "A key There is no such key.",
    ]
    assert "/console/keys?view=active" in seen.links
    outcomes = [service.admin.outcome(one.token) for one in made]
    assert outcomes == ["REVOKED", "REVOKED", "VALID"]
    assert service.admin.key(ids[0]).revocation_note == "n"
    assert service.admin.key(ids[1]).revocation_reason == 2
    # A reload revokes nothing more, and says so.
    again = send(signed_in, page, *ids, reason="LOST")
    assert results_in(again)[0] == "key 0 It was revoked before: Another key has taken its place."


def test_without_a_reason_or_a_key_nothing_is_revoked(service: Service, signed_in: Site) -> None:
    """What was ticked and typed stays."""
    made = service.admin.create_key(name="a")
    page = ticking(signed_in, made.api_key.id)
    seen = send(signed_in, page, made.api_key.id, note="kept")
    assert seen.status == 400
    assert seen.dialog.count("Choose a reason.") == 2
    kept = seen.form(REVOKE).fields
    assert (kept["note"], kept["key"]) == ("kept", made.api_key.id)
    assert "No key is ticked." in ticking(signed_in).dialog
    seen = send(signed_in, page, reason="LOST")
    assert seen.status == 400
    assert "No key is ticked." in seen.dialog
    assert "revoked already, or not there" in ticking(signed_in, "0000000000000000").dialog
    assert service.admin.outcome(made.token) == "VALID"


def test_the_key_one_is_signed_in_with_is_named(service: Service, signed_in: Site) -> None:
    """The form says so before they are revoked."""
    page = ticking(signed_in, service.admin_key_id)
    assert "You are signed in with" in page.dialog


def test_keys_of_another_account_are_neither_shown_nor_revoked(
    service: Service, site: Site
) -> None:
    """They answer as keys that are not there."""
    tenant = service.tenant()
    own = tenant.stubs.create_key(name="own")
    site.sign_in(tenant.stubs.token)
    page = ticking(site, service.admin_key_id, own.api_key.id)
    assert results_in(page) == ["own Active · never used"]
    seen = send(site, page, service.admin_key_id, own.api_key.id, reason="LOST")
    assert results_in(seen) == ["A key There is no such key.", "own Revoked."]
    assert service.admin.who_am_i().valid


def test_a_session_that_ends_while_keys_are_ticked_loses_nothing(
    service: Service, signed_in: Site
) -> None:
    """What is ticked, the reason and the note come back; another site's form does nothing."""
    made = [service.admin.create_key(name=f"key {number}") for number in range(2)]
    ids = [one.api_key.id for one in made]
    page = ticking(signed_in, *ids)
    form = {**page.form(REVOKE).fields, "reason": "LOST", "note": "typed"}
    foreign = signed_in.post(REVOKE, form, headers={"sec-fetch-site": "cross-site"})
    assert foreign.status == 403
    session = dict(signed_in.cookies)
    signed_in.send(signed_in.get("/console/keys").form("/console/sign-out"))
    signed_in.cookies.update(session)
    seen = send(signed_in, page, *ids, reason="LOST", note="typed")
    assert seen.status == 401
    assert "key 0" not in seen.html
    assert re.findall(r'name="key" value="(\w+)"', seen.html) == ids
    kept = seen.form(REVOKE).fields
    assert (kept["reason"], kept["note"]) == ("LOST", "typed")
    assert {service.admin.outcome(one.token) for one in made} == {"VALID"}


# --- other accounts -------------------------------------------------------------------------------


def test_an_operator_looks_at_another_account(service: Service, signed_in: Site) -> None:
    """Every page and every link is then about that account, and its title names it."""
    tenant = service.tenant()
    made = tenant.stubs.create_key(name="theirs")
    page = signed_in.get("/console/accounts?q=TEN")
    target = next(one for one in page.links if "/keys?account=" in one)
    seen = signed_in.get(target)
    assert "<title>API Keys · tenant · keybearer</title>" in seen.html
    assert "theirs" in seen.text
    inside = [one for one in seen.links if re.match(r"/console/(keys|users|audit|sessions)", one)]
    assert len(inside) > 10
    assert [one for one in inside if f"account={tenant.account_id}" not in one] == []
    for area in ("users", "audit", "sessions"):
        other = signed_in.get(f"/console/{area}?account={tenant.account_id}")
        assert "· tenant · keybearer</title>" in other.html
        assert "first admin" not in other.text
    form = signed_in.get(f"/console/keys/new?account={tenant.account_id}").form("/console/keys")
    typed = {"name": "made by the operator", "role": "DEVELOPER"}
    assert "Choose the user of this account" in signed_in.send(form, **typed).dialog
    created = signed_in.send(form, **typed, owner="admin@tenant.example.com")
    assert created.token
    assert tenant.stubs.outcome(created.token) == "VALID"
    users = signed_in.get(f"/console/users/new?account={tenant.account_id}").form("/console/users")
    user = {"email": "x@example.com", "display_name": "x", "role": "ADMIN", "type": "PERSON"}
    assert signed_in.send(users, **user).status == 303
    assert {one.email for one in tenant.stubs.list_users().users} >= {"x@example.com"}
    revoke = f"/console/keys/{made.api_key.id}/revoke"
    seen = signed_in.send(signed_in.get(revoke).form(revoke), reason="LOST")
    assert f"account={tenant.account_id}" in seen.location


def test_only_operators_choose_an_account(service: Service, site: Site) -> None:
    """For others the page is not there, and no other account is named."""
    site.sign_in(service.tenant().stubs.token)
    assert "/console/accounts" not in "".join(site.get("/console/keys").links)
    seen = site.get("/console/accounts")
    assert seen.status == 404
    assert service.account_id not in seen.html


# --- files ----------------------------------------------------------------------------------------


def rows_of(seen: Seen) -> list[dict[str, str]]:
    """Return the rows of a file by their columns."""
    return list(csv.DictReader(io.StringIO(seen.html, newline="")))


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", " =1+1", "\uff1d1")


def test_a_list_of_keys_is_exported(service: Service, signed_in: Site) -> None:
    """Those that the list shows; nothing in it is a formula, and no secret is."""
    made = service.admin.create_key(
        name='a "quoted", name', description="=cmd", labels={"a": "b"}, ttl=timedelta(days=1)
    )
    for text in FORMULAS:
        service.admin.create_key(name=f"x{text}", description=text)
    service.admin.revoke(made.api_key.id, note="@note")
    seen = signed_in.get("/console/keys/export.csv?q=quoted")
    assert seen.response.headers["content-type"] == "text/csv; charset=utf-8"
    assert seen.response.headers["content-disposition"] == (
        'attachment; filename="keys-2023-11-14.csv"'
    )
    (row,) = rows_of(seen)
    assert row["name"] == 'a "quoted", name'
    assert (row["status"], row["role"], row["labels"]) == ("REVOKED", "DEVELOPER", "a=b")
    assert row["expires"] == "2023-11-15T22:13:20Z"
    assert (row["description"], row["revocation_note"]) == ("'=cmd", "'@note")
    everything = signed_in.get("/console/keys/export.csv")
    described = {one["description"] for one in rows_of(everything)}
    assert described >= {f"'{text.strip()}" for text in FORMULAS}
    cells = [one for row in rows_of(everything) for one in row.values()]
    assert not [one for one in cells if one.startswith(tuple("=+-@\t"))]
    assert made.token.split("_")[2] not in everything.html
    assert "/console/keys/export.csv?q=quoted" in signed_in.get("/console/keys?q=quoted").links


def test_the_log_is_exported(service: Service, signed_in: Site) -> None:
    """With every change and its place in the chain."""
    key = service.admin.create_key(name="ci").api_key.id
    service.admin.update_key(key, {"name": "=ci"})
    rows = rows_of(signed_in.get(f"/console/audit/export.csv?target={key}"))
    newest = service.admin.events(target_id=key)[0]
    assert [row["action"] for row in rows] == ["API_KEY_UPDATED", "API_KEY_CREATED"]
    assert rows[0]["changes"] == "name: ci -> =ci"
    assert (rows[0]["number"], rows[0]["hash"]) == (str(newest.seq), newest.hash.hex())
    assert rows[0]["actor_email"] == "admin@example.com"


def add_keys(service: Service, count: int) -> None:
    """Make many keys by one change."""
    container = service.app.container
    with container.mutations.begin_local() as mutation:
        owner = mutation.tx.user(mutation.scope, service.admin_user_id)
        assert owner is not None
        for number in range(count):
            new = NewKey(name=f"nr {number:04}", role=Role.DEVELOPER, expiration=NEVER_EXPIRES)
            container.issuer.issue(mutation, new, owner=owner, created_by=owner.id)


def test_a_long_list_is_written_in_parts(service: Service, signed_in: Site) -> None:
    """Each key once, in the order of the list."""
    add_keys(service, PAGE + 5)
    rows = rows_of(signed_in.get("/console/keys/export.csv?q=nr&order=name"))
    assert [row["name"] for row in rows] == [f"nr {number:04}" for number in range(PAGE + 5)]


@pytest.mark.parametrize(("there", "is_cut"), [(9, False), (10, False), (11, True), (25, True)])
def test_a_file_that_is_too_long_says_so(there: int, *, is_cut: bool) -> None:
    """In a last row."""

    def read(token: str) -> Listed[int]:
        first = int(token or 0)
        items = range(there)[first : first + 5]
        after = str(first + 5) if first + 5 < there else ""
        return Listed(items, after, str)

    text = b"".join(file_parts(["n"], read, lambda item: [item], max_rows=10)).decode()
    rows = [row[0] for row in csv.reader(io.StringIO(text, newline=""))]
    expected = ["n", *map(str, range(min(there, 10)))]
    last = ["Only the first 10 rows are here. Narrow the filter."] if is_cut else []
    assert rows == expected + last


def test_an_export_that_cannot_be_made_is_a_page(service: Service, signed_in: Site) -> None:
    """Not a file with an error in it: a wrong filter, a store that is away, nobody signed in."""
    seen = signed_in.get("/console/audit/export.csv?action=KING")
    assert seen.status == 400
    assert "content-disposition" not in seen.response.headers
    store = store_of(service.app)
    read, reads = store.read, iter(range(100))

    def fail_second(*arguments: Any) -> Any:
        if next(reads):
            raise StoreLockedError("away")
        return read(*arguments)

    with store.replacing(read=fail_second):
        seen = signed_in.get("/console/keys/export.csv")
    assert seen.status == 503
    assert "content-disposition" not in seen.response.headers
    signed_in.cookies.clear()
    assert signed_in.get("/console/keys/export.csv").status == 303


def test_an_export_ends_when_its_reader_is_no_administrator_any_more(
    service: Service, site: Site
) -> None:
    """In the middle; a browser says that the file is broken."""
    lin = service.admin.create_user("lin@example.com")
    token = service.admin.create_key(role="ROLE_ADMIN", owner_id=lin.id).token
    add_keys(service, PAGE + 5)
    site.sign_in(token)
    store = store_of(service.app)
    read, reads = store.read, iter(range(100))

    def demote_first(*arguments: Any) -> Any:
        # The session is read, then the first page, then the session again.
        if next(reads) == 1:
            service.admin.update_user(lin.id, {"role": "ROLE_DEVELOPER"})
        return read(*arguments)

    with store.replacing(read=demote_first), pytest.raises(httpx.RemoteProtocolError):
        site.get("/console/keys/export.csv")
