"""Every documented command is there and explains itself."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from keybearer_service.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTED = {
    "quickstart": {"--data-dir", "--listen", "--http-listen", "--console-listen"},
    "init": {"--data-dir", "--account", "--admin-email", "--prefix", "--token-file", "--output"},
    "serve": {
        "--data-dir",
        "--listen",
        "--http-listen",
        "--metrics-listen",
        "--console-listen",
        "--console-url",
        "--oidc-issuer",
        "--oidc-client-id",
        "--oidc-client-secret-file",
        "--oidc-bind",
        "--oidc-bind-account",
        "--console-token-sign-in",
        "--http-open",
        "--http-account",
        "--workers",
        "--max-keys-per-account",
        "--max-users-per-account",
        "--tls-cert",
        "--tls-key",
        "--tls-client-ca",
        "--insecure",
    },
    "admin-token": {"--data-dir", "--email", "--account", "--ttl", "--token-file"},
    "backup": {"--data-dir", "--output"},
    "restore": {"--data-dir", "--database", "--peppers", "--output"},
    "move": {"--data-dir", "--to", "--abandon", "--output"},
    "check": {"--data-dir", "--database", "--expect", "--no-keys", "--output"},
    "migrate": {"--database", "--output"},
    "audit verify": {"--data-dir", "--expect", "--output"},
    "audit export": {"--data-dir"},
    "audit prune": {"--data-dir", "--before", "--older-than", "--export", "--output"},
    "keys prune": {
        *("--data-dir", "--database", "--revoked-before", "--older-than", "--export", "--output")
    },
    "pepper add": {"--data-dir", "--out", "--output"},
    "pepper activate": {"--data-dir", "--database", "--output"},
    "pepper list": {"--data-dir", "--output"},
    "pepper retire": {"--data-dir", "--output"},
    "users erase": {"--data-dir", "--output"},
    "healthcheck": {"--data-dir", "--listen"},
}
"""Section 9 of the wire contract."""


def _commands(group: Any, path: str = "") -> dict[str, Any]:
    inner = getattr(group, "commands", None)
    if inner is None:
        return {path: group}
    found: dict[str, Any] = {}
    for name, command in inner.items():
        found |= _commands(command, f"{path} {name}".strip())
    return found


COMMANDS = _commands(typer.main.get_command(app))


def test_exactly_the_documented_commands_exist() -> None:
    """Nothing is promised that is not there, and nothing is there unsaid."""
    assert sorted(COMMANDS) == sorted(DOCUMENTED)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_a_command_has_its_documented_options(name: str) -> None:
    """Scripts may rely on the names."""
    options = {option for one in COMMANDS[name].params for option in one.opts}
    assert DOCUMENTED[name] <= options


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_a_command_explains_itself(name: str) -> None:
    """`--help` answers with success and the command's first sentence."""
    answer = CliRunner().invoke(app, [*name.split(), "--help"])
    assert answer.exit_code == 0
    first_words = " ".join((COMMANDS[name].help or "").split()[:2])
    assert first_words
    assert first_words in " ".join(answer.output.split())


def test_without_the_driver_a_database_url_says_how_to_get_it() -> None:
    """The driver of PostgreSQL is an extra of its own."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from keybearer_service.__main__ import main; main()"
    )
    words = ("migrate", "--database", "postgresql://keybearer@/keybearer")
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'keybearer[server,postgres]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_installed_program_runs() -> None:
    """The module behind the entry point answers in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "keybearer_service", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"keybearer-server \S+ \(SQLite [0-9.]+\)", done.stdout)


def test_no_command_takes_a_token_as_an_argument() -> None:
    """Arguments are seen by every user of a machine; tokens come from files or standard input."""
    taken = [
        f"{name} {option}"
        for name, command in COMMANDS.items()
        for one in command.params
        for option in one.opts
        if option in {"--token", "--secret", "--password"}
    ]
    assert taken == []


def test_every_server_command_in_the_readme_exists() -> None:
    """What the README says to run is there."""
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README yet")
    said = re.findall(r"keybearer-server ((?:audit |pepper )?[a-z][a-z-]+)", readme.read_text())
    groups = {"audit", "pepper"}
    assert {one for one in said if one not in groups} <= set(COMMANDS)


@pytest.mark.parametrize("missing", ["structlog", "typer", "sqlite_utils"])
def test_without_the_extra_the_command_says_how_to_get_it(missing: str) -> None:
    """A plain install is the client; its `keybearer-server` is one line and not a traceback."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from keybearer_service.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "keybearer-server: the server needs more than the client: pip install 'keybearer[server]'\n"
    )
