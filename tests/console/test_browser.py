"""The console in a real browser: by mouse, by keyboard, without scripts; what is left behind."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from console.screens import (
    HOSTILE,
    NARROW,
    SHOWN,
    SMALL,
    WIDE,
    barriers,
    focused,
    sign_in,
    tab_to,
)
from fakes import FakeClock
from harness import Service, file_of

OpenPage = Callable[..., Any]
BACK_FORWARD_OFF = "--disable-back-forward-cache"
"""The driver gives it by itself; a browser of people does not have it."""


def generate(page: Any, name: str) -> str:
    """Fill in the form for a new key and send it; return the secret."""
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("radio", name="Developer").check()
    page.get_by_role("button", name="Generate Key").click()
    page.wait_for_selector(SHOWN)
    return str(page.locator(SHOWN).text_content())


def create(page: Any, service: Service, name: str) -> str:
    """Create a key; return the secret that is shown."""
    page.goto(f"{service.app.console_origin}/console/keys/new")
    return generate(page, name)


def pasted(page: Any) -> str:
    """Return what is on the clipboard. The console itself may not read it."""
    other = page.context.new_page()
    other.set_content("<textarea id=t></textarea>")
    other.locator("#t").focus()
    other.keyboard.press("Control+V")
    text = str(other.locator("#t").input_value())
    other.close()
    page.bring_to_front()
    return text


# --- the story of the description -----------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_the_story_by_mouse(service: Service, open_page: OpenPage, size: Any, theme: str) -> None:
    """Paste the admin token, see the list, create a key, copy it, look at it, revoke it."""
    page = open_page(
        viewport=size, color_scheme=theme, permissions=["clipboard-read", "clipboard-write"]
    )
    sign_in(page, service)
    page.get_by_role("link", name="Create API Key").click()
    token = generate(page, "metrics-exporter")
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied. Paste it").wait_for()
    assert pasted(page) == token
    assert service.admin.outcome(token) == "VALID"
    page.get_by_role("button", name="Done").click()
    page.get_by_role("link", name="metrics-exporter", exact=True).click()
    page.get_by_role("heading", name="metrics-exporter").wait_for()
    page.get_by_role("link", name="Revoke API Key").click()
    page.get_by_label("It is no longer used").check()
    page.get_by_role("button", name="Revoke API Key").click()
    page.get_by_text("Every program that used it is refused.").wait_for()
    assert service.admin.outcome(token) == "REVOKED"
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="You are signed out of keybearer").wait_for()


def test_the_story_by_keyboard_alone(service: Service, open_page: OpenPage) -> None:
    """The same, without a mouse; the focus is where one goes on, and comes back."""
    page = open_page()
    page.goto(f"{service.app.console_origin}/console/keys")
    page.keyboard.type(service.admin_token)
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/keys")
    tab_to(page, "^A create")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/keys/new")
    assert focused(page).startswith("INPUT name")
    page.keyboard.type("by keyboard")
    tab_to(page, "^INPUT role")
    page.keyboard.press("ArrowDown")
    assert "DEVELOPER" in focused(page)
    tab_to(page, "Generate Key")
    page.keyboard.press("Enter")
    page.wait_for_selector(SHOWN)
    token = str(page.locator(SHOWN).text_content())
    assert "Save the key" in focused(page)
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.locator(SHOWN).is_visible()
    tab_to(page, "^INPUT saved")
    page.keyboard.press("Space")
    tab_to(page, "^BUTTON done")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/keys#key-*")
    assert "by keyboard" in focused(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.sheet")
    assert "by keyboard" in focused(page)
    page.keyboard.press("Escape")
    page.wait_for_url("**/console/keys#key-*")
    assert "by keyboard" in focused(page)
    tab_to(page, "^A  .*Revoke")
    page.keyboard.press("Enter")
    page.wait_for_url("**/revoke")
    assert "Keep it" in focused(page)
    tab_to(page, "^INPUT reason", "Shift+Tab")
    page.keyboard.press("Space")
    tab_to(page, "^BUTTON .*Revoke API Key")
    page.keyboard.press("Enter")
    page.get_by_text("Every program that used it is refused.").wait_for()
    assert service.admin.outcome(token) == "REVOKED"


def test_the_story_without_scripts(service: Service, open_page: OpenPage) -> None:
    """Dialogs are panels above the list; Done asks for the box."""
    page = open_page(java_script_enabled=False)
    sign_in(page, service)
    page.get_by_role("link", name="Create API Key").click()
    page.locator("#name").fill("plain")
    page.locator("input[value=DEVELOPER]").check()
    page.get_by_role("button", name="Generate Key").click()
    token = str(page.locator(SHOWN).text_content())
    assert service.admin.outcome(token) == "VALID"
    assert not page.locator("#copy").is_visible()
    page.get_by_role("button", name="Done").click()
    assert page.locator(SHOWN).is_visible()  # the browser itself asks for the box
    page.locator("input[name=saved]").check()
    page.get_by_role("button", name="Done").click()
    page.wait_for_url("**/console/keys#key-*")
    page.get_by_role("link", name="plain", exact=True).click()
    page.get_by_role("link", name="Revoke API Key").click()
    page.locator("input[value=LOST]").check()
    page.get_by_role("button", name="Revoke API Key").click()
    page.get_by_text("Every program that used it is refused.").wait_for()
    assert service.admin.outcome(token) == "REVOKED"


def test_a_double_click_sends_one_form(service: Service, open_page: OpenPage) -> None:
    """The script lets the first one through; the answer is the secret, and it works."""
    page = open_page()
    sign_in(page, service)
    page.goto(f"{service.app.console_origin}/console/keys/new")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.get_by_label("Name", exact=True).fill("twice")
    page.get_by_role("radio", name="Developer").check()
    page.get_by_role("button", name="Generate Key").dblclick()
    page.wait_for_selector(SHOWN)
    assert sent.count("POST") == 1
    assert service.admin.outcome(str(page.locator(SHOWN).text_content())) == "VALID"


def test_leaving_a_secret_that_is_not_saved_is_asked_about(
    service: Service, open_page: OpenPage
) -> None:
    """The browser warns; once the key is copied it does not."""
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    sign_in(page, service)
    create(page, service, "careful")
    asked: list[str] = []

    def answer(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", answer)
    page.get_by_role("heading", name="Save the key").click()
    page.goto(f"{service.app.console_origin}/console/keys")
    assert asked == ["beforeunload"]
    create(page, service, "copied")
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied. Paste it").wait_for()
    page.goto(f"{service.app.console_origin}/console/keys")
    assert asked == ["beforeunload"]


def test_a_copy_that_fails_says_so_and_selects_the_secret(
    service: Service, open_page: OpenPage
) -> None:
    """A browser may not let a page write to the clipboard."""
    page = open_page()
    page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    sign_in(page, service)
    token = create(page, service, "uncopied")
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("It is selected: copy it by hand.").wait_for()
    assert page.evaluate("getSelection().toString()") == token


def test_a_secret_can_be_saved_as_a_file(service: Service, open_page: OpenPage) -> None:
    """The file has the token and the name of its key, and is made in the browser."""
    page = open_page()
    sign_in(page, service)
    token = create(page, service, "file")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == f"{token.split('_')[1]}.key"
    assert Path(download.value.path()).read_text() == f"{token}\n"
    page.get_by_role("button", name="Done").click()
    page.wait_for_url("**/console/keys#key-*")


# --- what is left of a secret ---------------------------------------------------------------------


class _ControlPage(BaseHTTPRequestHandler):
    """A page with a secret that does nothing but say `no-store`, and one to go on to."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        body = b"<link rel=icon href=data:,><p id=s>" + (
            b"secret" if self.path == "/secret" else b"next"
        )
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("cache-control", "no-store")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def control_page() -> Iterator[str]:
    """Serve the control page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _ControlPage)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def keeping_browser(driver: Any, directory: Path) -> Iterator[Any]:
    """Run a browser that keeps pages as they were, as those of people do."""
    from browser import ARGUMENTS, executable  # noqa: PLC0415 - needs playwright

    context = driver.chromium.launch_persistent_context(
        directory,
        executable_path=executable(),
        args=list(ARGUMENTS),
        ignore_default_args=[BACK_FORWARD_OFF],
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(60_000)
    try:
        yield context
    finally:
        context.close()


def watch_restores(page: Any) -> None:
    """Have every page note whether it came back from the browser's memory."""
    page.add_init_script("addEventListener('pageshow', e => { window.wasKept = e.persisted; })")


