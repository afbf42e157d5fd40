"""Text that is no UTF-8, and terminals that are none: no command ends in a traceback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cliharness import Answer, Cli, command_line

NOT_UTF8 = b"caf\xe9".decode(errors="surrogateescape")
ASCII_ONLY = {
    "LANG": "",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}
"""A process that takes and shows ASCII alone."""


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command for a service that the tests here share."""
    with command_line(tmp_path_factory.mktemp("service")) as command:
        yield command


COMMANDS: dict[str, tuple[str, ...]] = {
    "a name": ("keys", "create", NOT_UTF8, "--role", "developer", "--ttl", "1d"),
    "a description": ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--description"),
    "a scope": ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--scope"),
    "a label": ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--label"),
    "an owner": ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--owner"),
    "a new file": ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--token-file"),
    "a duration": ("keys", "create", "k", "--role", "developer", "--ttl"),
    "a role": ("keys", "create", "k", "--ttl", "1d", "--role"),
    "a filter": ("keys", "list", "--name"),
    "an order": ("keys", "list", "--sort"),
    "a time": ("keys", "list", "--unused-since"),
    "a key": (
        "keys",
        "show",
    ),
    "a key to update": ("keys", "update", "x", "--name"),
    "an etag": ("keys", "update", "x", "--name", "y", "--etag"),
    "a key to revoke": ("keys", "revoke", "--reason", "lost", "--yes"),
    "a note": ("keys", "revoke", "x", "--reason", "lost", "--yes", "--note"),
    "a reason": ("keys", "revoke", "x", "--yes", "--reason"),
    "a user": ("users", "create", "--role", "developer"),
    "a user to show": ("users", "show"),
    "an address": ("users", "list", "--email"),
    "a user to delete": ("users", "delete", "--yes"),
    "an account": ("accounts", "create", "--admin-email", "a@example.com"),
    "an account to disable": ("accounts", "disable", "--yes"),
    "a file": ("token", "validate", "--token-file"),
    "a required scope": ("token", "validate", "--required-scope"),
    "an actor": ("audit", "list", "--actor"),
    "an action": ("audit", "list", "--action"),
    "an address of a service": ("whoami", "--address"),
    "a name of a server": ("whoami", "--server-name"),
    "a credential file": ("whoami", "--credential-file"),
    "an output": ("whoami", "--output"),
    "a shell": ("completion",),
    "a command": (),
}


def is_clean(answer: Answer) -> bool:
    """Return whether an error is one line, and an error of usage."""
    return answer.code == 2 and answer.err.count("\n") == 1 and "Traceback" not in answer.err


@pytest.mark.parametrize("name", COMMANDS)
def test_an_argument_that_is_not_utf8_is_named(name: str, cli: Cli) -> None:
    """The error is one line that shows the argument, also for programs."""
    arguments = (*COMMANDS[name], *(() if NOT_UTF8 in COMMANDS[name] else (NOT_UTF8,)))
    answer = cli(*arguments, stdin="token")
    assert is_clean(answer), answer.err
    assert r"caf\xe9" in answer.err
    if "--output" not in arguments:
        answer = cli(*arguments, "-o", "json", stdin="token")
        assert is_clean(answer), answer.err
        assert answer.error["code"] == "USAGE"


@pytest.mark.parametrize(
    "variable", ["KEYBEARER_ADDRESS", "KEYBEARER_TOKEN", "KEYBEARER_TOKEN_FILE", "KEYBEARER_OUTPUT"]
)
def test_a_variable_that_is_not_utf8_is_an_error_of_one_line(variable: str, cli: Cli) -> None:
    """The same for the environment."""
    answer = cli("whoami", environment={variable: NOT_UTF8})
    assert answer.code in (2, 3)
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err


def test_an_ascii_terminal_takes_and_shows_every_name(cli: Cli) -> None:
    """In the C locale, names arrive and are shown as they were written."""
    create = ("keys", "create", "café €", "--role", "developer", "--ttl", "1d")
    created = cli.process(*create, environment=ASCII_ONLY)
    assert created.code == 0, created.err
    assert "café €" in created.err
    (key,) = cli.json("keys", "list", "--name", "café")["api_keys"]
    assert key["name"] == "café €"
    listed = cli.process("keys", "list", "--name", "café", environment=ASCII_ONLY)
    assert listed.code == 0, listed.err
    assert "café €" in listed.out
    shown = cli.process("keys", "show", key["id"], "-o", "json", environment=ASCII_ONLY)
    assert shown.document["api_key"]["name"] == "café €"
    asked = cli.process("keys", "show", "café", environment=ASCII_ONLY)
    assert asked.code == 1
    assert asked.err.count("\n") == 1


def test_an_ascii_terminal_writes_to_a_file_of_any_name(cli: Cli) -> None:
    """A file whose name is UTF-8 is found in the C locale."""
    create = ("keys", "create", "filed", "--role", "developer", "--ttl", "1d")
    done = cli.process(*create, "--token-file", "café.token", environment=ASCII_ONLY)
    assert done.code == 0, done.err
    token = Path(cli.directory, "café.token").read_text()
    assert cli.outcome(token) == "VALID"
