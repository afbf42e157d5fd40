"""Users, changes, audit and sessions in a real browser: by mouse, by keyboard, without scripts."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from console.screens import (
    HOSTILE,
    NARROW,
    SHOWN,
    barriers,
    focused,
    looks,
    sign_in,
    tab_to,
)
from fakes import FakeClock
from harness import Service
from keybearer_service.domain.clock import MINUTE

OpenPage = Callable[..., Any]


def saved(page: Any) -> str:
    """Return the secret that is shown, and go on from it."""
    page.wait_for_selector(SHOWN)
    token = str(page.locator(SHOWN).text_content())
    page.locator("input[name=saved]").check()
    page.get_by_role("button", name="Done").click()
    page.wait_for_url("**/console/keys**#key-*")
    return token


def story(page: Any, service: Service) -> None:
    """Do what an administrator does after the first key, on every screen."""
    service.tenant("tenant")
    sign_in(page, service)
    bot_id = user_story(page, service)
    key_story(page, service, bot_id)
    page.goto(f"{service.app.console_origin}/console/users/{bot_id}")
    page.get_by_role("link", name="Delete user").click()
    page.get_by_role("button", name="Delete user").click()
    page.get_by_text("is deleted.").wait_for()
    log_story(page)


def user_story(page: Any, service: Service) -> str:
    """Create a user and edit them; return the id."""
    page.get_by_role("link", name="Users").click()
    page.get_by_role("link", name="Create user").click()
    page.get_by_role("radio", name="Service account").check()
    page.get_by_label("E-mail address").fill("bot@example.com")
    page.get_by_label("Name", exact=True).fill("Bot")
    page.get_by_role("radio", name="Developer").check()
    page.get_by_role("button", name="Create user").click()
    page.get_by_text("The user is there.").wait_for()
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Name", exact=True).fill("Bot 2")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("The change is saved.").wait_for()
    users = service.admin.list_users().users
    return str(next(one.id for one in users if one.email == "bot@example.com"))


def key_story(page: Any, service: Service, owner_id: str) -> None:
    """Edit a key, rotate it and end the old secret, disable, enable and revoke it."""
    made = service.admin.create_key(name="robot", owner_id=owner_id)
    page.goto(f"{service.app.console_origin}/console/keys/{made.api_key.id}")
    page.get_by_role("link", name="Edit").click()
    page.get_by_label("Name", exact=True).fill("robot 2")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("The change is saved.").wait_for()
    page.get_by_role("link", name="Rotate").click()
    page.get_by_label("It works for one more day").check()
    page.get_by_role("button", name="Rotate").click()
    token = saved(page)
    page.get_by_role("link", name="robot 2", exact=True).click()
    page.get_by_role("link", name="End it now").click()
    page.get_by_role("button", name="End the old secret").click()
    page.get_by_text("The old secret is refused.").wait_for()
    assert service.admin.outcome(made.token) == "NOT_FOUND"
    page.get_by_role("link", name="Disable").click()
    page.get_by_role("button", name="Disable").click()
    page.get_by_text("It is disabled.").wait_for()
    page.get_by_role("link", name="Enable").click()
    page.get_by_role("button", name="Enable").click()
    page.get_by_text("It is enabled").wait_for()
    assert service.admin.outcome(token) == "VALID"
    page.goto(f"{service.app.console_origin}/console/keys")
    page.get_by_role("checkbox", name="Tick robot 2").check()
    page.get_by_role("button", name="Revoke those ticked").click()
    page.get_by_label("It is no longer used").check()
    page.get_by_role("button", name="Revoke 1 key").click()
    page.get_by_text("Revoked.").wait_for()
    assert service.admin.outcome(token) == "REVOKED"
    page.get_by_role("link", name="Back to the list").click()


def log_story(page: Any) -> None:
    """Filter the log, export it and the keys, look at another account, end the session."""
    page.get_by_role("link", name="Audit").click()
    page.get_by_role("cell", name="User deleted").wait_for()
    page.get_by_label("Who", exact=True).fill("admin@example.com")
    page.get_by_label("Action").select_option("User updated")
    page.get_by_role("button", name="Filter").click()
    page.get_by_text("Bot 2").wait_for()
    assert page.locator("tbody tr").count() == 1
    for area in ("Audit", "API Keys"):
        page.get_by_role("link", name=area).click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Export as CSV").click()
        assert "robot 2" in Path(download.value.path()).read_text()
    page.get_by_role("link", name="operator").click()
    page.get_by_role("link", name="tenant").click()
    page.wait_for_url("**/console/keys?account=*")
    assert "tenant" in page.title()
    page.get_by_role("link", name="Account: tenant").click()
    page.get_by_role("link", name="operator", exact=True).click()
    page.get_by_role("link", name="Sessions").click()
    page.get_by_role("button", name="End").first.click()
    page.get_by_label("Token of an Admin key").wait_for()


@pytest.mark.parametrize(("size", "theme"), looks(NARROW))
def test_the_story_of_changes_by_mouse(
    service: Service, open_page: OpenPage, size: Any, theme: str
) -> None:
    """Everything that an administrator does after the first key."""
    story(open_page(viewport=size, color_scheme=theme), service)


@pytest.mark.slow
def test_the_story_of_changes_without_scripts(service: Service, open_page: OpenPage) -> None:
    """The same; dialogs are panels."""
    story(open_page(java_script_enabled=False), service)


def test_the_changes_by_keyboard_alone(service: Service, open_page: OpenPage) -> None:
    """The focus is where one goes on, in every dialog."""
    made = service.admin.create_key(name="robot")
    page = open_page()
    sign_in(page, service)
    page.goto(f"{service.app.console_origin}/console/keys/{made.api_key.id}")
    tab_to(page, "^A +Edit")
    page.keyboard.press("Enter")
    page.wait_for_url("**/edit")
    assert focused(page).startswith("INPUT name")
    page.keyboard.press("Control+A")
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    page.get_by_text("The change is saved.").wait_for()
    tab_to(page, "^A +Rotate")
    page.keyboard.press("Enter")
    page.wait_for_url("**/rotate")
    assert "Rotate" in focused(page)
    tab_to(page, "^INPUT overlap")
    page.keyboard.press("Space")
    tab_to(page, "^BUTTON .*Rotate")
    page.keyboard.press("Enter")
    page.wait_for_selector(SHOWN)
    token = str(page.locator(SHOWN).text_content())
    tab_to(page, "^INPUT saved")
    page.keyboard.press("Space")
    tab_to(page, "^BUTTON done")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/keys**#key-*")
    assert service.admin.outcome(token) == "VALID"
    tab_to(page, "^INPUT key", "Shift+Tab")
    page.keyboard.press("Space")
    tab_to(page, "^BUTTON .*Revoke those ticked")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/keys/revoke**")
    assert "Keep it" in focused(page)
    page.keyboard.press("Escape")
    page.wait_for_url("**/console/keys#revoke-ticked")
    assert service.admin.outcome(token) == "VALID"


def enter(page: Any, wanted: str, address: str) -> None:
    """Go to a link or button by the keyboard, and press it."""
    tab_to(page, wanted)
    page.keyboard.press("Enter")
    page.wait_for_url(address)


def test_users_by_keyboard_alone(service: Service, open_page: OpenPage) -> None:
    """Create, edit and delete one; the focus comes back to what opened a dialog."""
    page = open_page()
    sign_in(page, service)
    enter(page, "^A +Users", "**/console/users")
    enter(page, "^A create", "**/users/new")
    assert "PERSON" in focused(page)
    page.keyboard.press("Escape")
    page.wait_for_url("**/console/users#create")
    assert "Create user" in focused(page)
    page.keyboard.press("Enter")
    page.wait_for_url("**/users/new")
    page.keyboard.press("ArrowDown")
    tab_to(page, "^INPUT email")
    page.keyboard.type("bot@example.com")
    tab_to(page, "^INPUT display_name")
    page.keyboard.type("Bot")
    tab_to(page, "^INPUT role")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.get_by_text("The user is there.").wait_for()
    assert "bot@example.com" in focused(page)
    enter(page, "^A +Edit", "**/edit")
    assert focused(page).startswith("INPUT display_name")
    page.keyboard.press("Escape")
    page.get_by_text("History").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_url("**/console/users#user-*")
    assert "bot@example.com" in focused(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.sheet")
    enter(page, "^A +Delete user", "**/delete")
    assert "Keep the user" in focused(page)
    enter(page, "^BUTTON +Delete user", "**/console/users?deleted=*")
    page.get_by_text("is deleted.").wait_for()


def test_audit_accounts_and_sessions_by_keyboard_alone(
    service: Service, open_page: OpenPage
) -> None:
    """Filter and export the log, look at another account and back, end the session."""
    service.tenant("tenant")
    user = service.admin.create_user("bot@example.com")
    service.admin.update_user(user.id, {"display_name": "Bot"})
    page = open_page()
    sign_in(page, service)
    enter(page, "^A +Audit", "**/console/audit")
    tab_to(page, "^INPUT actor")
    page.keyboard.type("admin@example.com")
    tab_to(page, "^SELECT action")
    page.keyboard.type("User updated")
    tab_to(page, "^BUTTON +Filter")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/audit?actor=*")
    assert page.locator("tbody tr").count() == 1
    with page.expect_download() as download:
        tab_to(page, "^A +Export as CSV")
        page.keyboard.press("Enter")
    assert Path(download.value.path()).read_text().count("USER_UPDATED") == 1
    enter(page, "^A +Account: ", "**/console/accounts**")
    enter(page, "^A +tenant", "**/console/keys?account=*")
    assert "tenant" in page.title()
    enter(page, "^A +Account: tenant", "**/console/accounts?account=*")
    enter(page, "^A +operator$", "**/console/keys")
    enter(page, "^A +Sessions", "**/console/sessions")
    tab_to(page, "^BUTTON +End")
    page.keyboard.press("Enter")
    page.get_by_label("Token of an Admin key").wait_for()


def test_the_focus_comes_back_to_what_opened_a_form_for_keys(
    service: Service, open_page: OpenPage
) -> None:
    """To Create API Key, to Revoke those ticked, and to the key."""
    key_id = service.admin.create_key(name="robot").api_key.id
    page = open_page()
    sign_in(page, service)
    for wanted in ("^A create", "^BUTTON revoke-ticked"):
        tab_to(page, wanted)
        page.keyboard.press("Enter")
        page.wait_for_selector("dialog:modal")
        page.keyboard.press("Escape")
        page.wait_for_url("**/console/keys#*")
        assert re.search(wanted, focused(page)), focused(page)
    page.goto(f"{service.app.console_origin}/console/keys/{key_id}/disable")
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="History").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_url(f"**/console/keys#key-{key_id}")
    assert "robot" in focused(page)


def screens(page: Any, service: Service, clock: FakeClock) -> Iterator[str]:
    """Show one screen after the other; yield the name of each."""
    admin, origin = service.admin, service.app.console_origin
    user = admin.create_user("n" * 60 + "@example.com", role="ROLE_ADMIN", display_name="d" * 100)
    own = admin.create_key(name="o" * 100, role="ROLE_ADMIN", owner_id=user.id)
    as_user = service.as_token(own.token)
    as_user.create_key(name="for another", owner_id=service.admin_user_id)
    key = admin.create_key(name="n" * 100, description="Uses it.", labels={"a": "b"}).api_key
    admin.rotate(key.id, overlap=timedelta(hours=1))
    clock.advance(MINUTE)
    admin.update_user(user.id, {"display_name": "e" * 100})
    sign_in(page, service)
    for path in (
        f"keys/{key.id}",
        f"keys/{key.id}/edit",
        f"keys/{key.id}/rotate",
        f"keys/{key.id}/disable",
        f"keys/{key.id}/end-old-secret",
        f"keys/revoke?key={key.id}&key={own.api_key.id}",
        "users",
        "users?q=nobody",
        "users/new",
        f"users/{user.id}",
        f"users/{user.id}/edit",
        f"users/{user.id}/delete",
        "audit",
        "audit?after=x",
        "sessions",
        "accounts",
    ):
        page.goto(f"{origin}/console/{path}")
        yield path
    page.goto(f"{origin}/console/users/new")
    page.get_by_role("radio", name="Person").check()
    page.get_by_role("radio", name="Admin").check()
    page.get_by_label("E-mail address").fill("x")
    page.get_by_label("Name", exact=True).fill(" ")
    page.get_by_role("button", name="Create user").click()
    page.wait_for_selector("#summary")
    yield "errors of a user"
    page.goto(f"{origin}/console/keys/{key.id}/edit")
    admin.update_key(key.id, {"name": "theirs"})
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Somebody changed this key").wait_for()
    yield "a conflict"
    page.goto(f"{origin}/console/keys/revoke?key={key.id}")
    page.get_by_label("Its secret was lost").check()
    page.get_by_role("button", name="Revoke 1 key").click()
    page.get_by_text("Revoked.").wait_for()
    yield "what became of them"


@pytest.mark.parametrize(("size", "theme"), looks(NARROW))
def test_no_screen_of_changes_has_a_barrier(
    service: Service, open_page: OpenPage, clock: FakeClock, size: Any, theme: str
) -> None:
    """Axe finds nothing on any screen, and nothing is wider than the window."""
    page = open_page(viewport=size, color_scheme=theme)
    found = {}
    seen = 0
    for name in screens(page, service, clock):
        wrong = barriers(page)
        if not page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
            wrong.append("wider than the window")
        if wrong:
            found[name] = wrong
        seen += 1
    assert found == {}
    assert seen == 19


def test_long_names_break_no_word_of_the_console(service: Service, open_page: OpenPage) -> None:
    """What is pressed stays on one line, and the head of the page keeps its two on a phone."""
    user = service.admin.create_user("n" * 60 + "@example.com", role="ROLE_ADMIN")
    service.admin.create_key(name="n" * 100, owner_id=user.id, role="ROLE_ADMIN")
    tenant = service.tenant("t" * 40)
    page = open_page()
    sign_in(page, service)
    link = page.locator(".action a").first
    assert link.bounding_box()["height"] < 30
    page.set_viewport_size(NARROW)
    page.goto(f"{service.app.console_origin}/console/keys?account={tenant.account_id}")
    brand = page.locator(".brand").bounding_box()
    sign_out = page.get_by_role("button", name="Sign out").bounding_box()
    assert abs(brand["y"] + brand["height"] / 2 - sign_out["y"] - sign_out["height"] / 2) < 8


def test_hostile_texts_of_users_run_nothing(service: Service, open_page: OpenPage) -> None:
    """No script error, no report of the policy, no dialog: `open_page` counts the complaints."""
    user = service.admin.create_user(
        "<img/src=x/onerror=alert(1)>@example.com", role="ROLE_ADMIN", display_name=HOSTILE
    )
    made = service.admin.create_key(name=HOSTILE, role="ROLE_ADMIN", owner_id=user.id)
    page = open_page(user_agent=HOSTILE)
    asked: list[str] = []

    def note(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", note)
    sign_in(page, service)
    for path in (
        "users",
        f"users/{user.id}",
        f"users/{user.id}/edit",
        f"users/{user.id}/delete",
        f"keys/{made.api_key.id}/edit",
        f"keys/revoke?key={made.api_key.id}",
        "audit",
        "audit?actor=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&action=x",
        "sessions",
    ):
        page.goto(f"{service.app.console_origin}/console/{path}")
        page.wait_for_load_state()
    assert asked == []
