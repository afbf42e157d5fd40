"""The templates of the console: nothing in them can run, and every link is built by a function."""

import re
from pathlib import Path

import pytest

CONSOLE = Path(__file__).parents[2] / "service/keybearer_service/console"
TEMPLATES = sorted((CONSOLE / "templates").glob("*.html"))
FORBIDDEN = {
    "a text that is not escaped": r"\|\s*safe|Markup\(|autoescape",
    "a style of its own": r"\sstyle\s*=\s*[\"']|<style",
    "code of its own": r"\son[a-z]+\s*=\s*[\"']|<script(?! src=\"\{\{ asset\()|javascript:",
    "something from elsewhere": r"https?://(?!127\.0\.0\.1\.)",
}
LINKS = re.compile(r"\s(?:href|action|src|formaction|data-shown)=\"([^\"]*)\"")
BUILT = re.compile(
    r"#(\{\{ name \}\}|main)|data:,|\{\{ target \}\}"
    r"|\{\{ (\w+_link|asset)\((?:[^()]|\([^()]*\))*\) \}\}"
)


def problems_of(text: str) -> list[str]:
    """Return what is wrong with a template."""
    found = [
        f"{what}: {match[0].strip()}"
        for what, pattern in FORBIDDEN.items()
        for match in re.finditer(pattern, text)
    ]
    links = [link for link in LINKS.findall(text) if not BUILT.fullmatch(link)]
    return found + [f"a link of no function: {link}" for link in links]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda one: one.name)
def test_a_template_runs_nothing_and_builds_no_link(path: Path) -> None:
    """The policy of the pages would block it; here it is not even written."""
    assert problems_of(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "{{ name|safe }}",
        '<p style="color:red">',
        '<a onclick="x()">',
        "<script>x()</script>",
        '<script src="https://example.com/x.js"></script>',
        '<a href="{{ name }}">',
        '<a href="/console/{{ name }}">',
        '<form action="https://example.com">',
    ],
)
def test_what_is_wrong_is_noticed(text: str) -> None:
    """Each of the kinds."""
    assert problems_of(text) != []


def test_only_one_module_makes_html() -> None:
    """Views hand values to templates; none of them writes markup."""
    writing = [
        path.name
        for path in sorted(CONSOLE.glob("*.py"))
        if re.search(r"</?[a-z]+[ >]|HTMLResponse", path.read_text("utf-8"))
        and "`<time>`" not in path.read_text("utf-8")
    ]
    assert writing == ["pages.py"]


def test_views_do_not_know_the_store() -> None:
    """They call use cases; what they take from the store's contract is queries alone."""
    imported = {
        name.strip()
        for path in sorted(CONSOLE.glob("*.py"))
        for names in re.findall(
            r"from keybearer_service\.storage import (.+)", path.read_text("utf-8")
        )
        for name in names.split(",")
    }
    assert imported <= {"AccountQuery", "AuditQuery", "KeyQuery", "UserQuery"}


def test_the_script_is_short() -> None:
    """At most 200 lines, and nothing in it makes markup of text."""
    script = (CONSOLE / "static/console.js").read_text("utf-8")
    assert len(script.splitlines()) <= 200
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert not re.search(r"localStorage|sessionStorage|document\.cookie|fetch\(", script)
