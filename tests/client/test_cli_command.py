"""What all commands share: settings, credentials, TLS, errors, exit codes, help, completion."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cliharness import COMMAND, Cli, MuteServer, command_line
from keybearer.cli import connection
from keybearer.cli.refusals import Refusal


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command for a service; the tests here change nothing that others see."""
    with command_line(tmp_path_factory.mktemp("service")) as command:
        yield command


# --- where, and how -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "plaintext", "expected"),
    [
        ("127.0.0.1:50051", False, "127.0.0.1:50051 (plaintext)"),
        ("[::1]:50051", False, "[::1]:50051 (plaintext)"),
        ("localhost:50051", False, "localhost:50051 (plaintext)"),
        ("unix:/run/keybearer.sock", False, "unix:/run/keybearer.sock (plaintext)"),
        ("https://localhost:50051", False, "localhost:50051 (TLS)"),
        ("keys.example.com:443", False, "keys.example.com:443 (TLS)"),
        ("https://keys.example.com", False, "keys.example.com:443 (TLS)"),
        ("https://keys.example.com/", False, "keys.example.com:443 (TLS)"),
        ("keys.example.com:50051", True, "keys.example.com:50051 (plaintext)"),
        ("http://keys.example.com:50051", True, "keys.example.com:50051 (plaintext)"),
        ("http://127.0.0.1:50051", False, "127.0.0.1:50051 (plaintext)"),
    ],
)
def test_tls_everywhere_but_on_loopback(address: str, plaintext: bool, expected: str) -> None:  # noqa: FBT001 - parametrised
    """TLS is the default except on loopback."""
    assert str(_settle(address, plaintext=plaintext)) == expected


@pytest.mark.parametrize(
    ("address", "plaintext", "hint"),
    [
        ("http://keys.example.com:50051", False, "would send tokens in plain text"),
        ("https://keys.example.com", True, "--plaintext contradicts https://"),
        ("keys.example.com", False, "is not host:port"),
        ("keys.example.com:port", False, "is not host:port"),
        ("keys.example.com:99999", False, "is not host:port"),
        ("https://keys.example.com/path", False, "is not host:port"),
        ("ftp://keys.example.com", False, "is not host:port"),
        ("someone@keys.example.com:443", False, "is not host:port"),
        ("", False, "is not host:port"),
    ],
)
def test_addresses_that_are_refused(address: str, plaintext: bool, hint: str) -> None:  # noqa: FBT001 - parametrised
    """A wrong address is rejected with a hint."""
    with pytest.raises(Refusal, match=re.escape(hint)):
        _settle(address, plaintext=plaintext)


def _settle(address: str, *, plaintext: bool) -> connection.Connection:
    return connection.settle(
        address, plaintext=plaintext, ca=None, client_cert=None, client_key=None, server_name=None
    )


def test_tls_settings_that_cannot_be_used_are_refused(cli: Cli) -> None:
    """A missing file, a file that holds no certificate, half a client certificate."""
    (cli.directory / "no.pem").write_text("no")
    assert "No such file" in cli("whoami", "--ca", "absent.pem").err
    assert "no.pem holds no PEM certificate" in cli("whoami", "--ca", "no.pem").err
    assert "give both or neither" in cli("whoami", "--client-cert", "no.pem").err
    assert cli("whoami", "--ca", "no.pem", "--plaintext").code == 2


# --- the caller's credential ----------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
def test_the_credential_comes_from_the_nearest_source(cli: Cli, number: int) -> None:
    """The option overrides the token in the environment, and that overrides the files."""
    names = ["option", "variable", "file-variable", "config"]
    tokens = {name: cli.create_key(name)[1] for name in names}
    for name in names:
        (cli.directory / name).write_text(tokens[name])
    (cli.directory / "c.toml").write_text(f"credential_file = '{cli.directory / 'config'}'\n")
    environment = {
        "KEYBEARER_TOKEN": tokens["variable"] if number < 2 else "",
        "KEYBEARER_TOKEN_FILE": str(cli.directory / "file-variable") if number < 3 else "",
        "KEYBEARER_CLIENT_CONFIG": "c.toml",
    }
    option = ("--credential-file", "option") if number < 1 else ()
    answer = cli("whoami", "-o", "json", *option, environment=environment)
    assert answer.document["key_name"] == names[number]


def test_no_credential_without_a_terminal_says_how_to_give_one(cli: Cli) -> None:
    """Without a credential the exit code is 3, with a hint."""
    answer = cli("whoami", environment={"KEYBEARER_TOKEN_FILE": ""})
    assert (answer.code, "set KEYBEARER_TOKEN" in answer.err) == (3, True)


def test_a_credential_that_is_not_accepted_says_where_it_came_from(cli: Cli) -> None:
    """The error names the source of the credential, not the credential; the exit code is 3."""
    answer = cli("whoami", environment={"KEYBEARER_TOKEN": "wrong"})
    assert answer.code == 3
    assert "CREDENTIALS_INVALID" in answer.err
    assert "it came from KEYBEARER_TOKEN" in answer.err
    assert "wrong" not in answer.err


