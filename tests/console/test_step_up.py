"""What hands out a secret or authority needs a sign-in within the hour; taking it away does not."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from console.signing import SignIns, signing_in
from console.site import Seen, Site
from console.test_several import send, ticking
from harness import Stubs
from keybearer.v1 import audit_event_pb2
from keybearer_service.domain.clock import MINUTE

AGAIN = "/console/sign-in/start?for=again"
_numbers = count(1)


@pytest.fixture(scope="module")
def sign_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignIns]:
    """A service whose people sign in at a provider."""
    with signing_in(tmp_path_factory.mktemp("steps") / "data", key_sign_in="on") as running:
        yield running


@pytest.fixture
def site(sign_ins: SignIns) -> Iterator[Site]:
    """A browser whose user has signed in at the provider 60 minutes ago, to the microsecond."""
    sign_ins.next_minute()
    with sign_ins.browser() as opened:
        sign_ins.bound(opened)
        for _ in range(3):
            sign_ins.clock.advance(20 * MINUTE)
            assert opened.is_signed_in
        yield opened


@dataclass(frozen=True)
class Change:
    """A form: where it stands, where it is sent, and what is typed into it."""

    page: Callable[[Stubs], str]
    """Makes what the form is about; returns its path, and where it is sent behind a blank."""
    fields: Mapping[str, str] = field(default_factory=dict)


def _key(change: str, **settings: Any) -> Callable[[Stubs], str]:
    def page(admin: Stubs) -> str:
        key_id = admin.create_key(name="k", **settings).api_key.id
        if change == "enable":
            admin.disable_key(key_id)
        if change == "end-old-secret":
            admin.rotate(key_id, overlap=timedelta(days=1))
        path = f"/console/keys/{key_id}/{change}"
        return f"{path} {path}"

    return page


def _user(change: str, role: str, action: str = "") -> Callable[[Stubs], str]:
    def page(admin: Stubs) -> str:
        user = admin.create_user(f"u{next(_numbers)}@example.com", role=role)
        path = f"/console/users/{user.id}/{change}"
        return f"{path} {path}{action}"

    return page


def _new(role: str) -> Change:
    fields = {"display_name": "n", "role": role, "type": "PERSON"}
    return Change(lambda _: "/console/users/new /console/users", fields)


GIVES = {
    "create a key": Change(
        lambda _: "/console/keys/new /console/keys", {"name": "new", "role": "VALIDATOR"}
    ),
    "rotate": Change(_key("rotate"), {"overlap": "0"}),
    "enable": Change(_key("enable")),
    "raise a key": Change(_key("edit", role="ROLE_DEVELOPER"), {"role": "ADMIN"}),
    "widen a key": Change(_key("edit", scopes=["a.b"]), {"scopes": "a.b c.d"}),
    "raise a user": Change(_user("edit", "ROLE_DEVELOPER"), {"role": "ADMIN"}),
    "create an administrator": _new("ADMIN"),
    "invite": Change(_user("sign-in", "ROLE_ADMIN", "/invite")),
}
TAKES = {
    "rename a key": Change(_key("edit"), {"name": "renamed"}),
    "lower a key": Change(_key("edit", role="ROLE_ADMIN"), {"role": "VALIDATOR"}),
    "narrow a key": Change(_key("edit", scopes=["a.b", "c.d"]), {"scopes": "a.b"}),
    "disable": Change(_key("disable")),
    "end an old secret": Change(_key("end-old-secret")),
    "revoke": Change(_key("revoke"), {"reason": "LOST"}),
    "lower a user": Change(_user("edit", "ROLE_ADMIN"), {"role": "VALIDATOR"}),
    "delete a user": Change(_user("delete", "ROLE_ADMIN")),
    "create a developer": _new("DEVELOPER"),
}


def carried_out(sign_ins: SignIns, site: Site, change: Change) -> tuple[Seen, bool]:
    """Send a form; return the answer, and whether anything was changed."""
    admin = sign_ins.service.admin
    page, action = change.page(admin).split()
    fields = dict(change.fields)
    if action == "/console/users":
        fields["email"] = f"u{next(_numbers)}@example.com"
    form = site.get(page).form(action)
    newest = admin.events()[0].seq
    seen = site.send(form, **fields)
    is_changed = any(
        event.seq > newest and event.action != audit_event_pb2.AUDIT_ACTION_CALL_REFUSED
        for event in admin.events()
    )
    return seen, is_changed


@pytest.mark.parametrize("case", sorted(GIVES))
def test_what_gives_authority_waits_for_a_sign_in(sign_ins: SignIns, site: Site, case: str) -> None:
    """The form comes back with a link to sign in again, and nothing is changed or shown."""
    seen, is_changed = carried_out(sign_ins, site, GIVES[case])
    assert seen.status == 403
    assert AGAIN in seen.links
    assert seen.token == ""
    assert not is_changed


@pytest.mark.parametrize("case", sorted(TAKES))
def test_what_takes_authority_away_never_waits(sign_ins: SignIns, site: Site, case: str) -> None:
    """It is what one does in an emergency."""
    seen, is_changed = carried_out(sign_ins, site, TAKES[case])
    assert seen.status == 303
    assert is_changed
    assert AGAIN not in seen.links


@pytest.mark.parametrize(("number", "status"), [(10, 200), (11, 403)])
def test_more_than_ten_revocations_wait(
    sign_ins: SignIns, site: Site, number: int, status: int
) -> None:
    """Ten are still an emergency; more could be an attack."""
    admin = sign_ins.service.admin
    made = [admin.create_key(name=f"k{one}") for one in range(number)]
    ids = [one.api_key.id for one in made]
    seen = send(site, ticking(site, *ids), *ids, reason="LOST")
    assert seen.status == status
    assert (AGAIN in seen.links) is (status == 403)
    expected = {"REVOKED"} if status == 200 else {"VALID"}
    assert {admin.outcome(one.token) for one in made} == expected


def test_connecting_a_sign_in_waits(sign_ins: SignIns, site: Site) -> None:
    """Connecting adds a way in, so a session with an old sign-in has to sign in again first."""
    seen = sign_ins.sign_in(site, f"stranger{next(_numbers)}", "connect")
    seen = site.send(seen.form("/console/sign-in/confirm"))
    assert seen.status == 403
    assert AGAIN in seen.links
