"""A real browser for tests and for the pictures of the documents."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""Without a network of its own, as root, and in a machine without a screen."""
WIDE: Final = {"width": 1280, "height": 800}
NARROW: Final = {"width": 390, "height": 844}
KEEPS_PAGES: Final = "--disable-back-forward-cache"
"""What the driver gives by itself, and what keeps a browser from keeping pages as they were."""


def executable() -> str:
    """Return the path of the browser; empty when there is none."""
    named = os.environ.get("KEYBEARER_TEST_BROWSER", "")
    found = named if named not in ("", "required") else ""
    return found or next(filter(None, map(shutil.which, NAMES)), "")


@contextmanager
def browser(*, ignored: Sequence[str] = ()) -> Iterator[Browser]:
    """Run a browser.

    Args:
        ignored: Arguments of the driver that are left out.
    """
    with sync_playwright() as playwright:
        running = launched(playwright, ignored=ignored)
        try:
            yield running
        finally:
            running.close()


def launched(playwright: Playwright, *, ignored: Sequence[str] = ()) -> Browser:
    """Start a browser without a window."""
    return playwright.chromium.launch(
        executable_path=executable(), args=list(ARGUMENTS), ignore_default_args=list(ignored)
    )


@contextmanager
def profile(directory: Path, *, ignored: Sequence[str] = ()) -> Iterator[BrowserContext]:
    """Run a browser that keeps what it keeps in a directory."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            directory,
            executable_path=executable(),
            args=list(ARGUMENTS),
            ignore_default_args=list(ignored),
        )
        try:
            yield context
        finally:
            context.close()


def sign_in(page: Page, origin: str, token: str) -> None:
    """Sign in by the form."""
    page.goto(f"{origin}/console/sign-in")
    page.get_by_label("Token of an Admin key").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console/keys")
