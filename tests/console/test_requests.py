"""What every request and every answer of the console's port is held to."""

import re
import socket
from typing import Any

import httpx
import pytest

from console.site import SESSION, Form, Seen, Site
from harness import Service, store_of
from keybearer_service.storage import CommitFailedError, StoreFullError, StoreLockedError

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'none'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "clipboard-write=(self), clipboard-read=(), camera=(), geolocation=(), "
    "microphone=()",
    "x-frame-options": "DENY",
}
SAME = {"sec-fetch-site": "same-origin"}


def assert_guarded(response: httpx.Response) -> None:
    """Check the headers that every answer has."""
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    assert len(response.headers.get_list("cache-control")) == 1


# --- headers --------------------------------------------------------------------------------------


def test_every_answer_is_guarded(service: Service, signed_in: Site) -> None:
    """Pages, redirects, refusals, what is not there, and static files."""
    key = service.admin_key_id
    page = signed_in.get("/console/keys")
    assets = re.findall(r'(?:href|src)="(/console/static/[^"]+)"', page.html)
    assert len(assets) == 2
    for path in (
        "/",
        "/console",
        "/console/keys",
        "/console/keys/new",
        f"/console/keys/{key}",
        f"/console/keys/{key}/revoke",
        "/console/keys/0000000000000000",
        "/console/keys?page=x",
        "/console/keys?q=%00",
        "/console/keys?q=" + "x" * 300,
        "/console/users",
        "/console/users/new",
        "/console/users?page=x",
        "/console/audit",
        "/console/audit?after=x",
        "/console/sessions",
        "/console/accounts",
        "/console/keys/export.csv",
        "/console/sign-in",
        "/nothing",
        "/console/static/nothing.css",
    ):
        seen = signed_in.get(path)
        assert_guarded(seen.response)
        assert seen.response.headers["cache-control"] == "no-store"
    for path in assets:
        seen = signed_in.get(path)
        assert seen.status == 200
        assert_guarded(seen.response)
        assert seen.response.headers["cache-control"] == "public, max-age=31536000, immutable"
    for path in ("/console/keys", "/console/sign-in", "/nothing"):
        assert_guarded(signed_in.post(path, {}).response)
    assert_guarded(signed_in.request("DELETE", "/console/keys").response)
    assert_guarded(signed_in.get("/", headers={"host": "example.com"}).response)


def test_a_secret_is_never_compressed_nor_kept(signed_in: Site) -> None:
    """Whatever a browser offers."""
    seen = signed_in.create()
    assert seen.token
    assert "content-encoding" not in seen.response.headers
    assert seen.response.headers["cache-control"] == "no-store"


def test_pages_have_no_code_and_no_style_of_their_own(signed_in: Site, service: Service) -> None:
    """What the policy would block is not there in the first place."""
    key, user = service.admin_key_id, service.admin_user_id
    pages = ["keys", "keys/new", f"keys/{key}", f"keys/revoke?key={key}"]
    pages += [f"keys/{key}/{change}" for change in ("edit", "rotate", "disable", "revoke")]
    pages += ["users", "users/new", f"users/{user}", f"users/{user}/edit", f"users/{user}/delete"]
    for path in (*pages, "audit", "sessions", "accounts"):
        html = signed_in.get(f"/console/{path}").html
        assert re.findall(r"<style|style=|\son\w+=|<script(?! src=)|javascript:", html) == []


# --- host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["example.com", "127.0.0.1", "127.0.0.1:1", "", "127.0.0.1:{port}.", "[", "[::1"]
)
def test_another_host_is_refused(service: Service, signed_in: Site, host: str) -> None:
    """A page of another name that leads here by its DNS gets nothing."""
    port = signed_in.origin.rpartition(":")[2]
    seen = signed_in.get("/console/keys", headers={"host": host.format(port=port)})
    assert seen.status in (400, 421)
    assert "admin@example.com" not in seen.html


