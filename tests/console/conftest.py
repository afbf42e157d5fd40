"""Fixtures: a service with a console, and who looks at it."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from console.site import Site
from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, Service, open_replaceable, running
from keybearer_service.http.listeners import HttpConfig


@pytest.fixture(scope="session", autouse=True)
def needs_the_extra() -> None:
    """Skip the suite where the extra `console` is not installed."""
    pytest.importorskip("jinja2", reason="the extra console is not installed")


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service with a console, and nothing in it but its first administrator."""
    with running(
        tmp_path / "data",
        clock,
        entropy,
        http=HttpConfig(console=ANY_PORT, gateway=ANY_PORT),
        opener=open_replaceable,
    ) as running_service:
        yield running_service


@pytest.fixture
def site(service: Service) -> Iterator[Site]:
    """The console as one browser without a script sees it; nobody is signed in."""
    with Site.of(service) as opened:
        yield opened


@pytest.fixture
def signed_in(service: Service, site: Site) -> Site:
    """The same, with the first administrator signed in."""
    site.sign_in(service.admin_token)
    return site


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """What drives browsers; the tests are skipped where there is none, or no browser.

    It has an event loop of this thread while it runs, so it ends with its module.
    """
    reason = ""
    if importlib.util.find_spec("playwright") is None:
        reason = "playwright is not installed"
    else:
        from browser import executable  # noqa: PLC0415 - needs playwright

        if not executable():
            reason = "there is no Chromium; KEYBEARER_TEST_BROWSER can name one"
    if reason and os.environ.get("KEYBEARER_TEST_BROWSER") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - may be missing

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def chromium(driver: Any) -> Iterator[Any]:
    """A browser without a window."""
    from browser import launched  # noqa: PLC0415 - needs playwright

    running_browser = launched(driver)
    yield running_browser
    running_browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; whatever one of them complains about fails the test."""
    complaints: list[str] = []
    contexts: list[Any] = []

    def opened(**options: Any) -> Any:
        options.setdefault("viewport", {"width": 1280, "height": 800})
        context = chromium.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text)
                # That an answer has a status of 400 or more is what some tests ask for.
                if said.type == "error" and "the server responded with a status" not in said.text
                else None
            ),
        )
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
