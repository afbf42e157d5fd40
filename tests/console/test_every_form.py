"""Every path that takes a form, as the console itself lists them: where the form may come from."""

from collections.abc import Iterator
from itertools import count as counted

import pytest

from console.signing import SignIns, signing_in
from console.site import Site
from keybearer_service.app import console_of
from keybearer_service.net.sign_in import SignInSettings

FROM_ELSEWHERE = {"/console/backchannel-logout"}
"""What the provider sends, which is no browser: no cookie is looked at."""
WITHOUT_SECRET = {
    "/console/sign-in": 403,
    "/console/theme": 303,
    "/console/keys/{key_id}/saved": 303,
    "/console/sign-in/confirm": 400,
    "/console/invitation": 400,
}
"""What changes nothing by a session, and what is answered to an empty form."""
_numbers = counted(1)


@pytest.fixture(scope="module")
def sign_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignIns]:
    """A service with a provider, and so with every page."""
    with signing_in(tmp_path_factory.mktemp("forms") / "data", key_sign_in="on") as running:
        yield running


@pytest.fixture
def site(sign_ins: SignIns) -> Iterator[Site]:
    """A browser in which the first administrator is signed in."""
    sign_ins.next_minute()
    with sign_ins.browser() as opened:
        yield sign_ins.admin(opened)


def forms_of(sign_ins: SignIns) -> list[str]:
    """Return every path that takes a form."""
    settings = SignInSettings(provider=sign_ins.provider.settings())
    console = console_of(sign_ins.service.app.container, settings, lambda: None)
    console.close()
    return list(console.forms)


def filled_in(path: str, sign_ins: SignIns, site: Site) -> str:
    """Return a path that names what there is; a user of its own, whom nothing keeps."""
    service = sign_ins.service
    return path.format(
        key_id=service.admin_key_id,
        user_id=service.admin.create_user(f"{next(_numbers)}@example.com", role="ROLE_ADMIN").id,
        session_id=site.session.split("_")[1],
    )


def count(sign_ins: SignIns) -> int:
    """Count the events, but for refusals of sign-ins."""
    refused = sign_ins.service.admin.events(actions=["AUDIT_ACTION_SIGN_IN_REFUSED"])
    return len(sign_ins.service.admin.events()) - len(refused)


def test_there_are_as_many_forms_as_there_were(sign_ins: SignIns) -> None:
    """The list is the one of the console: what is added is looked at here without being named."""
    forms = forms_of(sign_ins)
    assert len(forms) == len(set(forms)) >= 21
    assert set(forms) >= FROM_ELSEWHERE | set(WITHOUT_SECRET)


def test_no_form_of_another_site_is_taken(sign_ins: SignIns, site: Site) -> None:
    """Although it carries the session and the secret of its forms."""
    csrf = site.new_key_form().fields["csrf"]
    targets = {
        path: filled_in(path, sign_ins, site)
        for path in forms_of(sign_ins)
        if path not in FROM_ELSEWHERE
    }
    before = count(sign_ins)
    for path, target in targets.items():
        for headers in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"sec-fetch-site": "none"},
            {"sec-fetch-site": "", "origin": "https://example.com"},
        ):
            seen = site.post(target, {"csrf": csrf, "reason": "LOST"}, headers=headers)
            assert seen.status == 403, (path, headers)
            assert "not sent from the console" in seen.text, (path, headers)
    assert count(sign_ins) == before
    assert site.is_signed_in


def test_no_change_is_made_without_the_secret_of_the_form(sign_ins: SignIns, site: Site) -> None:
    """Nor with that of another session."""
    with sign_ins.browser() as other:
        foreign = sign_ins.admin(other).new_key_form().fields["csrf"]
    targets = {
        path: filled_in(path, sign_ins, site)
        for path in forms_of(sign_ins)
        if path not in FROM_ELSEWHERE
    }
    before = count(sign_ins)
    for path, target in targets.items():
        sign_ins.next_minute()  # or tries would be too many
        for csrf in ("", "x", foreign):
            seen = site.post(target, {"csrf": csrf, "reason": "LOST", "token": "x"})
            assert seen.status == WITHOUT_SECRET.get(path, 403), (path, csrf)
            if path not in WITHOUT_SECRET:
                assert "from before you signed in" in seen.text, (path, csrf)
    assert count(sign_ins) == before
    assert site.is_signed_in


def test_no_change_is_made_without_a_session(sign_ins: SignIns, site: Site) -> None:
    """Nor with one that was ended."""
    csrf = site.new_key_form().fields["csrf"]
    ended = dict(site.cookies)
    site.send(site.get("/console/keys").form("/console/sign-out"))
    before = count(sign_ins)
    for path in forms_of(sign_ins):
        if path in FROM_ELSEWHERE | set(WITHOUT_SECRET):
            continue
        for cookies in (ended, {}):
            site.cookies = dict(cookies)
            target = path.format(
                key_id=sign_ins.service.admin_key_id,
                user_id=sign_ins.service.admin_user_id,
                session_id="0" * 16,
            )
            seen = site.post(target, {"csrf": csrf, "reason": "LOST"})
            expected = 200 if path == "/console/sign-out" else 401
            assert seen.status == expected, path
            assert "admin@example.com" not in seen.html, path
    assert count(sign_ins) == before
