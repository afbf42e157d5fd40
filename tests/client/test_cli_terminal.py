"""The command on a terminal: what it shows, what it asks, and how it is interrupted."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cliharness import Cli, MuteServer, command_line

NOBODY = {"KEYBEARER_TOKEN_FILE": ""}


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command for a service that the tests here share."""
    with command_line(tmp_path_factory.mktemp("service")) as command:
        yield command


def test_a_new_token_is_shown_with_a_notice(cli: Cli) -> None:
    """The token stands on a line of its own, after the words that it is shown once."""
    create = ("keys", "create", "shown", "--role", "developer", "--ttl", "30d")
    with cli.on_terminal(*create) as terminal:
        assert terminal.end() == 0
    notice, _, rest = terminal.shown.partition("shown only now")
    assert "name     shown" in notice
    (token,) = re.findall(r"^kbear1_\w+$", rest, re.MULTILINE)
    assert cli.outcome(token) == "VALID"


def test_a_piped_token_is_not_shown(cli: Cli) -> None:
    """The terminal gets the facts, the pipe gets the token."""
    create = ("keys", "create", "piped", "--role", "developer", "--ttl", "30d")
    with cli.on_terminal(*create, pipe_stdout=True) as terminal:
        assert terminal.end() == 0
        token = terminal.piped()
    assert cli.outcome(token) == "VALID"
    assert "name     piped" in terminal.shown
    assert "kbear1_" not in terminal.shown


def _shown(cli: Cli, *arguments: str, columns: str) -> str:
    """Run on a terminal of a width, and return what it shows, without colours."""
    with cli.on_terminal(*arguments, environment={"COLUMNS": columns}) as terminal:
        assert terminal.end() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.shown)


@pytest.mark.parametrize("columns", ["76", "80", "120", "200"])
def test_a_table_fits_the_terminal_and_cuts_addresses_alone(cli: Cli, columns: str) -> None:
    """Every id, every date and all words of every name are whole, however wide the terminal."""
    key_id, _ = cli.create_key("nightly reporting of everything that was invoiced")
    shown = _shown(cli, "keys", "list", columns=columns)
    assert max(len(line) for line in shown.splitlines()) <= int(columns)
    assert key_id in shown
    for cut in re.findall(r"\S*…\S*", shown):
        assert "admin@" in cut
    for word in ("nightly", "invoiced", "created", "last used", "expires", "creator", "never"):
        assert word in shown
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", shown)
    assert "now" in shown or "ago" in shown


def test_a_key_takes_two_lines_at_80_columns(cli: Cli) -> None:
    """The creator is named where it is not the owner, and long addresses are cut."""
    owner = cli.admin.create_user("a.very.long.address@department.example.com")
    cli.create_key("compact own")
    cli.create_key("compact other", owner_id=owner.id)
    shown = _shown(cli, "keys", "list", "--name", "compact", columns="80")
    title, second, _, *lines = shown.splitlines()
    assert "owner" in title
    assert "(creator)" in second
    assert len(lines) == 4, shown
    assert "a.very.long" in lines[0]
    assert "(admin@" in lines[1]
    assert "(" not in lines[3]


def test_an_event_is_a_paragraph(cli: Cli) -> None:
    """At 80 columns an event has a few lines, and each names what it is about."""
    key_id, _ = cli.create_key("audited", description="for the nightly run of everything")
    shown = _shown(cli, "audit", "list", "--target", key_id, columns="80")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 8, shown
    assert lines[0].endswith("api-key-created")
    assert lines[1].startswith(f"  api-key {key_id}, by admin@example.com (key ")
    assert "audited" in shown


@pytest.mark.parametrize("listing", [("keys",), ("users",), ("accounts",), ("audit",)])
def test_wide_has_one_line_for_each_item(cli: Cli, listing: tuple[str, ...]) -> None:
    """The same as in a pipe, also on a narrow terminal."""
    arguments = (*listing, "list", "--limit", "3", "--wide")
    shown = _shown(cli, *arguments, columns="80").splitlines()
    piped = cli.done(*arguments).out.splitlines()
    assert [line.rstrip() for line in shown[: len(piped)]] == piped