def test_a_credential_that_no_header_can_carry_is_refused_here(cli: Cli) -> None:
    """A malformed credential is rejected without a call; the exit code is 3."""
    answer = cli("whoami", environment={"KEYBEARER_TOKEN": "a b"})
    assert (answer.code, "characters that no token has" in answer.err) == (3, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "validate", "TOKEN"),
        ("token", "revoke", "--token-file=TOKEN"),
        ("keys", "create", "k", "--description", "was TOKEN", "--role", "developer"),
        ("whoami", "--token", "TOKEN"),
        ("whoami", "--credential-file", "TOKEN"),
    ],
)
@pytest.mark.parametrize("cut", [0, 30])
def test_a_token_as_an_argument_is_refused_and_not_repeated(
    cli: Cli, arguments: tuple[str, ...], cut: int
) -> None:
    """A token in an argument, also a part of one, is rejected without repeating it."""
    token = cli.service.admin_token
    shortened = token[: len(token) - cut]
    answer = cli(*(argument.replace("TOKEN", shortened) for argument in arguments))
    assert answer.code == 2
    assert "an argument looks like a token" in answer.err
    assert token[25:35] not in answer.out + answer.err


def test_an_argument_of_token_validate_is_not_repeated(cli: Cli) -> None:
    """An argument of `token validate` is not repeated: it may be a token."""
    answer = cli("token", "validate", "s3cret")
    assert (answer.code, "s3cret" in answer.err) == (2, False)
    assert "on standard input" in answer.err


# --- the file of settings -------------------------------------------------------------------------


def test_settings_come_from_flags_over_environment_over_file(cli: Cli) -> None:
    """Options override the environment, and that overrides the file."""
    (cli.directory / "s.toml").write_text("output = 'json'\ntimeout = 5\n")
    config = ("--config", "s.toml")
    assert cli("whoami", *config).out.startswith("{")
    assert not cli("whoami", *config, environment={"KEYBEARER_OUTPUT": "text"}).out.startswith("{")
    flag = cli("whoami", *config, "-o", "json", environment={"KEYBEARER_OUTPUT": "text"})
    assert flag.out.startswith("{")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("adress = 'x'", "adress is none of address"),
        ("plaintext = 'yes'", "plaintext has a value of the wrong kind"),
        ("timeout = true", "timeout has a value of the wrong kind"),
        ("output = 'xml'", "'xml' is neither text nor json"),
        ("=", "--config"),
    ],
)
def test_a_file_of_settings_that_makes_no_sense_is_refused(
    cli: Cli, content: str, hint: str
) -> None:
    """An invalid file of settings is rejected, and the error names the setting."""
    (cli.directory / "bad.toml").write_text(content)
    answer = cli("whoami", "--config", "bad.toml")
    assert (answer.code, hint in answer.err) == (2, True)


# --- errors and exit codes ------------------------------------------------------------------------


def test_an_error_of_the_service_is_one_line_with_reason_and_field(cli: Cli) -> None:
    """An error of the service is one line with its reason and fields; the exit code is 2."""
    answer = cli.process("keys", "list", "--sort", "colour")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("keybearer: FIELD_INVALID: order_by: ")


def test_an_error_is_an_object_for_programs(cli: Cli) -> None:
    """With code, reason, message, fields, metadata and exit code, on standard error."""
    error = cli("keys", "show", "x", "--output", "json").error
    assert (error["code"], error["reason"], error["exit_code"]) == (
        "NOT_FOUND",
        "RESOURCE_NOT_FOUND",
        1,
    )
    assert error["metadata"]["id"] == "x"
    field = cli("keys", "list", "--sort", "colour", "--output=json").error["field_violations"][0]
    assert field["field"] == "order_by"


def test_a_usage_error_is_an_object_for_programs_too(cli: Cli) -> None:
    """A usage error is an object too, also when the command line cannot be parsed."""
    answer = cli("keys", "list", "--nonsense", "-o", "json")
    assert (answer.code, answer.error["code"], answer.error["exit_code"]) == (2, "USAGE", 2)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("keys", "lisst"), "No such command 'lisst'"),
        (("keys", "create"), "Missing argument 'NAME'"),
        (("keys", "create", "k", "--ttl", "1d"), "Missing option '--role'"),
        (("keys", "list", "--state", "dead"), "is not one of active, disabled, expired, revoked"),
        (("keys", "list", "--limit", "0"), "--limit"),
        (("keys", "revoke", "x", "--reason", "owner-deleted"), "is not one of lost"),
        (("--limit", "3", "keys", "list"), "options of one command alone go after it"),
    ],
)
def test_a_usage_error_is_one_line_with_the_way_to_help(
    cli: Cli, arguments: tuple[str, ...], hint: str
) -> None:
    """A usage error is one line that names `--help`; the exit code is 2."""
    answer = cli(*arguments)
    assert answer.code == 2
    text = json.loads(answer.err)["error"]["message"] if answer.err[0] == "{" else answer.err
    assert hint in text
    assert text.rstrip().endswith("--help`")
    assert answer.err.count("\n") == 1


