"""What is written about settings and commands of the server is true of the code."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from keybearer_service.cli import app
from keybearer_service.config import (
    CLIENT_VARIABLES,
    CONFIG_VARIABLE,
    HEALTHCHECK_VARIABLES,
    PRUNE_VARIABLES,
    Settings,
    describe,
)

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEPLOYED = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()]
VARIABLES = {
    CONFIG_VARIABLE,
    *CLIENT_VARIABLES,
    *HEALTHCHECK_VARIABLES,
    *PRUNE_VARIABLES,
    *(describe(one).variable for one in Settings.model_fields),
}
TEST_VARIABLES = {
    "KEYBEARER_TEST_SEED",
    "KEYBEARER_MEASUREMENTS",
    "KEYBEARER_MUTANT",
    "KEYBEARER_SOAK_S",
}
"""Read by the tests alone."""


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        yield from _commands(command, f"{path} {name}".strip())
    if not hasattr(group, "commands"):
        yield path, group


COMMANDS = dict(_commands(typer.main.get_command(app)))


def test_the_page_is_what_the_code_says() -> None:
    """Every setting and every option, with its variable, default and meaning."""
    written = subprocess.run(
        [sys.executable, ROOT / "tools/settings_page.py"], capture_output=True, check=True
    ).stdout.decode("utf-8")
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    assert page == written, "run: python tools/settings_page.py > docs/settings.md"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_the_help_of_serve_shows_the_variable_and_the_default(name: str) -> None:
    """For each setting, as the one who types `--help` sees it."""
    about = describe(name)
    shown = " ".join(CliRunner().invoke(app, ["serve", "--help"]).output.split())
    assert f"env var: {about.variable}" in shown
    if about.default:
        assert f"env var: {about.variable}; default: {about.default}]" in shown


def test_every_setting_is_in_the_example_file_and_no_other_name() -> None:
    """Commented out or not, each line that sets something sets one that there is."""
    text = (ROOT / "deploy/keybearer.toml").read_text("utf-8")
    names = re.findall(r"^(?:# )?([a-z_]+) = ", text, re.MULTILINE)
    assert set(names) == set(Settings.model_fields)
    assert set(tomllib.loads(text)) <= set(Settings.model_fields)


@pytest.mark.parametrize("path", [*PAGES, *DEPLOYED], ids=lambda one: str(one.relative_to(ROOT)))
def test_every_variable_that_is_written_about_is_read(path: Path) -> None:
    """No page and no deployment file names one that nothing reads."""
    named = set(re.findall(r"\bKEYBEARER_[A-Z][A-Z_]*", path.read_text("utf-8")))
    assert named - VARIABLES - TEST_VARIABLES == set()


@pytest.mark.parametrize("path", [*PAGES, *DEPLOYED], ids=lambda one: str(one.relative_to(ROOT)))
def test_every_command_line_that_is_written_about_is_one(path: Path) -> None:
    """Each `keybearer-server COMMAND --options` names a command there is, with options it has."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"keybearer-server ((?:[a-z-]+ )*[a-z-]+\b[^`\n]*)", text):
        words = line.split()
        name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), None)
        if name is None:
            continue
        taken = {
            option for one in COMMANDS[name].params for option in (*one.opts, *one.secondary_opts)
        }
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) - {"--help"} <= taken, line
