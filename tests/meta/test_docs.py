"""Documents name what is there: files, links, targets of make."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from keybearer_service.telemetry.metrics import PrometheusMetrics

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FOR_MAINTAINERS = [
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs/architecture.md",
    *sorted((ROOT / "docs/decisions").glob("*.md")),
]
ROOTS = (ROOT, ROOT / "service/keybearer_service", ROOT / "client/keybearer", ROOT / "tests")
"""What paths are relative to, on the pages for maintainers."""

_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w-]+\.\w+)?|[\w-]+\.(?:py|toml|md|proto))`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    """Return how a page is called in the names of tests."""
    return str(page.relative_to(ROOT))


def missing_paths(text: str) -> list[str]:
    """Return the files and folders in code marks that are nowhere."""
    return [
        path
        for path in _PATH.findall(_FENCED.sub("", text))
        if not any((root / path).exists() for root in ROOTS)
    ]


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield the links to files or headings of ours that lead nowhere."""
    for link in _LINK.findall(_FENCED.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            yield link


@pytest.mark.parametrize("page", FOR_MAINTAINERS, ids=name_of)
def test_every_file_that_a_maintainer_is_sent_to_exists(page: Path) -> None:
    """Files move; the pages that name them move with them."""
    assert missing_paths(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of the repository, and to a heading of it."""
    assert list(broken_links(page, page.read_text("utf-8"))) == []


def test_what_is_missing_is_noticed() -> None:
    """A file, a folder, a link and a heading that are not there."""
    assert missing_paths("`rpc/pipeline.py` `rpc/gone.py` `gone/` `tests/rpc`") == [
        "rpc/gone.py",
        "gone/",
    ]
    text = "[a](README.md) [b](GONE.md) [c](README.md#words) [d](README.md#gone)"
    assert list(broken_links(ROOT / "page.md", text)) == ["GONE.md", "README.md#gone"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_target_of_make_exists(page: Path) -> None:
    """What a page says to run is there."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text("utf-8")
    code = [*_FENCED.findall(text), *re.findall(r"`([^`]+)`", _FENCED.sub("", text))]
    said = re.findall(r"^\s*make ([a-z][a-z-]*)", "\n".join(code), re.MULTILINE)
    assert set(said) <= targets


def test_every_metric_is_listed() -> None:
    """The table of the gateways' page has each metric that Prometheus is told, and no other."""
    rendered, _ = PrometheusMetrics().render()
    told = set(re.findall(r"^# TYPE (\w+)", rendered.decode(), re.MULTILINE))
    table = (ROOT / "docs/gateways.md").read_text("utf-8").partition("| metric | |")[2]
    listed = set(re.findall(r"`(keybearer_\w+)", table.partition("\n\n")[0]))
    assert listed == told


def test_every_decision_is_listed() -> None:
    """The list has each record with its own title, in order."""
    folder = ROOT / "docs/decisions"
    records = {
        path.name: _HEADING.findall(path.read_text("utf-8"))[0]
        for path in sorted(folder.glob("0*.md"))
    }
    listed = re.findall(
        r"^\| \[(\d+)\]\((\S+)\) \| (.*) \|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    assert [(path, f"{number} {title}") for number, path, title in listed] == list(records.items())
