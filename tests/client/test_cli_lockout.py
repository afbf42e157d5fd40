"""The command says when a change takes the caller's own authority away, and asks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cliharness import Cli, command_line


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command for a fresh service, with its first administrator."""
    with command_line(tmp_path) as command:
        yield command


OWN_KEY = "is the key that you are using"
YOURSELF = "is you"
LAST_KEY = "no other live ADMIN key of your account would be left"


@dataclass(frozen=True)
class Change:
    """A change that saws off the branch."""

    arguments: Callable[[Cli], tuple[str, ...]]
    says: tuple[str, ...]
    asks_anyhow: bool = False


def _key(cli: Cli) -> str:
    return cli.service.admin_key_id


def _me(cli: Cli) -> str:
    return cli.service.admin_user_id


CHANGES = {
    "set-role": Change(
        lambda cli: ("users", "set-role", _me(cli), "developer"), (YOURSELF, LAST_KEY)
    ),
    "set-role by address": Change(
        lambda _: ("users", "set-role", "admin@example.com", "validator"), (YOURSELF, LAST_KEY)
    ),
    "update the user": Change(
        lambda cli: ("users", "update", _me(cli), "--role", "developer"), (YOURSELF, LAST_KEY)
    ),
    "delete oneself": Change(
        lambda cli: ("users", "delete", _me(cli)), (YOURSELF, LAST_KEY), asks_anyhow=True
    ),
    "revoke": Change(
        lambda cli: ("keys", "revoke", _key(cli), "--reason", "lost"),
        (OWN_KEY, LAST_KEY),
        asks_anyhow=True,
    ),
    "disable": Change(lambda cli: ("keys", "disable", _key(cli)), (OWN_KEY, LAST_KEY)),
    "lower the key": Change(
        lambda cli: ("keys", "update", _key(cli), "--role", "developer"), (OWN_KEY, LAST_KEY)
    ),
    "rotate": Change(
        lambda cli: ("keys", "rotate", _key(cli)),
        ("This is the key that you are using",),
        asks_anyhow=True,
    ),
}


def _second_admin(cli: Cli) -> str:
    """Make another administrator without a key, so that the service itself refuses nothing."""
    return cli.admin.create_user("second@example.com").id


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_ones_own_authority_is_said_to_be_that_and_asked(name: str, cli: Cli) -> None:
    """A no changes nothing."""
    _second_admin(cli)
    change = CHANGES[name]
    with cli.on_terminal(*change.arguments(cli)) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("n\n")
        assert terminal.end() == 1
    shown = " ".join(terminal.shown.split())
    for text in change.says:
        assert text in shown
    assert "keybearer-server admin-token" in shown or LAST_KEY not in change.says
    assert cli("keys", "list").code == 0


@pytest.mark.parametrize("name", CHANGES)
def test_a_script_needs_a_yes(name: str, cli: Cli) -> None:
    """Without a terminal the change is refused, and with --yes the warnings are still shown."""
    _second_admin(cli)
    change = CHANGES[name]
    refused = cli(*change.arguments(cli))
    assert (refused.code, "--yes" in refused.err) == (2, True)
    done = cli(*change.arguments(cli), "--yes")
    assert done.code == 0
    assert name == "rotate" or all(text in done.err for text in change.says)
    assert cli("keys", "list").code == 3


def test_the_last_admin_key_of_somebody_else_is_said_to_be_that(cli: Cli) -> None:
    """Of a tenant: an operator revokes the only live ADMIN key."""
    tenant = cli.service.tenant()
    answer = cli("keys", "revoke", tenant.key_id, "--reason", "lost", "--yes")
    assert f"no other live ADMIN key of the account {tenant.account_id}" in answer.err
    assert "you are using" not in answer.err


def test_a_key_beside_it_is_no_reason_to_ask(cli: Cli) -> None:
    """Where other live ADMIN keys stay, and for keys that manage nothing, nobody is asked."""
    spare, _ = cli.create_key("spare", role="ROLE_ADMIN")
    key, _ = cli.create_key("ci")
    for arguments in (
        ("keys", "disable", key),
        ("keys", "disable", spare),
        ("keys", "update", key, "--role", "validator"),
    ):
        answer = cli.done(*arguments)
        assert answer.err == ""
    second = _second_admin(cli)
    assert cli.done("users", "set-role", second, "developer").err == ""


@pytest.mark.parametrize("change", ["disable", "revoke"])
def test_a_disabled_admin_key_is_none_that_stays(cli: Cli, change: str) -> None:
    """Only live keys count as others, and only those of an administrator."""
    spare, _ = cli.create_key("spare", role="ROLE_ADMIN")
    if change == "disable":
        cli.admin.disable_key(spare)
    else:
        cli.admin.revoke(spare)
    answer = cli("keys", "disable", _key(cli), "--yes")
    assert LAST_KEY in answer.err


def test_deleting_the_creator_of_ones_own_key_is_said_to_be_that(cli: Cli) -> None:
    """With --revoke-created, the key in use may be among them."""
    other = cli.admin.create_user("other@example.com")
    _, token = cli.create_key("other", role="ROLE_ADMIN", owner_id=other.id)
    made = cli.service.as_token(token).create_key(name="mine", role="ROLE_ADMIN", owner_id=_me(cli))
    environment = {"KEYBEARER_TOKEN": made.token}
    delete = ("users", "delete", other.id, "--revoke-created", "--yes")
    assert "the key that you are using is one of them" in cli(*delete, environment=environment).err


def test_revoking_the_token_of_the_last_admin_key_is_said_to_be_that(
    cli: Cli, tmp_path: Path
) -> None:
    """The holder of a token is asked about its account, not only about its key."""
    file = tmp_path / "own.token"
    file.write_text(cli.service.admin_token)
    with cli.on_terminal("token", "revoke", "--token-file", str(file)) as terminal:
        terminal.wait_for("[y/N]")
        terminal.type("n\n")
        assert terminal.end() == 1
    assert LAST_KEY in " ".join(terminal.shown.split())