@pytest.mark.parametrize("name", ["localhost", "[::1]"])
def test_other_names_of_this_machine_are_led_here(signed_in: Site, name: str) -> None:
    """The cookie belongs to one name."""
    port = signed_in.origin.rpartition(":")[2]
    host = {"host": f"{name}:{port}"}
    seen = signed_in.get("/console/keys?view=active", headers=host)
    assert (seen.status, seen.location) == (307, f"{signed_in.origin}/console/keys?view=active")
    seen = signed_in.get(f"{signed_in.origin}//example.com/x", headers=host)
    assert seen.location.startswith(f"{signed_in.origin}/example.com")
    assert signed_in.post("/console/keys", {}, headers=host).status == 421


# --- where a form comes from ----------------------------------------------------------------------

FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"sec-fetch-site": "cross-site", "origin": "https://example.com"},
    "a sibling site": {"sec-fetch-site": "same-site", "origin": "{origin}"},
    "typed": {"sec-fetch-site": "none"},
    "an old browser, another site": {"origin": "https://example.com"},
    "an old browser, no origin": {"origin": "null"},
    "nothing said": {},
}


@pytest.mark.parametrize("case", sorted(FOREIGN))
@pytest.mark.parametrize("path", ["keys", "keys/{key}/revoke", "sign-out", "sign-in", "theme"])
def test_a_form_of_another_site_does_nothing(
    service: Service, signed_in: Site, case: str, path: str
) -> None:
    """Although the cookie and the form's secret are right."""
    key = service.admin.create_key(name="target").api_key.id
    headers = {name: one.format(origin=signed_in.origin) for name, one in FOREIGN[case].items()}
    csrf = signed_in.new_key_form().fields["csrf"]
    form = {
        "csrf": csrf,
        "name": "forged",
        "role": "ADMIN",
        "expires": "never",
        "request_id": "123e4567-e89b-42d3-a456-426614174000",
        "attempt": "0",
        "reason": "LOST",
        "token": service.admin_token,
        "theme": "dark",
    }
    before = dict(signed_in.cookies)
    seen = signed_in.request("POST", f"/console/{path.format(key=key)}", data=form, headers=headers)
    assert seen.status == 403
    assert signed_in.cookies == before
    assert signed_in.is_signed_in
    assert service.admin.key(key).revoke_time.seconds == 0
    assert "forged" not in {one.name for one in service.admin.list_keys().api_keys}


def test_an_old_browser_says_its_origin(service: Service, signed_in: Site) -> None:
    """Without `Sec-Fetch-Site` the `Origin` decides."""
    form = signed_in.new_key_form()
    fields = {**form.fields, "name": "by an old browser", "role": "DEVELOPER"}
    seen = signed_in.request("POST", form.action, data=fields, headers={"origin": signed_in.origin})
    assert seen.status == 200
    assert seen.token


def test_a_stale_form_beside_a_store_that_is_away_loses_no_text(
    service: Service, signed_in: Site
) -> None:
    """The page around the form cannot be read; what was typed is there."""
    store = store_of(service.app)
    read, reads = store.read, iter(range(100))

    def fail_later(*arguments: Any) -> Any:
        if next(reads):
            raise StoreLockedError("away")
        return read(*arguments)

    form = signed_in.new_key_form()
    with store.replacing(read=fail_later):
        seen = signed_in.send(form, name="mine", role="DEVELOPER", csrf="")
    assert seen.status == 503
    assert seen.form("/console/keys").fields["name"] == "mine"


@pytest.mark.parametrize("csrf", ["", "0" * 64, "ä" * 64])
def test_a_form_without_the_sessions_secret_is_shown_again(
    service: Service, signed_in: Site, csrf: str
) -> None:
    """Nothing is created, and nothing that was typed is lost; sent again it works."""
    seen = signed_in.send(signed_in.new_key_form(), name="mine", role="DEVELOPER", csrf=csrf)
    assert seen.status == 403
    assert len(service.admin.list_keys().api_keys) == 1
    again = seen.form("/console/keys")
    assert (again.fields["name"], again.fields["role"]) == ("mine", "DEVELOPER")
    assert signed_in.send(again).token


def test_the_secret_of_another_session_is_not_taken(service: Service, signed_in: Site) -> None:
    """Each session has its own."""
    with Site.of(service) as other:
        other.sign_in(service.admin_token)
        csrf = other.new_key_form().fields["csrf"]
    seen = signed_in.send(signed_in.new_key_form(), name="mine", role="DEVELOPER", csrf=csrf)
    assert seen.status == 403


