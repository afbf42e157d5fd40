"""What the tests in a real browser share: sizes, signing in, the focus, the search for barriers."""

import re
from importlib import resources
from typing import Any

import pytest

from harness import Service

WIDE = {"width": 1280, "height": 800}
NARROW = {"width": 390, "height": 844}
SMALL = {"width": 320, "height": 640}


def looks(small: dict[str, int]) -> list[Any]:
    """Return every size and theme; those beyond wide and light, and `small` and dark, are slow."""
    return [
        pytest.param(
            size,
            theme,
            id=f"{size['width']}-{theme}",
            marks=[] if (size, theme) in ((WIDE, "light"), (small, "dark")) else [pytest.mark.slow],
        )
        for size in (WIDE, NARROW, SMALL)
        for theme in ("light", "dark")
    ]


SHOWN = "output#token"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`${7*7}"
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def sign_in(page: Any, service: Service) -> None:
    """Sign in as the first administrator."""
    page.goto(f"{service.app.console_origin}/console/keys")
    page.get_by_label("Token of an Admin key").fill(service.admin_token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/console/keys")


def focused(page: Any) -> str:
    """Return what the focus is on, by its name and kind."""
    return str(
        page.evaluate(
            "(() => { const e = document.activeElement;"
            " return `${e.tagName} ${e.id || e.name || ''} ${e.value || ''} ${e.textContent}`; })()"
        )
    )


def tab_to(page: Any, wanted: str, key: str = "Tab") -> None:
    """Press a key until the focus is on what is wanted."""
    for _ in range(60):
        if re.search(wanted, focused(page)):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{wanted} is not reached; the focus is on {focused(page)}")


def barriers(page: Any) -> list[str]:
    """Return what axe finds on a page."""
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    page.evaluate(axe)
    found = page.evaluate(
        "tags => axe.run(document, {runOnly: tags}).then(r => r.violations.map("
        "v => `${v.id}: ${v.nodes.map(n => n.html).join(' | ')}`))",
        AXE_TAGS,
    )
    return [str(one) for one in found]
