"""Sessions: opened by the token of an administrator's key, and ended by everything that ends it."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from console.site import SESSION, Seen, Site
from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, Service, Stubs, file_of, make_app, refused, store_of
from keybearer.v1 import account_service_pb2, audit_event_pb2, token_service_pb2
from keybearer_service.container import open_store
from keybearer_service.domain.clock import DAY, HOUR, MINUTE, SECOND
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.errors import CredentialsInvalid
from keybearer_service.domain.token_format import checksum
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline import backups
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.initialise import initialise
from keybearer_service.storage import Foreseen, StoreFullError, dbapi
from keybearer_service.usecases.accounts import NewAccount
from keybearer_service.usecases.issuing import Expiration

# --- signing in -----------------------------------------------------------------------------------


def test_an_administrators_token_opens_the_console(service: Service, site: Site) -> None:
    """Who pastes the admin token sees the list."""
    seen = site.sign_in(service.admin_token)
    assert seen.status == 200
    assert "API keys" in seen.text
    assert "admin@example.com" in seen.text


def test_the_cookie_is_for_this_origin_and_no_script(service: Service, site: Site) -> None:
    """Secure, HttpOnly, SameSite=Lax, the whole host and no other, gone with the browser."""
    form = site.get("/console/sign-in").form("/console/sign-in")
    seen = site.send(form, token=service.admin_token)
    (cookie,) = seen.response.headers.get_list("set-cookie")
    pair, *attributes = cookie.split("; ")
    assert re.fullmatch(r"__Host-keybearer=kbses1_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}", pair)
    assert sorted(one.lower() for one in attributes) == [
        "httponly",
        "path=/",
        "samesite=lax",
        "secure",
    ]


def test_a_sign_in_draws_a_fresh_session(service: Service, site: Site) -> None:
    """What somebody had put into the browser before is no session afterwards."""
    planted = "kbses1_" + "A" * 16 + "_" + "b" * 43
    planted += checksum(planted)
    site.cookies[SESSION] = planted
    site.sign_in(service.admin_token)
    assert site.session not in ("", planted)
    assert site.is_signed_in
    site.cookies[SESSION] = planted
    assert not site.is_signed_in


def test_signing_in_ends_the_session_of_the_same_browser(service: Service, signed_in: Site) -> None:
    """One browser has one session."""
    before = signed_in.session
    signed_in.post("/console/sign-in", {"token": service.admin_token})
    after = signed_in.session
    assert after != before
    assert signed_in.is_signed_in
    signed_in.cookies[SESSION] = before
    assert not signed_in.is_signed_in


def test_a_sign_in_that_is_refused_ends_no_session(service: Service, signed_in: Site) -> None:
    """Who mistypes a token in a second window is not thrown out of the first."""
    assert signed_in.post("/console/sign-in", {"token": "hello"}).status == 403
    assert signed_in.is_signed_in


def test_other_tokens_open_nothing(service: Service, site: Site) -> None:
    """A developer's, one that never was, a revoked one, and something that is no token."""
    developer = service.admin.create_key(role="ROLE_DEVELOPER").token
    dead = service.admin.create_key(role="ROLE_ADMIN")
    service.admin.revoke(dead.api_key.id)
    body = service.admin_token[:-7] + ("0" if service.admin_token[-7] != "0" else "1")
    for token in (developer, dead.token, body + checksum(body), "hello"):
        seen = site.post("/console/sign-in", {"token": token})
        assert seen.status == 403
        assert SESSION not in site.cookies
        assert token not in seen.html
    reasons = [
        change.after
        for event in service.admin.events(actions=["AUDIT_ACTION_SIGN_IN_REFUSED"])
        for change in event.changes
    ]
    assert sorted(reasons) == ["CREDENTIALS_INVALID"] * 3 + ["ROLE_INSUFFICIENT"]


def test_one_address_has_five_tries_a_minute(
    service: Service, site: Site, clock: FakeClock
) -> None:
    """The sixth is refused whatever it brings, until the minute is over."""
    tries = [site.post("/console/sign-in", {"token": "hello"}).status for _ in range(5)]
    assert tries == [403] * 5
    assert site.post("/console/sign-in", {"token": service.admin_token}).status == 429
    clock.advance(MINUTE)
    assert site.post("/console/sign-in", {"token": service.admin_token}).status == 303


