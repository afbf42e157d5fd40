"""Makes the pictures of docs/console.md, from the running product with made-up keys.

    PYTHONPATH=client:service:tests python tools/console_pictures.py [DIRECTORY]

With a directory it makes those that the page does not show too: every screen, wide and narrow, in
light and dark. The clock stands still and the randomness is that of a seed, so that the pictures
change only with the console. Needs Chromium.
"""

import sys
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from playwright.sync_api import Browser, Page

from browser import NARROW, WIDE, browser, sign_in
from console.signing import SignIns, signing_in
from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, Service, running
from keybearer_service.domain.clock import DAY, HOUR, MINUTE
from keybearer_service.http.listeners import HttpConfig

TARGET: Final = Path(__file__).parents[1] / "docs/console"
SEED: Final = 7
SIZES: Final = {"wide": WIDE, "narrow": NARROW}
ON_THE_PAGE: Final = (("wide", "light"), ("narrow", "dark"))
ALL: Final = tuple((size, theme) for theme in ("light", "dark") for size in SIZES)
NEVER: Final = 0


def main(target: Path, shown: Sequence[tuple[str, str]]) -> None:
    """Make every picture, in the sizes and colours that are named."""
    target.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        _take_keys(chromium, target, shown)
        _take_signing_in(chromium, target, shown)


def _take_keys(chromium: Browser, target: Path, shown: Sequence[tuple[str, str]]) -> None:
    """Take what the console shows to somebody who signs in with a token."""
    clock = FakeClock()
    with (
        TemporaryDirectory() as directory,
        running(
            Path(directory, "data"),
            clock,
            SeededEntropy(SEED),
            http=HttpConfig(console=ANY_PORT),
        ) as service,
    ):
        key_id, user_id = _fill(service, clock)
        for name, theme in shown:
            page = _page(chromium, SIZES[name], theme)
            _take(page, service, (key_id, user_id), partial(_path, target, name, theme))
            page.context.close()
            clock.advance(MINUTE)


def _take_signing_in(chromium: Browser, target: Path, shown: Sequence[tuple[str, str]]) -> None:
    """Take what it shows where people sign in at a provider."""
    with TemporaryDirectory() as directory:
        for name, theme in shown:
            # Each on a service of its own, for nobody is connected before.
            with signing_in(Path(directory, f"{name}-{theme}")) as sign_ins:
                page = _page(chromium, SIZES[name], theme)
                _sign_in_screens(page, sign_ins, partial(_path, target, name, theme))
                page.context.close()


def _sign_in_screens(page: Page, sign_ins: SignIns, path: Any) -> None:
    service, origin = sign_ins.service, sign_ins.service.app.console_origin
    sign_ins.provider.person = "maria"

    def shot(name: str) -> None:
        _hide_port(page)
        page.screenshot(path=path(name))

    user = service.admin.create_user("maria@example.com", role="ROLE_ADMIN", display_name="Maria")
    page.goto(f"{origin}/console/sign-in")
    shot("sign-in-provider")
    sign_in(page, origin, service.admin_token)
    page.goto(f"{origin}/console/users/{user.id}/sign-in")
    shot("user-sign-in")
    page.get_by_role("button", name="Make an invitation").click()
    page.locator("output#token").wait_for()
    link = str(page.locator("output#token").text_content())
    shot("invitation")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="You are signed out").wait_for()
    shot("signed-out")
    page.goto(link)
    page.get_by_role("heading", name="You are invited").wait_for()
    shot("invited")
    page.get_by_role("link", name="Sign in at").click()
    page.get_by_role("heading", name="Connect this sign-in?").wait_for()
    shot("connect")
    page.get_by_role("button", name="Connect").click()
    page.wait_for_url("**/console/keys")
    page.goto(f"{origin}/console/users/{user.id}/sign-in")
    shot("user-signed-in")
    page.goto(f"{origin}/console/keys/new")
    for _ in range(3):
        sign_ins.clock.advance(20 * MINUTE)
        page.context.request.get(f"{origin}/console/sessions")
    page.get_by_label("Name", exact=True).fill("metrics-exporter")
    page.get_by_role("radio", name="Developer").check()
    page.get_by_role("button", name="Generate Key").click()
    page.get_by_text("more than an hour ago").wait_for()
    shot("step-up")


def _hide_port(page: Page) -> None:
    """Show a provider and a console with the names that they would have."""
    page.evaluate(
        """() => {
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          while (walker.nextNode()) {
            walker.currentNode.data = walker.currentNode.data
              .replace(`http://${location.host}`, "https://keys.example.com")
              .replace(/(http:..)?127[.]0[.]0[.]1:[0-9]+/, "id.example.com");
          }
        }"""
    )


def _path(target: Path, size: str, theme: str, screen: str) -> Path:
    return target / f"{screen}-{size}-{theme}.png"


def _page(chromium: Browser, size: Any, theme: Any) -> Page:
    context = chromium.new_context(
        viewport=size,
        color_scheme=theme,
        timezone_id="UTC",
        locale="en-US",
        permissions=["clipboard-read", "clipboard-write"],
        reduced_motion="reduce",
    )
    return context.new_page()