def test_columns_are_chosen(cli: Cli) -> None:
    """In their order, on a terminal and in a pipe; an unknown name lists them."""
    key_id, _ = cli.create_key("chosen")
    choice = ("keys", "list", "--name", "chosen", "--columns", "id,last-used,creator")
    out = cli.done(*choice).out.split()
    assert out == ["ID", "LAST", "USED", "CREATOR", key_id, "never", "admin@example.com"]
    assert _shown(cli, *choice, columns="80").split()[:4] == ["id", "last", "used", "creator"]
    wrong = cli("keys", "list", "--columns", "id,secret")
    assert (wrong.code, "'secret' is not one of name, id, state" in wrong.err) == (2, True)
    assert cli(*choice, "-o", "json").code == 2


def test_an_empty_list_says_what_to_do(cli: Cli) -> None:
    """As without a terminal."""
    with cli.on_terminal("keys", "list", "--name", "nothing at all") as terminal:
        assert terminal.end() == 0
    assert "leave out a filter" in terminal.shown


def test_all_shows_its_progress_on_standard_error(cli: Cli) -> None:
    """While many keys come in they are counted, and the pipe holds the list alone."""
    for number in range(120):
        cli.create_key(f"many {number}")
    listing = ("keys", "list", "--all", "--name", "many")
    with cli.on_terminal(*listing, pipe_stdout=True) as terminal:
        assert terminal.end() == 0
        assert len(terminal.piped().splitlines()) == 121
    assert "fetching api keys" in terminal.shown


@pytest.mark.parametrize(
    ("typed", "code", "state"), [("y\n", 0, "REVOKED"), ("\n", 1, "VALID"), ("n\n", 1, "VALID")]
)
def test_revoke_names_what_will_break_and_asks(cli: Cli, typed: str, code: int, state: str) -> None:
    """Name, owner, last use and count come before the question; only a yes is a yes."""
    key_id, token = cli.create_key("doomed")
    assert cli.outcome(token) == "VALID"
    with cli.on_terminal("keys", "revoke", key_id, "--reason", "lost") as terminal:
        terminal.wait_for("It cannot be undone. [y/N]")
        assert re.search(r"doomed \(\w+\): owner admin@example\.com, last used 20", terminal.shown)
        assert "about 1 uses" in terminal.shown
        terminal.type(typed)
        assert terminal.end() == code
    assert cli.outcome(token) == state


def test_the_end_of_the_input_is_no_yes(cli: Cli) -> None:
    """Ctrl-D at the question changes nothing."""
    key_id, token = cli.create_key("spared")
    with cli.on_terminal("keys", "revoke", key_id, "--reason", "lost") as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("\x04")
        assert terminal.end() == 1
    assert "nothing was changed" in terminal.shown
    assert cli.outcome(token) == "VALID"


def test_ctrl_c_at_the_question_is_clean(cli: Cli) -> None:
    """Exit code 130, one line, no traceback, nothing changed."""
    key_id, token = cli.create_key("spared")
    with cli.on_terminal("keys", "revoke", key_id, "--reason", "lost") as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "\nkeybearer: interrupted\n" in terminal.shown
    assert "Traceback" not in terminal.shown
    assert cli.outcome(token) == "VALID"


def test_ctrl_c_at_a_prompt_is_clean(cli: Cli) -> None:
    """While a token is asked for."""
    with cli.on_terminal("whoami", environment=NOBODY) as terminal:
        terminal.wait_for("Your token: ")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