def test_a_page_that_only_says_no_store_is_kept(driver: Any, tmp_path: Path) -> None:
    """The check can fail: this browser brings back a page that does nothing against it."""
    with control_page() as origin, keeping_browser(driver, tmp_path) as context:
        page = context.new_page()
        watch_restores(page)
        page.goto(f"{origin}/secret")
        page.goto(f"{origin}/next")
        page.go_back(wait_until="commit")
        page.wait_for_function("window.wasKept")
        assert page.locator("#s").text_content() == "secret"


def test_no_way_leads_back_to_a_secret(service: Service, driver: Any, tmp_path: Path) -> None:
    """Back, Forward, Reload, the same address again: with pages kept as they were."""
    with keeping_browser(driver, tmp_path) as context:
        page = context.new_page()
        watch_restores(page)
        sign_in(page, service)
        token = create(page, service, "gone")
        assert token not in page.url
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied. Paste it").wait_for()
        address = page.url
        page.get_by_role("button", name="Done").click()
        page.wait_for_url("**/console/keys#key-*")
        for step in (page.go_back, page.reload, page.go_back, page.go_forward, page.go_forward):
            # A page that was kept commits, and loads nothing.
            step(wait_until="commit")
            page.wait_for_function("document.readyState === 'complete'")
            assert token not in page.content()
        page.goto(address)
        assert token not in page.content()
        assert page.locator(SHOWN).count() == 0


