"""`keybearer users`, `accounts`, `token`, `whoami` and `audit`, as processes."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cliharness import Cli, command_line


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command for a fresh service."""
    with command_line(tmp_path) as command:
        yield command


# --- users ----------------------------------------------------------------------------------------


def test_a_user_is_a_person_named_as_its_address_unless_told(cli: Cli) -> None:
    """A user has the given role, and defaults for name and type."""
    user = cli.json("users", "create", "dana@example.com", "--role", "developer")["user"]
    assert (user["display_name"], user["type"]) == ("dana@example.com", "PERSON")


def test_every_option_of_users_create_arrives(cli: Cli) -> None:
    """Name and type are those of the user."""
    create = ("users", "create", "ci@example.com", "--role", "validator", "--name", "CI")
    user = cli.json(*create, "--type", "service-account")["user"]
    assert (user["display_name"], user["type"]) == ("CI", "SERVICE_ACCOUNT")


def test_users_are_listed_by_role_type_address_and_life(cli: Cli) -> None:
    """Each filter of users leaves exactly the matching ones."""
    cli.admin.create_user("dana@example.com", role="ROLE_DEVELOPER")
    robot = cli.admin.create_user("robot@example.org", type="USER_TYPE_SERVICE_ACCOUNT")
    cli.done("users", "delete", robot.id, "--yes")

    def listed(*filters: str) -> list[str]:
        return [user["email"] for user in cli.json("users", "list", *filters)["users"]]

    assert listed("--role", "developer") == ["dana@example.com"]
    assert listed("--email", "example.org") == []
    assert listed("--email", "example.org", "--deleted") == ["robot@example.org"]
    assert listed("--type", "service-account", "--deleted") == ["robot@example.org"]


def test_a_user_may_be_named_by_address(cli: Cli) -> None:
    """A user may be named by the whole address, in any case."""
    cli.admin.create_user("dana@example.com")
    assert cli.json("users", "show", "DANA@example.com")["user"]["email"] == "dana@example.com"
    answer = cli("users", "show", "na@example.com")
    assert (answer.code, "no user has the address na@example.com" in answer.err) == (1, True)


def test_set_role_counts_for_the_keys_of_the_user(cli: Cli) -> None:
    """A lower role of the owner lowers the effective role of the keys."""
    dana = cli.admin.create_user("dana@example.com")
    _, token = cli.create_key("k", role="ROLE_ADMIN", owner_id=dana.id)
    cli.done("users", "set-role", "dana@example.com", "developer")
    assert cli.admin.validate(token).effective_role == 2


def test_update_changes_name_and_role(cli: Cli) -> None:
    """`update` changes name and role, and needs one of them."""
    dana = cli.admin.create_user("dana@example.com")
    user = cli.json("users", "update", dana.id, "--name", "D.", "--role", "validator")["user"]
    assert (user["display_name"], user["role"]) == ("D.", "VALIDATOR")
    assert cli("users", "update", dana.id).code == 2


def test_a_dry_run_names_the_keys_that_would_die_and_those_that_would_not(cli: Cli) -> None:
    """The owner's keys with their last use, and the keys made for others, which stay."""
    dana = cli.admin.create_user("dana@example.com")
    _, hers = cli.create_key("hers", role="ROLE_ADMIN", owner_id=dana.id)
    cli.service.as_token(hers).create_key(name="known", owner_id=cli.service.admin_user_id)
    shown = cli.done("users", "delete", dana.id, "--dry-run").out
    assert "1 key of this user will be revoked:\n  hers (" in shown
    assert "last used 2" in shown
    assert "may know STAY (see --revoke-created):\n  known (" in shown
    assert cli.outcome(hers) == "VALID"


def test_delete_revokes_the_keys_of_the_user(cli: Cli) -> None:
    """Delete revokes the user's own keys; those created for others need --revoke-created."""
    dana = cli.admin.create_user("dana@example.com")
    _, hers = cli.create_key("hers", role="ROLE_ADMIN", owner_id=dana.id)
    known = cli.service.as_token(hers).create_key(owner_id=cli.service.admin_user_id).token
    deleted = cli.json("users", "delete", "dana@example.com", "--yes")
    assert (deleted["revoked_key_count"], deleted["created_for_others_key_count"]) == (1, 1)
    assert (cli.outcome(hers), cli.outcome(known)) == ("REVOKED", "VALID")


