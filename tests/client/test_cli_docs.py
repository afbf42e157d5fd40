"""docs/cli.md describes exactly the command, and its examples run."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cliharness import PATIENCE_S, Cli, command_line
from keybearer.cli.app import app
from keybearer.cli.refusals import ExitCode

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
TEXT = PAGE.read_text(encoding="utf-8")

OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def sections() -> dict[str, str]:
    """Return the page's sections of the third level, by title."""
    parts = re.split(r"^#{2,3} (.*)\n", TEXT, flags=re.MULTILINE)
    return {title.strip("`"): body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def options_of(section: str) -> set[str]:
    """The options in the first column of a section's tables."""
    rows = re.findall(r"^\| (`-.*?`) \|", section, re.MULTILINE)
    return {option for row in rows for option in OPTION.findall(row)}


def commands() -> dict[str, Any]:
    """Every command of the program, by the words that call it."""

    def walk(command: Any, words: str) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield words, command
            return
        for name, inner in command.commands.items():
            yield from walk(inner, f"{words} {name}")

    return dict(walk(typer.main.get_command(app), "keybearer"))


def parameters() -> list[Any]:
    """Every parameter of every command."""
    return [one for command in commands().values() for one in command.params]


SHARED = options_of(sections()["Options of every command"])
COMMANDS = commands()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_page_has_a_section_for_every_command_and_no_other() -> None:
    """Every command has a section, and every section a command."""
    titles = {title for title in sections() if title.startswith("keybearer ")}
    assert titles == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented_and_every_documented_option_exists(name: str) -> None:
    """The tables of a section hold exactly the options of its command."""
    taken = {option for one in COMMANDS[name].params for option in one.opts if option[0] == "-"}
    own = taken - SHARED if name != "keybearer completion" else taken - {"--help"}
    assert options_of(sections()[name]) == own
    if name != "keybearer completion":
        assert taken | {"--help"} >= SHARED


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_an_example(name: str) -> None:
    """On the page, and in its own help text."""
    assert any(line.startswith(name) for line in sections()[name].splitlines())
    assert name in COMMANDS[name].epilog


def test_the_programs_own_options_are_documented() -> None:
    """The options of the program itself are documented."""
    for one in typer.main.get_command(app).params:
        assert f"keybearer\n{one.opts[0]}" in TEXT or f"keybearer {one.opts[0]}" in TEXT


def test_every_variable_is_documented_and_every_documented_one_exists() -> None:
    """Every environment variable is documented, and every documented one exists."""
    read = {one.envvar for one in parameters() if one.envvar}
    read |= {"KEYBEARER_TOKEN", "KEYBEARER_TOKEN_FILE"}
    assert set(re.findall(r"\bKEYBEARER_[A-Z_]+", TEXT)) == read


def test_the_exit_codes_are_those_of_the_program() -> None:
    """The exit codes in the page are those of the program."""
    section = sections()["Errors and exit codes"]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == set(
        ExitCode
    )


def test_the_values_of_enums_in_the_page_are_choices() -> None:
    """The values that a section names are the choices of the command."""
    for name, option in (
        ("keybearer keys create", "--role"),
        ("keybearer keys list", "--state"),
        ("keybearer keys revoke", "--reason"),
        ("keybearer users create", "--type"),
    ):
        (row,) = re.findall(rf"^\| `{option}` \| (.*)$", sections()[name], re.MULTILINE)
        (parameter,) = [one for one in COMMANDS[name].params if option in one.opts]
        choices = parameter.help.partition("One of: ")[2].split(", ")
        assert set(re.findall(r"`([a-z-]+)`", row.partition(";")[0])) == set(choices)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command for a service that has what the page assumes."""
    with command_line(tmp_path_factory.mktemp("service")) as command:
        key_id, _ = command.create_key("first")
        other_id, _ = command.create_key("second")
        made = command.json("accounts", "create", "Other", "--admin-email", "lee@example.com")
        command.environment |= {
            "KEY": key_id,
            "OTHER_KEY": other_id,
            "ACCOUNT": made["account"]["id"],
        }
        yield command


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_the_examples_of_the_page_run(cli: Cli, block: str) -> None:
    """Every example line succeeds, in the order of the page, in one directory."""
    for line in block.splitlines():
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env=cli.environment,
            cwd=cli.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_the_error_object_of_the_page_is_what_comes(cli: Cli) -> None:
    """The error object in the page is the real one."""
    (example,) = re.findall(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert cli("keys", "show", "x", "-o", "json").error == json.loads(example)["error"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_examples_in_the_help_texts_can_be_read(name: str) -> None:
    """Every option they name is one of the command's."""
    taken = {option for one in COMMANDS[name].params for option in one.opts}
    examples = [line for line in COMMANDS[name].epilog.splitlines() if line.startswith("keybearer")]
    assert examples
    for example in examples:
        assert set(OPTION.findall(re.sub(r"'.*?'|~\S+", "", example))) <= taken