def test_rotate_without_an_overlap_says_whom_it_hits(cli: Cli) -> None:
    """It also says how to leave time to change."""
    key_id, token = cli.create_key("turning")
    with cli.on_terminal("keys", "rotate", key_id) as terminal:
        terminal.wait_for("[y/N]")
        assert "The old secret of this key stops working now:" in terminal.shown
        assert "--overlap 24h gives time to change" in terminal.shown
        terminal.type("y\n")
        assert terminal.end() == 0
    assert cli.outcome(token) == "NOT_FOUND"


def test_delete_lists_the_keys_that_will_die(cli: Cli) -> None:
    """Delete names the keys that will be revoked and those created for others."""
    dana = cli.admin.create_user("dana@example.com")
    _, hers = cli.create_key("danas own", role="ROLE_ADMIN", owner_id=dana.id)
    cli.service.as_token(hers).create_key(name="known", owner_id=cli.service.admin_user_id)
    with cli.on_terminal("users", "delete", "dana@example.com") as terminal:
        terminal.wait_for("Delete this user? It cannot be undone. [y/N]")
        assert "1 key of this user will be revoked:\n  danas own (" in terminal.shown
        assert "STAY (see --revoke-created):\n  known (" in terminal.shown
        assert cli.outcome(hers) == "VALID"
        terminal.type("yes\n")
        assert terminal.end() == 0
    assert cli.outcome(hers) == "REVOKED"


def test_disabling_an_account_says_how_many_keys_it_hits(cli: Cli) -> None:
    """The name and the number of active keys come before the question."""
    made = cli.json("accounts", "create", "Research", "--admin-email", "lee@example.com")
    with cli.on_terminal("accounts", "disable", made["account"]["id"]) as terminal:
        terminal.wait_for("[y/N]")
        assert "1 active key will be refused" in terminal.shown
        terminal.type("n\n")
        assert terminal.end() == 1


def test_the_credential_is_asked_for_and_not_echoed(cli: Cli) -> None:
    """The prompt for the credential has no echo."""
    with cli.on_terminal("whoami", environment=NOBODY) as terminal:
        terminal.wait_for("Your token: ")
        terminal.type(cli.service.admin_token + "\n")
        assert terminal.end() == 0
    assert "admin@example.com" in terminal.shown
    assert cli.service.admin_token not in terminal.shown


def test_the_token_to_validate_is_asked_for_and_not_echoed(cli: Cli) -> None:
    """The prompt for the token to validate has no echo."""
    _, token = cli.create_key("asked")
    with cli.on_terminal("token", "validate") as terminal:
        terminal.wait_for("Token: ")
        terminal.type(token + "\n")
        assert terminal.end() == 0
    assert "VALID" in terminal.shown
    assert token not in terminal.shown


def test_revoking_a_token_says_what_it_opens(cli: Cli) -> None:
    """Before the question, the holder of a token sees whose it is."""
    _, token = cli.create_key("found")
    (cli.directory / "found").write_text(token)
    revoke = ("token", "revoke", "--token-file", "found")
    with cli.on_terminal(*revoke, environment=NOBODY) as terminal:
        terminal.wait_for("[y/N]")
        assert "The token belongs to found (" in terminal.shown
        terminal.type("y\n")
        assert terminal.end() == 0
    assert cli.outcome(token) == "REVOKED"


def test_ctrl_c_while_a_change_is_under_way_says_that_it_may_have_happened(
    cli: Cli, tmp_path: Path
) -> None:
    """Ctrl-C during a change says that it may have happened, and removes the token file."""
    with MuteServer(tmp_path) as mute:
        create = ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--token-file", "t")
        with cli.on_terminal(*create, "--address", mute.address) as terminal:
            assert mute.called.wait(20)
            terminal.type("\x03")
            assert terminal.end() == 130
    assert "Traceback" not in terminal.shown
    assert "interrupted; the change may have happened all the same" in terminal.shown
    assert not (cli.directory / "t").exists()


def test_output_for_programs_has_no_colours(cli: Cli) -> None:
    """Output for programs has no colours, also on a terminal."""
    with cli.on_terminal("whoami", "--output", "json") as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.shown