def test_a_cookie_that_does_not_come_back_is_said(service: Service, site: Site) -> None:
    """The page names TLS instead of asking for the token again and again."""
    seen = site.post("/console/sign-in", {"token": service.admin_token})
    site.cookies.clear()
    seen = site.get(seen.location)
    assert "has not kept the sign-in" in seen.text
    assert "https" in seen.text


@pytest.mark.parametrize(
    ("wanted", "target"),
    [
        ("/console/keys?view=active", "/console/keys?view=active"),
        ("https://example.com/console/keys", "/console/keys"),
        ("//example.com/console/keys", "/console/keys"),
        ("/console/keys//example.com", "/console/keys"),
        ("/\\example.com", "/console/keys"),
        ("/console/sign-out", "/console/keys"),
        ("javascript:alert(1)", "/console/keys"),
        ("//[", "/console/keys"),
        ("/console/users?q=a", "/console/users?q=a"),
        ("/console/usersx", "/console/keys"),
        ("/console/keys/../../x\r\nset-cookie: a=b", "/console/keys"),
    ],
)
def test_one_goes_on_to_a_page_of_the_console_and_nowhere_else(
    service: Service, site: Site, wanted: str, target: str
) -> None:
    """What stands in `next` is a path of ours, or nothing."""
    query = str(httpx.QueryParams({"next": wanted}))
    seen = site.post(f"/console/sign-in?{query}", {"token": service.admin_token})
    seen = site.get(seen.location)
    assert (seen.status, seen.location) == (303, target)


def test_signing_in_and_out_are_audited_with_their_session(
    service: Service, signed_in: Site
) -> None:
    """Who signed in, with which key and from where; what was done then; and that it ended."""
    session_id = signed_in.session.split("_")[1]
    made = signed_in.create(name="metrics")
    signed_in.send(signed_in.get("/console/keys").form("/console/sign-out"))
    assert made.status == 200
    events = {
        event.action: event
        for event in service.admin.events()
        if session_id in (event.target.id, event.actor.session_id)
    }
    names = {one: token_name(one) for one in events}
    assert sorted(names.values()) == ["API_KEY_CREATED", "SIGNED_IN", "SIGNED_OUT"]
    for event in events.values():
        assert event.actor.user_email == "admin@example.com"
        assert event.actor.key_id == service.admin_key_id
        assert event.peer == "127.0.0.1"
    created = next(one for one in events.values() if token_name(one.action) == "API_KEY_CREATED")
    assert created.actor.session_id == session_id


def token_name(action: audit_event_pb2.AuditAction.ValueType) -> str:
    """Return the name of an action without its prefix."""
    return audit_event_pb2.AuditAction.Name(action).removeprefix("AUDIT_ACTION_")


# --- signing out and what else ends a session -----------------------------------------------------


def test_signing_out_ends_the_session_itself(service: Service, signed_in: Site) -> None:
    """The cookie goes, the browser forgets what it kept, and the old value opens nothing."""
    session = signed_in.session
    seen = signed_in.send(signed_in.get("/console/keys").form("/console/sign-out"))
    assert "You are signed out" in seen.text
    assert seen.response.headers["clear-site-data"] == '"cache", "storage"'
    assert signed_in.session == ""
    signed_in.cookies[SESSION] = session
    assert not signed_in.is_signed_in


def _tenant(service: Service) -> tuple[Stubs, str, str, str]:
    """Make an account with two administrators; return the second one's token, key and user."""
    tenant = service.tenant()
    user = tenant.stubs.create_user("second@example.com")
    made = tenant.stubs.create_key(role="ROLE_ADMIN", owner_id=user.id, ttl=timedelta(days=20))
    return tenant.stubs, made.token, made.api_key.id, user.id


ENDS: dict[str, Callable[[Service, Stubs, str, str, FakeClock], object]] = {
    "revoked": lambda _s, admin, key, _u, _c: admin.revoke(key),
    "disabled": lambda _s, admin, key, _u, _c: admin.disable_key(key),
    "rotated": lambda _s, admin, key, _u, _c: admin.rotate(key),
    "demoted key": lambda _s, admin, key, _u, _c: admin.update_key(key, {"role": "ROLE_DEVELOPER"}),
    "demoted user": lambda _s, admin, _k, user, _c: admin.update_user(
        user, {"role": "ROLE_DEVELOPER"}
    ),
    "deleted user": lambda _s, admin, _k, user, _c: admin.delete_user(user),
    "disabled account": lambda s, admin, key, _u, _c: s.admin.accounts.DisableAccount(
        _disable(admin.key(key).account_id)
    ),
    "idle for half an hour": lambda _s, _a, _k, _u, clock: clock.advance(30 * MINUTE),
}