def test_leaving_a_secret_in_another_way_leaves_none_behind(
    service: Service, driver: Any, tmp_path: Path
) -> None:
    """Without Done: an address is typed, and Back shows the details without a secret."""
    with keeping_browser(driver, tmp_path) as context:
        page = context.new_page()
        page.on("dialog", lambda dialog: dialog.accept())
        sign_in(page, service)
        token = create(page, service, "left")
        page.goto(f"{service.app.console_origin}/console/keys?view=active")
        page.go_back(wait_until="commit")
        page.get_by_role("heading", name="left").wait_for()
        assert token not in page.content()


def test_without_scripts_no_way_leads_back_to_a_secret(
    service: Service, driver: Any, tmp_path: Path
) -> None:
    """The cookie that changes has the browser throw the page away; sent again it shows none."""
    from playwright.sync_api import Error  # noqa: PLC0415 - may be missing

    from browser import ARGUMENTS, executable  # noqa: PLC0415 - needs playwright

    context = driver.chromium.launch_persistent_context(
        tmp_path,
        executable_path=executable(),
        args=list(ARGUMENTS),
        ignore_default_args=[BACK_FORWARD_OFF],
        java_script_enabled=False,
    )
    try:
        page = context.new_page()
        sign_in(page, service)
        page.goto(f"{service.app.console_origin}/console/keys/new")
        page.locator("#name").fill("plain")
        page.locator("input[value=DEVELOPER]").check()
        page.get_by_role("button", name="Generate Key").click()
        token = str(page.locator(SHOWN).text_content())
        page.locator("input[name=saved]").check()
        page.get_by_role("button", name="Done").click()
        page.wait_for_url("**/console/keys#key-*")
        try:
            page.go_back(wait_until="commit")
        except Error:  # ERR_CACHE_MISS: the browser would have to send the form again, and says so
            page.wait_for_url("chrome-error://**")
        page.wait_for_load_state()
        assert token not in page.content()
    finally:
        context.close()


