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


# --- small words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("keys", "revoke", "x", "--yes"), "lost, compromised, superseded, no-longer-used"),
        (("keys", "create", "x", "--ttl", "1d"), "validator, developer, admin"),
        (("users", "create", "a@example.com"), "validator, developer, admin"),
        (("users", "set-role", "a@example.com"), "validator, developer, admin"),
    ],
)
def test_a_missing_choice_lists_names(arguments: tuple[str, ...], names: str, cli: Cli) -> None:
    """What may be chosen is said in the words that may be written."""
    answer = cli(*arguments)
    assert is_clean(answer), answer.err
    assert names in answer.err


ENCODINGS = {
    "UTF-8 with a mark": "utf-8-sig",
    "UTF-16 of PowerShell": "utf-16",
    "UTF-16, the other way round": "utf-16-be-mark",
}


def _written(path: Path, token: str, encoding: str) -> Path:
    mark, name = ("\ufeff", "utf-16-be") if encoding == "utf-16-be-mark" else ("", encoding)
    path.write_bytes((mark + token + "\r\n").encode(name))
    return path


@pytest.mark.parametrize("name", ENCODINGS)
def test_token_files_may_have_a_byte_order_mark(name: str, cli: Cli, tmp_path: Path) -> None:
    """As the credential and as the token that is validated."""
    _, token = cli.create_key("k")
    file = _written(tmp_path / "token", token, ENCODINGS[name])
    assert cli("token", "validate", "--token-file", str(file)).code == 0
    own = _written(tmp_path / "own", cli.service.admin_token, ENCODINGS[name])
    assert cli("whoami", "--credential-file", str(own)).code == 0


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"kbear1_\xe9", "kbear1_é".encode(), b"k\x00b\x00"]
)
def test_a_file_without_a_token_is_no_verdict(content: bytes, cli: Cli, tmp_path: Path) -> None:
    """What cannot be a token is an error of usage, and not NOT_FOUND."""
    file = tmp_path / "token"
    file.write_bytes(content)
    answer = cli("token", "validate", "--token-file", str(file))
    assert is_clean(answer), answer.err
    assert "holds no token" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("-o", "json", "keys", "list"),
        ("--output", "json", "keys", "list"),
        ("--output=json", "keys", "list"),
        ("keys", "-o", "json", "list"),
        ("--plaintext", "-o", "json", "keys", "--timeout", "9", "list", "--all"),
        ("-o", "text", "keys", "list", "-o", "json"),
    ],
)
def test_options_of_every_command_may_stand_before_it(arguments: tuple[str, ...], cli: Cli) -> None:
    """They count as behind it; what stands behind it wins."""
    assert "api_keys" in cli.done(*arguments).document


def test_an_option_of_one_command_stands_behind_it(cli: Cli) -> None:
    """The error says so, and `whoami`, which is in no group, takes the shared ones too."""
    answer = cli("--limit", "3", "keys", "list")
    assert is_clean(answer), answer.err
    assert "go after it" in answer.err
    assert cli.done("-o", "json", "whoami").document["is_operator"] is True


def test_more_than_one_is_said_in_english(cli: Cli) -> None:
    """A list of one item is `this one`."""
    cli.create_key("one")
    cli.create_key("two")
    assert "more than this one:" in cli.done("keys", "list", "--limit", "1").err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("keys", "show", "my key"), "`keybearer keys list --name 'my key'`"),
        (("keys", "revoke", "billing", "--reason", "lost", "--yes"), "list --name billing`"),
        (("users", "show", "dana"), "`keybearer users list --email dana`"),
        (("accounts", "show", "research"), "`keybearer accounts list --name research`"),
    ],
)
def test_a_name_instead_of_an_id_gives_a_hint(
    arguments: tuple[str, ...], hint: str, cli: Cli
) -> None:
    """The error says how to find the id."""
    answer = cli(*arguments)
    assert answer.code == 1
    assert hint in answer.err
    assert "is no id" not in cli("keys", "show", "a" * 16).err