def _take(page: Page, service: Service, shown: tuple[str, str], path: Any) -> None:
    origin = service.app.console_origin
    key_id, user_id = shown

    def shot(name: str) -> None:
        page.screenshot(path=path(name))

    page.goto(f"{origin}/console/sign-in")
    shot("sign-in")
    sign_in(page, origin, service.admin_token)
    shot("list")
    page.goto(f"{origin}/console/keys/{key_id}")
    shot("details")
    page.goto(f"{origin}/console/keys/{key_id}/revoke")
    shot("revoke")
    page.goto(f"{origin}/console/keys/{key_id}/edit")
    shot("edit")
    page.goto(f"{origin}/console/keys/{key_id}/rotate")
    shot("rotate")
    page.goto(f"{origin}/console/users")
    shot("users")
    page.goto(f"{origin}/console/users/{user_id}")
    shot("user")
    page.goto(f"{origin}/console/users/{user_id}/delete")
    shot("delete-user")
    page.goto(f"{origin}/console/audit")
    shot("audit")
    page.goto(f"{origin}/console/sessions")
    shot("sessions")
    page.goto(f"{origin}/console/accounts")
    shot("accounts")
    page.goto(f"{origin}/console/keys?view=active")
    for box in page.locator("input[name=key]").all()[:3]:
        box.check()
    page.get_by_role("button", name="Revoke those ticked").click()
    page.get_by_role("heading", name="Revoke 3 keys").wait_for()
    shot("revoke-several")
    page.goto(f"{origin}/console/keys/new")
    shot("create")
    page.get_by_label("Name", exact=True).fill("metrics-exporter")
    page.get_by_role("radio", name="Developer").check()
    page.get_by_role("button", name="Generate Key").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").first.wait_for()
    shot("shown-once")
    page.get_by_role("button", name="Done").click()
    made = page.get_by_role("link", name="metrics-exporter", exact=True).first
    made.click()
    page.get_by_role("link", name="Revoke API Key").click()
    page.get_by_label("It is no longer used").check()
    page.get_by_role("button", name="Revoke API Key").click()
    page.get_by_text("is revoked").wait_for()
    shot("revoked")


def _fill(service: Service, clock: FakeClock) -> tuple[str, str]:
    """Make users and keys of different ages; return the key and the user to look at closely."""
    admin = service.admin
    deploy = admin.create_user(
        "deploy@example.com", role="ROLE_DEVELOPER", type="USER_TYPE_SERVICE_ACCOUNT"
    )
    lin = admin.create_user("lin@example.com", role="ROLE_ADMIN")
    grace = admin.create_user("grace@example.com", role="ROLE_DEVELOPER")

    def made(name: str, days: int, **fields: Any) -> Any:
        if days:
            fields["ttl"] = timedelta(days=days)
        return admin.create_key(name=name, **fields)

    exporter = made("backup-verifier", NEVER)
    clock.advance(20 * DAY)
    nightly = made("nightly-backup", 372, scopes=["backups.*"])
    clock.advance(60 * DAY)
    old = made("old-dashboard", 500)
    clock.advance(90 * DAY)
    release = made(
        "ci-release",
        565,
        owner_id=deploy.id,
        description="Publishes releases from the main branch. Secret lives in the CI vault.",
        scopes=["clusters.read", "releases.write"],
        labels={"env": "prod", "team": "platform"},
    )
    clock.advance(70 * DAY)
    admin.validate(old.token)
    service.app.container.usage.flush()
    admin.revoke(old.api_key.id, "REVOCATION_REASON_SUPERSEDED")
    partner = made("partner-import", 170)
    clock.advance(30 * DAY)
    report = made("Quarterly <b>report</b> export", 84)
    made("terraform", 200, owner_id=lin.id, role="ROLE_ADMIN")
    admin.update_user(lin.id, {"role": "ROLE_DEVELOPER"})
    admin.validate(partner.token)
    clock.advance(81 * DAY)
    admin.validate(report.token)
    admin.disable_key(partner.api_key.id)
    clock.advance(4 * DAY)
    maria = admin.create_user("maria@example.com", role="ROLE_ADMIN", display_name="Maria")
    as_maria = service.as_token(made("console", 300, owner_id=maria.id, role="ROLE_ADMIN").token)
    as_maria.create_key(name="dashboards", ttl=timedelta(days=200))
    queue = as_maria.create_key(name="queue-worker", owner_id=deploy.id, ttl=timedelta(days=200))
    made("laptop of Grace", 34, owner_id=grace.id)
    clock.advance(2 * DAY)
    admin.validate(release.token)
    admin.validate(nightly.token)
    admin.validate(exporter.token)
    admin.validate(queue.token)
    service.app.container.usage.flush()
    admin.rotate(release.api_key.id, overlap=timedelta(days=7))
    clock.advance(2 * DAY - 4 * HOUR)
    admin.validate(release.token)
    service.app.container.usage.flush()
    clock.advance(4 * HOUR)
    service.tenant("tenant")
    return str(release.api_key.id), str(maria.id)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), ALL)
    else:
        main(TARGET, ON_THE_PAGE)