def test_a_get_changes_nothing(service: Service, signed_in: Site) -> None:
    """Not with all the fields of the form in its query."""
    key = service.admin.create_key().api_key.id
    form = signed_in.revoke_form(key)
    query = str(httpx.QueryParams({**form.fields, "reason": "LOST"}))
    assert signed_in.get(f"/console/keys/{key}/revoke?{query}").status == 200
    assert service.admin.key(key).revoke_time.seconds == 0


# --- connections ----------------------------------------------------------------------------------


def test_a_peer_holds_few_connections(site: Site) -> None:
    """The one that has been silent longest makes room; whoever is at work goes on."""
    host, port = site.origin.removeprefix("http://").split(":")
    silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(40)]
    try:
        assert silent[0].recv(1) == b""
        assert site.get("/console/sign-in").status == 200
    finally:
        for one in silent:
            one.close()


# --- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"a=b", "text/plain", 415),
        (b"{}", "application/json", 415),
        (b"a=" + b"b" * 65_536, "application/x-www-form-urlencoded", 413),
        (b"&".join(b"a=b" for _ in range(101)), "application/x-www-form-urlencoded", 400),
        (b"name=%ff%fe", "application/x-www-form-urlencoded", 400),
        (b"name=\xff", "application/x-www-form-urlencoded", 400),
    ],
)
def test_what_is_no_form_is_refused(
    signed_in: Site, body: bytes, content_type: str, status: int
) -> None:
    """Other types, too long ones, too many fields, and what is no UTF-8."""
    seen = signed_in.request(
        "POST", "/console/keys", content=body, headers={**SAME, "content-type": content_type}
    )
    assert seen.status == status


# --- sessions that end while somebody types -------------------------------------------------------

TYPED = {
    "name": "release bot",
    "description": "first line\nsecond “line” & <more>",
    "role": "DEVELOPER",
    "scopes": "clusters.read backups.*",
    "expires": "date",
    "expire_date": "2030-12-31",
    "owner": "deploy@example.com",
    "labels": "team=platform\nenv=prod",
}


def signed_out(site: Site, service: Service) -> None:
    """End the session in another window."""
    with Site.of(service) as other:
        other.cookies.update(site.cookies)
        other.send(other.get("/console/keys").form("/console/sign-out"))


def assert_kept(form: Form, typed: dict[str, str]) -> None:
    """Check that a form has what was typed."""
    assert {name: form.fields.get(name, "").strip("\n") for name in typed} == typed


def test_a_session_that_ends_in_the_middle_of_create_loses_nothing(
    service: Service, signed_in: Site
) -> None:
    """401 with the form filled in; after signing in beside it, two presses create one key."""
    service.admin.create_user("deploy@example.com", role="ROLE_DEVELOPER")
    form = signed_in.new_key_form()
    signed_out(signed_in, service)
    seen = signed_in.send(form, **TYPED)
    assert seen.status == 401
    assert "Sign in" in seen.text
    assert "admin@example.com" not in seen.html
    assert_kept(seen.form("/console/keys"), TYPED)
    assert seen.form("/console/keys").fields["request_id"] == form.fields["request_id"]
    signed_in.sign_in(service.admin_token)
    seen = signed_in.send(seen.form("/console/keys"))
    assert seen.status == 403
    assert_kept(seen.form("/console/keys"), TYPED)
    seen = signed_in.send(seen.form("/console/keys"))
    assert seen.token
    assert service.admin.outcome(seen.token) == "VALID"
    assert [one.name for one in service.admin.list_keys().api_keys].count("release bot") == 1


def test_a_session_that_ends_in_the_middle_of_revoke_loses_nothing(
    service: Service, signed_in: Site
) -> None:
    """The reason and the note are still there."""
    key = service.admin.create_key(name="old").api_key.id
    form = signed_in.revoke_form(key)
    signed_out(signed_in, service)
    typed = {"reason": "SUPERSEDED", "note": "by the new one"}
    seen = signed_in.send(form, **typed)
    assert seen.status == 401
    assert "“old”" not in seen.text
    path = f"/console/keys/{key}/revoke"
    assert_kept(seen.form(path), typed)
    signed_in.sign_in(service.admin_token)
    seen = signed_in.send(seen.form(path))
    assert seen.status == 403
    assert signed_in.send(seen.form(path)).status == 303
    assert service.admin.key(key).revocation_note == "by the new one"