def test_a_role_that_is_too_low_exits_with_3(cli: Cli) -> None:
    """An insufficient role exits with 3."""
    _, token = cli.create_key("k")
    answer = cli("keys", "list", "-o", "json", environment={"KEYBEARER_TOKEN": token})
    assert (answer.code, answer.error["reason"]) == (3, "ROLE_INSUFFICIENT")


def test_a_service_that_cannot_be_reached_exits_with_4(cli: Cli, tmp_path: Path) -> None:
    """An unreachable service exits with 4, and the line names the address and the transport."""
    answer = cli("whoami", "--address", f"unix:{tmp_path}/none", "--timeout", "0.3")
    assert answer.code == 4
    assert f"unix:{tmp_path}/none (plaintext)" in answer.err
    assert answer.err.count("\n") == 1


def test_a_change_whose_answer_is_lost_says_that_it_may_have_happened(
    cli: Cli, tmp_path: Path
) -> None:
    """A lost response of a revoke says that the change may have happened."""
    with MuteServer(tmp_path) as mute:
        silent = ("--address", mute.address, "--timeout", "0.3")
        answer = cli("users", "create", "a@example.com", "--role", "admin", *silent)
    assert answer.code == 4
    assert "the change may have happened all the same: check before you repeat it" in answer.err


def test_a_create_whose_answer_is_lost_says_how_to_go_on(cli: Cli, tmp_path: Path) -> None:
    """A lost response of a create names the request id and the next attempt."""
    with MuteServer(tmp_path) as mute:
        create = ("keys", "create", "k", "--role", "developer", "--ttl", "1d")
        answer = cli(*create, "--address", mute.address, "--timeout", "0.3", "-o", "json")
    error = answer.error
    assert (answer.code, answer.out) == (4, "")
    attempt = error["attempt"] + 1
    assert f"--request-id {error['request_id']} --attempt {attempt}" in error["message"]


@pytest.mark.parametrize(
    ("redirection", "code", "hint"),
    [(">&-", 2, "standard output is closed"), ("> /dev/full", 1, "No space left on device")],
)
def test_an_answer_that_cannot_be_written_is_one_line(
    cli: Cli, redirection: str, code: int, hint: str
) -> None:
    """A result that cannot be written is one line without a traceback."""
    done = subprocess.run(
        ["bash", "-c", f"keybearer keys list {redirection}"],
        env=cli.environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert hint in done.stderr


# --- help, version, completion --------------------------------------------------------------------


def test_the_version_is_told(cli: Cli) -> None:
    """`--version` prints one line."""
    assert re.fullmatch(r"keybearer \d+\.\d+\S*\n", cli.process("--version").out)


@pytest.mark.parametrize("group", [(), ("keys",), ("token",)])
def test_without_a_command_there_is_help(cli: Cli, group: tuple[str, ...]) -> None:
    """Without a command, the help is shown with the exit code of a usage error."""
    answer = cli(*group)
    assert (answer.code, "Usage:" in answer.out, answer.err) == (2, True, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(cli: Cli, shell: str) -> None:
    """`completion` prints a script for each shell."""
    assert "_KEYBEARER_COMPLETE" in cli.done("completion", shell).out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("keybearer ke", {"keys"}),
        ("keybearer keys r", {"rotate", "revoke"}),
        ("keybearer keys list --state ", {"active", "disabled", "expired", "revoked"}),
        ("keybearer keys create k --role v", {"validator"}),
        (
            "keybearer keys revoke k --reason ",
            {"lost", "compromised", "superseded", "no-longer-used"},
        ),
        ("keybearer users set-role u d", {"developer"}),
        ("keybearer keys list --output ", {"text", "json"}),
        ("keybearer audit list --action api-key-ro", {"api-key-rotated"}),
    ],
)
def test_bash_completes_commands_and_the_values_of_enums(
    cli: Cli, typed: str, expected: set[str]
) -> None:
    """A real bash runs the script that `completion bash` prints."""
    script = r"""
        source <(keybearer completion bash)
        read -ra COMP_WORDS <<< "$1"
        [[ $1 == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _keybearer_completion keybearer
        printf '%s\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", typed],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == expected


def test_zsh_and_fish_are_given_the_same_values(cli: Cli) -> None:
    """The scripts for zsh and fish get the same values from the command."""
    arguments = "keybearer keys list --state re"
    for shell in ("zsh", "fish"):
        asked = {
            "_KEYBEARER_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": arguments,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }
        assert "revoked" in cli(environment=asked).out


def test_the_library_alone_says_what_the_command_needs(tmp_path: Path) -> None:
    """Without typer the command prints one line instead of a traceback."""
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(name='typer')")
    done = subprocess.run(
        [COMMAND, "--version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "pip install 'keybearer[cli]'" in done.stderr