def test_a_secret_is_found_nowhere(
    service: Service, driver: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not in history, storage, cookies, the profile's files, the database or the log."""
    database = file_of(service)
    with keeping_browser(driver, tmp_path / "profile") as context:
        page = context.new_page()
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        sign_in(page, service)
        token = create(page, service, "hunted")
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied. Paste it").wait_for()
        page.get_by_role("button", name="Done").click()
        page.wait_for_url("**/console/keys#key-*")
        page.goto(f"{service.app.console_origin}/console/keys/{token.split('_')[1]}")
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        cookies = str(context.cookies())
        session = next(
            one["value"] for one in context.cookies() if one["name"] == "__Host-keybearer"
        )
    secrets = [one.split("_")[2][:30] for one in (token, service.admin_token, session)]
    log = "".join(capfd.readouterr())
    files = {
        path: path.read_bytes()
        for path in (*(tmp_path / "profile").rglob("*"), database, Path(f"{database}-wal"))
        if path.is_file()
    }
    for secret in secrets:
        assert not any(secret in one for one in addresses)
        assert secret not in stored
        assert secret not in log
        found = [path for path, content in files.items() if _holds(content, secret)]
        # What stands in the cookie may stand in the browser's file of cookies.
        assert [path for path in found if path.name != "Cookies" or secret != secrets[2]] == []
    assert secrets[0] not in cookies
    # The search finds what is there: the id of the key is in history and database.
    public = token.split("_")[1]
    assert {path.name for path, content in files.items() if _holds(content, public)} >= {"History"}


def _holds(content: bytes, text: str) -> bool:
    return text.encode() in content or text.encode("utf-16-le") in content


# --- barriers -------------------------------------------------------------------------------------


def screens(page: Any, service: Service, key_id: str) -> Iterator[str]:
    """Show one screen after the other; yield the name of each."""
    origin = service.app.console_origin
    page.goto(f"{origin}/console/sign-in")
    yield "sign-in"
    sign_in(page, service)
    yield "list"
    page.goto(f"{origin}/console/keys?q=nothing-like-it")
    yield "empty"
    page.goto(f"{origin}/console/keys/new")
    yield "create"
    page.locator("#name").fill(" ")
    page.get_by_text("Owner and labels").click()
    page.locator("#owner").fill("nobody@example.com")
    page.get_by_role("radio", name="Validator").check()
    page.get_by_role("button", name="Generate Key").click()
    page.wait_for_selector("#summary")
    yield "errors"
    page.locator("#name").fill("screens")
    page.locator("#owner").fill("")
    page.get_by_role("button", name="Generate Key").click()
    page.wait_for_selector(SHOWN)
    yield "shown once"
    page.locator("input[name=saved]").check()
    page.get_by_role("button", name="Done").click()
    page.wait_for_url("**/console/keys#key-*")
    page.goto(f"{origin}/console/keys/{key_id}")
    yield "details"
    page.goto(f"{origin}/console/keys/{key_id}/revoke")
    yield "revoke"
    page.goto(f"{origin}/console/keys/nothing")
    yield "not found"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW, SMALL], ids=["1280", "390", "320"])
def test_no_screen_has_a_barrier(
    service: Service, open_page: OpenPage, clock: FakeClock, size: Any, theme: str
) -> None:
    """Axe finds nothing on any screen, and nothing is wider than the window."""
    key = service.admin.create_key(name="n" * 100, description="Uses it.", scopes=["a.b"]).api_key
    dead = service.admin.create_key(name="dead").api_key.id
    service.admin.revoke(dead)
    page = open_page(viewport=size, color_scheme=theme)
    seen = []
    for name in screens(page, service, key.id):
        assert barriers(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        seen.append(name)
    assert len(seen) == 9


def test_a_barrier_that_is_planted_is_found(service: Service, open_page: OpenPage) -> None:
    """The search for barriers can fail."""
    page = open_page()
    sign_in(page, service)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert any(one.startswith("button-name") for one in barriers(page))


def test_hostile_texts_run_nothing_and_break_no_rule(service: Service, open_page: OpenPage) -> None:
    """No script error, no report of the policy, no dialog: `open_page` counts the complaints."""
    made = service.admin.create_key(
        name=HOSTILE, description=HOSTILE * 3, labels={"x": HOSTILE}
    ).api_key
    page = open_page()
    asked: list[str] = []

    def note(dialog: Any) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", note)
    sign_in(page, service)
    origin = service.app.console_origin
    page.goto(f"{origin}/console/keys/{made.id}")
    assert page.get_by_role("heading", name=HOSTILE).is_visible()
    page.goto(f"{origin}/console/keys/{made.id}/revoke")
    page.goto(f"{origin}/console/keys?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    assert asked == []