def _disable(account_id: str) -> Any:
    return account_service_pb2.DisableAccountRequest(id=account_id)


@pytest.mark.parametrize("end", sorted(ENDS))
def test_what_ends_the_token_ends_the_session(
    service: Service, site: Site, clock: FakeClock, end: str
) -> None:
    """At the next click: nothing has to remember to end sessions."""
    admin, token, key_id, user_id = _tenant(service)
    site.sign_in(token)
    assert site.is_signed_in
    ENDS[end](service, admin, key_id, user_id, clock)
    seen = site.get("/console/keys?view=active")
    assert seen.status == 303
    assert seen.location == "/console/sign-in?next=%2Fconsole%2Fkeys%3Fview%3Dactive"


def test_a_key_that_expires_ends_its_session(
    service: Service, site: Site, clock: FakeClock
) -> None:
    """To the microsecond."""
    made = service.admin.create_key(role="ROLE_ADMIN", ttl=timedelta(days=1))
    clock.advance(DAY - 10 * MINUTE)
    site.sign_in(made.token)
    clock.advance(10 * MINUTE - 1)
    assert site.is_signed_in
    clock.advance(1)
    assert not site.is_signed_in


def test_a_session_ends_an_hour_after_its_beginning(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """However busy it is."""
    for _ in range(5):
        clock.advance(10 * MINUTE)
        assert signed_in.is_signed_in
    clock.advance(10 * MINUTE - 1)
    assert signed_in.is_signed_in
    clock.advance(1)
    assert not signed_in.is_signed_in


def test_a_session_lives_as_long_as_its_old_secret(
    service: Service, site: Site, clock: FakeClock
) -> None:
    """A rotation with an overlap ends it at the end of the overlap."""
    made = service.admin.create_key(role="ROLE_ADMIN", never_expires=True)
    site.sign_in(made.token)
    service.admin.rotate(made.api_key.id, overlap=timedelta(minutes=10))
    clock.advance(10 * MINUTE - 1)
    assert site.is_signed_in
    clock.advance(1)
    assert not site.is_signed_in


def test_that_a_session_is_in_use_is_written_once_a_minute(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """Not for every click."""

    def written() -> int:
        connection = dbapi.connect(str(file_of(service)))
        try:
            return int(connection.execute("SELECT last_seen_time FROM sessions").fetchone()[0])
        finally:
            connection.close()

    began = written()
    clock.advance(MINUTE - SECOND)
    assert signed_in.is_signed_in
    assert written() == began
    clock.advance(SECOND)
    assert signed_in.is_signed_in
    assert written() == began + MINUTE


def test_a_store_that_takes_no_changes_ends_no_session(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """That it is in use cannot be written; the page is shown all the same."""

    def full(*_: Any) -> AbstractContextManager[Any]:
        raise StoreFullError("no room")

    clock.advance(2 * MINUTE)
    with store_of(service.app).replacing(write=full):
        assert signed_in.is_signed_in


# --- inside a change ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", sorted({*ENDS, "signed out"} - {"idle for half an hour"}))
def test_a_change_is_refused_when_the_session_ends_before_it(
    service: Service, site: Site, clock: FakeClock, end: str
) -> None:
    """Between the judgement of the request and its change something ends the session."""
    admin, token, key_id, user_id = _tenant(service)
    site.sign_in(token)
    form = site.new_key_form()
    sign_out = site.get("/console/keys").form("/console/sign-out")
    store = store_of(service.app)
    write = store.write
    pending = [True]

    def end_first(foreseen: Foreseen) -> Any:
        if pending:
            pending.clear()
            if end == "signed out":
                with Site.of(service) as other:
                    other.cookies[SESSION] = site.session
                    assert other.send(sign_out).status == 200
            else:
                ENDS[end](service, admin, key_id, user_id, clock)
        return write(foreseen)

    with store.replacing(write=end_first):
        seen = site.send(form, name="late", role="DEVELOPER")
    assert seen.status == 401
    assert "signed out" in seen.text
    assert seen.form("/console/keys").fields["name"] == "late"
    assert "late" not in {one.name for one in service.admin.list_keys().api_keys}
    assert not seen.token


# --- a session is no key --------------------------------------------------------------------------


def test_the_cookie_opens_nothing_but_the_console(service: Service, signed_in: Site) -> None:
    """Not as a credential of any method, not as the subject of a question, not at a gateway."""
    session = signed_in.session
    intruder = service.as_token(session)
    for call in (
        intruder.who_am_i,
        intruder.list_keys,
        intruder.create_key,
        intruder.rotate_self,
        lambda: intruder.validate(service.admin_token),
    ):
        assert refused(call).reason == CredentialsInvalid.reason
    assert service.admin.outcome(session) == "NOT_FOUND"
    assert service.admin.revoke_token(session) == token_service_pb2.RevokeTokenResponse()
    assert signed_in.is_signed_in
    bearer = {"authorization": f"Bearer {session}"}
    url = f"http://127.0.0.1:{service.app.http_port}/v1/auth"
    as_gateway = {"x-keybearer-caller": f"Bearer {service.admin_token}"}
    assert httpx.get(url, headers={**bearer, **as_gateway}).status_code == 401
    as_intruder = {"x-keybearer-caller": f"Bearer {session}"}
    good = {"authorization": f"Bearer {service.admin_token}"}
    assert httpx.get(url, headers={**good, **as_intruder}).status_code == 403


def test_a_key_is_no_session(service: Service, site: Site) -> None:
    """The admin token in the place of the cookie opens nothing."""
    site.cookies[SESSION] = service.admin_token
    assert not site.is_signed_in


def test_init_refuses_the_prefix_of_sessions(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """No key can ever look like a session."""
    new = NewAccount(
        name="a", admin_email="a@example.com", admin_display_name="A", expiration=Expiration()
    )
    with pytest.raises(LocalError, match="sessions have it"):
        initialise(
            DataDir(tmp_path / "data"),
            new,
            "kbses1",
            create_store=open_store,
            clock=clock,
            entropy=entropy,
        )


@pytest.mark.parametrize("column", ["user_id", "account_id", "key_id", "secret_version"])
def test_a_row_that_was_altered_opens_nothing(service: Service, site: Site, column: str) -> None:
    """Who writes to the database makes no session somebody else's: the digest covers the row."""
    tenant = service.tenant()
    site.sign_in(tenant.stubs.token)
    values = {
        "user_id": service.admin_user_id,
        "account_id": service.account_id,
        "key_id": service.admin_key_id,
        "secret_version": 2,
    }
    assert site.is_signed_in
    connection = dbapi.connect(str(file_of(service)), isolation_level=None)
    with closing(connection):
        connection.execute(f"UPDATE sessions SET {column} = ?", (values[column],))  # noqa: S608 - a column of ours
    assert not site.is_signed_in


def test_a_backup_that_is_restored_brings_no_session_back(
    service: Service, signed_in: Site, tmp_path: Path, clock: FakeClock
) -> None:
    """The cookie of before opens nothing at the restored installation."""
    if service.data_dir.url is not None:
        pytest.skip("the backup is restored into a file")
    copy = tmp_path / "copy.db"
    backups.back_up(service.app.container.store, service.data_dir, copy, with_keys=True)
    session = signed_in.session
    target = DataDir(tmp_path / "restored")
    backups.restore(
        target,
        copy,
        backups.keys_beside(copy),
        open_file=open_store,
        clock=clock,
        entropy=SystemEntropy(),
    )
    app = make_app(target, clock, SystemEntropy(), http=HttpConfig(console=ANY_PORT))
    app.start()
    try:
        restored = Service(app, target, service.admin_token, "", "", "")
        with Site.of(restored) as site:
            site.cookies[SESSION] = session
            assert not site.is_signed_in
            assert site.sign_in(service.admin_token).status == 200
    finally:
        app.stop(grace_s=0)


def test_sessions_of_long_ago_are_forgotten(
    service: Service, signed_in: Site, clock: FakeClock
) -> None:
    """A day after its beginning the row goes."""
    store = service.app.container.store
    clock.advance(24 * HOUR)
    store.prune(clock.now(), 1000)
    session_id = signed_in.session.split("_")[1]
    with store.read() as reader:
        assert reader.session(session_id) is not None
    clock.advance(1)
    store.prune(clock.now(), 1000)
    with store.read() as reader:
        assert reader.session(session_id) is None


def test_nothing_of_a_session_stands_in_the_log(
    service: Service, site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither its secret nor the token that opened it."""
    site.sign_in(service.admin_token)
    seen: Seen = site.create()
    printed = "".join(capfd.readouterr())
    assert "console_form_answered" in printed
    for secret in (site.session, service.admin_token, seen.token):
        assert secret.split("_")[2][:20] not in printed