def test_delete_can_revoke_what_the_user_made_for_others(cli: Cli) -> None:
    """With --revoke-created, both kinds of keys are revoked."""
    dana = cli.admin.create_user("dana@example.com")
    _, hers = cli.create_key("hers", role="ROLE_ADMIN", owner_id=dana.id)
    known = cli.service.as_token(hers).create_key(owner_id=cli.service.admin_user_id).token
    cli.done("users", "delete", dana.id, "--revoke-created", "--yes")
    assert (cli.outcome(hers), cli.outcome(known)) == ("REVOKED", "REVOKED")


def test_delete_needs_a_yes(cli: Cli) -> None:
    """Without a terminal and without --yes, delete changes nothing."""
    dana = cli.admin.create_user("dana@example.com")
    assert cli("users", "delete", dana.id).code == 2
    assert cli.json("users", "show", dana.id)["user"]["delete_time"] is None


# --- accounts -------------------------------------------------------------------------------------


def test_an_account_comes_with_the_token_of_its_administrator(cli: Cli) -> None:
    """The token goes alone into the pipe and belongs to the new account."""
    create = ("accounts", "create", "Research", "--admin-email", "lee@example.com")
    token = cli.done(*create, "--ttl", "90d").out.strip()
    mine = cli("whoami", "-o", "json", environment={"KEYBEARER_TOKEN": token}).document
    assert (mine["owner_email"], mine["is_operator"]) == ("lee@example.com", False)
    assert mine["expire_time"] is not None


def test_accounts_are_listed_shown_disabled_and_enabled(cli: Cli) -> None:
    """A disabled account's keys are DISABLED until it is enabled again."""
    made = cli.json("accounts", "create", "Research", "--admin-email", "lee@example.com")
    account_id = made["account"]["id"]
    lee = cli.service.as_token(made["token"])
    assert [one["name"] for one in cli.json("accounts", "list", "--name", "RES")["accounts"]] == [
        "Research"
    ]
    assert cli("accounts", "disable", account_id).code == 2
    cli.done("accounts", "disable", account_id, "--yes")
    assert "disabled" in cli.done("accounts", "show", account_id).out
    cli.done("accounts", "enable", account_id)
    assert lee.outcome(made["token"]) == "VALID"


def test_an_operator_works_in_another_account(cli: Cli) -> None:
    """--account leads keys, users and audit there."""
    made = cli.json("accounts", "create", "Research", "--admin-email", "lee@example.com")
    other = ("--account", made["account"]["id"])
    cli.done("users", "create", "dana@example.com", "--role", "developer", *other)
    create = ("keys", "create", "k", "--role", "developer", "--ttl", "1d")
    cli.done(*create, "--owner", "dana@example.com", *other)
    assert len(cli.json("keys", "list", *other)["api_keys"]) == 2
    assert len(cli.json("audit", "list", *other)["audit_events"]) == 3


# --- token ----------------------------------------------------------------------------------------


def test_a_valid_token_exits_with_0_and_says_whose_it_is(cli: Cli) -> None:
    """From standard input; the verdict comes first."""
    _, token = cli.create_key("billing", scopes=["a.*"])
    answer = cli.done("token", "validate", "--required-scope", "a.b", stdin=token + "\n")
    assert answer.out.startswith("VALID\n")
    assert "billing" in answer.out


@pytest.mark.parametrize(
    ("requirement", "verdict"),
    [
        (("--required-role", "admin"), "ROLE INSUFFICIENT"),
        (("--required-scope", "other"), "SCOPE INSUFFICIENT"),
    ],
)
def test_a_token_that_does_not_meet_what_is_required_exits_with_5(
    cli: Cli, requirement: tuple[str, ...], verdict: str
) -> None:
    """The verdict is on standard output, since it is an answer."""
    _, token = cli.create_key("k")
    answer = cli("token", "validate", *requirement, stdin=token)
    assert (answer.code, answer.out.startswith(verdict)) == (5, True)