def test_signing_out_of_a_session_that_has_ended_is_signing_out(
    service: Service, signed_in: Site
) -> None:
    """Nobody is asked to sign in first."""
    form = signed_in.get("/console/keys").form("/console/sign-out")
    signed_out(signed_in, service)
    assert "You are signed out" in signed_in.send(form).text


# --- a store in trouble ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StoreLockedError("locked"), 503, "cannot reach its store"),
        (StoreFullError("full"), 507, "no room left"),
        (CommitFailedError("lost", is_fatal=False), 503, "not known whether this was done"),
        (RuntimeError("unforeseen"), 500, "Something went wrong"),
    ],
)
def test_a_store_in_trouble_loses_no_text(
    service: Service, signed_in: Site, error: Exception, status: int, text: str
) -> None:
    """The page says what is known, and the same form can be sent again."""

    def fail(*_: Any) -> Any:
        raise error

    form = signed_in.new_key_form()
    typed = {**TYPED, "owner": ""}
    with store_of(service.app).replacing(write=fail):
        seen = signed_in.send(form, **typed)
    assert seen.status == status
    assert text in seen.text
    assert str(error) not in seen.html
    assert_kept(seen.form("/console/keys"), typed)
    seen = signed_in.send(seen.form("/console/keys"))
    if seen.status == 403:
        seen = signed_in.send(seen.form("/console/keys"))
    assert seen.token


def test_a_store_that_cannot_be_read_signs_nobody_out(service: Service, signed_in: Site) -> None:
    """An outage ends no session: 503, and afterwards all is as it was."""

    def fail(*_: Any) -> Any:
        raise StoreLockedError("away")

    form = signed_in.new_key_form()
    with store_of(service.app).replacing(read=fail, write=fail):
        seen = signed_in.get("/console/keys")
        sent = signed_in.send(form, name="kept", role="DEVELOPER")
    assert seen.status == 503
    assert "cannot reach its store" in seen.text
    assert sent.status == 503
    assert sent.form("/console/keys").fields["name"] == "kept"
    assert signed_in.is_signed_in


# --- what is not one's own ------------------------------------------------------------------------


def test_a_key_of_another_account_answers_like_none(service: Service, site: Site) -> None:
    """Details and both ends of revoke, word for word."""
    tenant = service.tenant()
    site.sign_in(tenant.stubs.token)
    csrf = site.new_key_form().fields["csrf"]

    def answers(key_id: str) -> list[tuple[int, str]]:
        form = {"csrf": csrf, "reason": "LOST", "note": ""}
        seen: list[Seen] = [
            site.get(f"/console/keys/{key_id}"),
            site.get(f"/console/keys/{key_id}/revoke"),
            site.post(f"/console/keys/{key_id}/revoke", form),
        ]
        return [(one.status, one.html.replace(key_id, "ID")) for one in seen]

    foreign = answers(service.admin_key_id)
    assert foreign == answers("0000000000000000")
    assert [status for status, _ in foreign] == [404, 404, 404]
    assert service.admin.key(service.admin_key_id).revoke_time.seconds == 0


def test_an_owner_of_another_account_answers_like_none(service: Service, site: Site) -> None:
    """The address of the operator's administrator is no owner for a tenant."""
    site.sign_in(service.tenant().stubs.token)
    texts = {
        site.create(owner=owner).dialog.replace(owner, "OWNER")
        for owner in ("admin@example.com", "nobody@example.com")
    }
    assert len(texts) == 1
    assert "No user of this account" in texts.pop()


def test_a_cookie_that_comes_twice_is_not_believed(service: Service, signed_in: Site) -> None:
    """Somebody else may have put the second one there."""
    session = signed_in.session
    twice = {"cookie": f"{SESSION}={session}; {SESSION}={session}"}
    assert signed_in.get("/console/keys", headers=twice).status == 303
    beside = {"cookie": f"a=b; weird[]=\x01; {SESSION}={session}; a=c"}
    assert signed_in.get("/console/keys", headers=beside).status in (200, 400)
