"""Signing in at a provider, in a real browser: an invitation, barriers, hostile texts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from console.certified import certified
from console.screens import HOSTILE, SHOWN, SMALL, barriers, looks, sign_in
from console.signing import SignIns, signing_in
from keybearer_service.domain.clock import MINUTE

OpenPage = Callable[..., Any]


@pytest.fixture
def sign_ins(tmp_path: Path) -> Iterator[SignIns]:
    """A service whose people sign in at a provider that asks nothing."""
    with signing_in(tmp_path / "data") as running:
        yield running


def invited_by(page: Any, origin: str, user_id: str) -> str:
    """Invite a user, from the page of the user on; return the link."""
    page.goto(f"{origin}/console/users/{user_id}")
    page.get_by_role("link", name="The sign-in at the provider").click()
    page.get_by_role("button", name="Make an invitation").click()
    page.wait_for_selector(SHOWN)
    link = str(page.locator(SHOWN).text_content())
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Done").click()
    page.get_by_text("There is an invitation").wait_for()
    return link


def at_provider(page: Any, name: str) -> None:
    """Sign in on the pages of the certified provider, and say yes to what it asks."""
    page.locator("input[name=login]").fill(name)
    page.locator("input[name=password]").fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_an_invitation_leads_to_the_list(
    tmp_path: Path, open_page: OpenPage, chromium: Any, *, scripts: bool
) -> None:
    """Made, opened, accepted at a certified provider of another site; out again at both."""
    with certified(tmp_path) as service:
        origin = service.app.console_origin
        admin = open_page(java_script_enabled=scripts)
        sign_in(admin, service)
        user = service.admin.create_user("lin@example.com", role="ROLE_ADMIN")
        link = invited_by(admin, origin, user.id)
        # Not of `open_page`: what the pages of the provider complain about is not ours.
        context = chromium.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.goto(link)
        if not scripts:
            page.get_by_label("Invitation").fill(link)
            page.get_by_role("button", name="Go on").click()
        page.get_by_role("heading", name="You are invited to keybearer").wait_for()
        assert "kbinv1" not in page.url
        page.get_by_role("link", name="Sign in at").click()
        at_provider(page, "lin")
        page.get_by_role("heading", name="Connect this sign-in?").wait_for()
        page.get_by_role("button", name="Connect").click()
        page.wait_for_url("**/console/keys")
        assert "lin@example.com" in page.locator("header").inner_text()
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("link", name="Sign out there too").click()
        page.wait_for_url("http://localhost:*/**")
        page.goto(f"{origin}/console/keys")
        page.get_by_role("heading", name="Sign in").wait_for()
        context.close()


def screens(page: Any, sign_ins: SignIns) -> Iterator[str]:
    """Show one screen after the other; yield the name of each."""
    links: list[str] = []
    yield from screens_of_administrator(page, sign_ins, links)
    yield from screens_of_invited(page, sign_ins, links[0])


def screens_of_administrator(page: Any, sign_ins: SignIns, links: list[str]) -> Iterator[str]:
    """Invite somebody, whose link goes into `links`; connect and sign out."""
    service, origin = sign_ins.service, sign_ins.service.app.console_origin
    lin, _ = sign_ins.administrator()
    robot = service.admin.create_user(
        "robot@example.com", role="ROLE_ADMIN", type="USER_TYPE_SERVICE_ACCOUNT"
    ).id
    page.goto(f"{origin}/console/sign-in")
    yield "sign in, by both ways"
    page.get_by_label("Token of an Admin key").fill("x")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("not the token of a key").wait_for()
    yield "a wrong token"
    sign_in(page, service)
    page.goto(f"{origin}/console/sign-in?again=1")
    yield "sign in again with a token"
    page.goto(f"{origin}/console/users/{robot}/sign-in")
    yield "the sign-in of a service account"
    page.goto(f"{origin}/console/users/{lin}/sign-in")
    yield "a user who is not connected"
    page.get_by_role("button", name="Make an invitation").click()
    page.wait_for_selector(SHOWN)
    yield "an invitation, shown once"
    links.append(str(page.locator(SHOWN).text_content()))
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Done").click()
    page.get_by_text("There is an invitation").wait_for()
    yield "a user who is invited"
    page.get_by_role("link", name="My sign-in").click()
    page.get_by_role("link", name="Connect my sign-in").wait_for()
    yield "my sign-in"
    page.get_by_role("link", name="Connect my sign-in").click()
    page.get_by_role("heading", name="Connect this sign-in?").wait_for()
    yield "connect"
    page.get_by_role("button", name="Connect").click()
    page.get_by_role("button", name="Remove the sign-in").wait_for()
    yield "connected"
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="You are signed out").wait_for()
    yield "signed out"


def screens_of_invited(page: Any, sign_ins: SignIns, link: str) -> Iterator[str]:
    """Open an invitation; be refused, sign in, and be asked to once more."""
    origin = sign_ins.service.app.console_origin
    page.goto(f"{origin}/console/invitation")
    yield "an invitation to paste"
    page.get_by_label("Invitation").fill("x")
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("does not work any more").wait_for()
    yield "a wrong invitation"
    page.goto("about:blank")
    page.goto(link)
    page.get_by_role("heading", name="You are invited to keybearer").wait_for()
    yield "invited"
    sign_ins.provider.person = "nobody"
    page.goto(f"{origin}/console/sign-in")
    yield "sign in, at the provider alone"
    page.get_by_role("link", name="Sign in at").click()
    page.get_by_text("Ask an administrator").wait_for()
    yield "refused"
    sign_ins.provider.person = "alice"
    page.goto(f"{origin}/console/sign-in/start?for=again")
    page.goto(f"{origin}/console/signed-in")
    page.get_by_role("heading", name="You have signed in again").wait_for()
    yield "signed in again"
    page.goto(f"{origin}/console/keys/new")
    for _ in range(3):
        sign_ins.clock.advance(20 * MINUTE)
        page.context.request.get(f"{origin}/console/sessions")
    page.get_by_label("Name", exact=True).fill("late")
    page.get_by_role("radio", name="Developer").check()
    page.get_by_role("button", name="Generate Key").click()
    page.get_by_text("more than an hour ago").wait_for()
    yield "step-up"


@pytest.mark.parametrize(("size", "theme"), looks(SMALL))
def test_no_screen_of_signing_in_has_a_barrier(
    sign_ins: SignIns, open_page: OpenPage, size: Any, theme: str
) -> None:
    """Axe finds nothing on any screen, and nothing is wider than the window."""
    page = open_page(viewport=size, color_scheme=theme)
    found = {}
    seen = 0
    for name in screens(page, sign_ins):
        wrong = barriers(page)
        if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
            wrong.append("wider than the window")
        if wrong:
            found[name] = wrong
        seen += 1
    assert found == {}
    assert seen == 18


def test_a_barrier_that_is_planted_on_a_card_is_found(
    sign_ins: SignIns, open_page: OpenPage
) -> None:
    """The search for barriers can fail here too."""
    page = open_page()
    page.goto(f"{sign_ins.service.app.console_origin}/console/invitation")
    page.evaluate("document.querySelector('label[for=invitation]').remove()")
    assert any(one.startswith("label") for one in barriers(page))


def test_what_a_provider_says_runs_nothing(sign_ins: SignIns, open_page: OpenPage) -> None:
    """No script error, no report of the policy, no dialog, whatever a person is called there."""
    sign_ins.provider.person = HOSTILE
    page = open_page()
    asked: list[str] = []

    def note(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", note)
    sign_in(page, sign_ins.service)
    page.get_by_role("link", name="My sign-in").click()
    page.get_by_role("link", name="Connect my sign-in").click()
    page.get_by_role("button", name="Connect").click()
    page.get_by_text(HOSTILE).wait_for()
    origin = sign_ins.service.app.console_origin
    for path in ("audit", "sessions", f"users/{sign_ins.service.admin_user_id}"):
        page.goto(f"{origin}/console/{path}")
        page.wait_for_load_state()
    assert asked == []