def test_a_token_that_opens_nothing_exits_with_5(cli: Cli) -> None:
    """Whatever its letters are; programs get the shape of the message."""
    answer = cli("token", "validate", "-o", "json", stdin="nonsense, and no token")
    assert answer.code == 5
    assert (answer.document["valid"], answer.document["outcome"]) == (False, "NOT_FOUND")
    assert answer.document["key_id"] is None


def test_a_token_may_come_from_a_file(cli: Cli) -> None:
    """Standard input is not read then."""
    (cli.directory / "t").write_text(cli.create_key("k")[1] + "\n")
    assert cli("token", "validate", "--token-file", "t").code == 0


@pytest.mark.parametrize("given", ["", "\n", "one\ntwo\n", "x" * 5000])
def test_what_is_no_single_token_is_refused(cli: Cli, given: str) -> None:
    """A usage error, and no verdict."""
    answer = cli("token", "validate", stdin=given)
    assert (answer.code, answer.out) == (2, "")


def test_a_holder_revokes_a_token_without_a_credential(cli: Cli) -> None:
    """Possession is the proof; --yes is needed without a terminal."""
    _, token = cli.create_key("k")
    nobody = {"KEYBEARER_TOKEN_FILE": ""}
    assert cli("token", "revoke", stdin=token, environment=nobody).code == 2
    assert cli("token", "revoke", "--yes", stdin=token, environment=nobody).code == 0
    assert cli.outcome(token) == "REVOKED"


def test_rotate_self_answers_a_new_token_and_keeps_the_old_one_for_a_while(cli: Cli) -> None:
    """Any key may renew itself."""
    _, old = cli.create_key("k")
    new = cli("token", "rotate-self", environment={"KEYBEARER_TOKEN": old}).out
    assert cli.outcome(old) == cli.outcome(new) == "VALID"


def test_rotate_self_without_an_overlap_needs_a_yes(cli: Cli) -> None:
    """The caller's own token would die."""
    _, old = cli.create_key("k")
    rotate = ("token", "rotate-self", "--overlap", "0s")
    assert cli(*rotate, environment={"KEYBEARER_TOKEN": old}).code == 2
    assert cli(*rotate, "--yes", environment={"KEYBEARER_TOKEN": old}).code == 0
    assert cli.outcome(old) == "NOT_FOUND"


# --- whoami and audit -----------------------------------------------------------------------------


def test_whoami_says_who_and_warns_of_the_end(cli: Cli) -> None:
    """The key's name and owner on standard output, the warning on standard error."""
    _, token = cli.create_key("mine", ttl=timedelta(days=3))
    answer = cli("whoami", environment={"KEYBEARER_TOKEN": token})
    assert "mine (" in answer.out
    assert "admin@example.com" in answer.out
    assert "expires within 30 days" in answer.err
    for_programs = cli("whoami", "-o", "json", environment={"KEYBEARER_TOKEN": token})
    assert (for_programs.document["expires_soon"], for_programs.err) == (True, "")


def test_the_audit_log_is_filtered_by_actor_target_action_and_time(cli: Cli) -> None:
    """Each filter leaves the events it names."""
    key_id, _ = cli.create_key("k")
    cli.admin.create_user("dana@example.com")

    def listed(*filters: str) -> list[str]:
        events = cli.json("audit", "list", *filters)["audit_events"]
        return [event["action"] for event in events]

    assert listed("--target", key_id) == ["API_KEY_CREATED"]
    assert listed("--action", "user-created", "--action", "api-key-created") == [
        "USER_CREATED",
        "API_KEY_CREATED",
    ]
    assert listed("--actor", cli.service.admin_key_id, "--after", "1h", "--limit", "1") == [
        "USER_CREATED"
    ]
    assert listed("--before", "1h") == []
    assert len(cli.done("audit", "list").out.splitlines()) == 4
