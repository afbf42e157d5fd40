"""`keybearer keys`, run as a process against a running service."""

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cliharness import COMMAND, Cli, command_line

TOKEN = re.compile(r"kbear1_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}")


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """The command for a fresh service."""
    with command_line(tmp_path) as command:
        yield command


def test_a_new_token_goes_alone_into_a_pipe(cli: Cli) -> None:
    """Standard output holds the token and nothing else; the facts are on standard error."""
    answer = cli.done("keys", "create", "billing", "--role", "developer", "--ttl", "30d")
    assert TOKEN.fullmatch(answer.out.strip())
    assert "billing" in answer.err
    assert answer.out.strip() not in answer.err


def test_the_token_that_was_shown_works(cli: Cli) -> None:
    """The token that create shows validates."""
    token = cli.done("keys", "create", "k", "--role", "validator", "--never-expires").out
    assert cli.outcome(token) == "VALID"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (("--ttl", "30d"), timedelta(days=30)),
        (("--expires", "12h"), timedelta(hours=12)),
        (("--never-expires",), None),
    ],
)
def test_an_expiry_from_now_is_counted_by_the_service(
    cli: Cli, choice: tuple[str, ...], expected: timedelta | None
) -> None:
    """Each way to choose an expiration gives that expiration."""
    key = cli.json("keys", "create", "k", "--role", "developer", *choice)["api_key"]
    if expected is None:
        assert key["expire_time"] is None
    else:
        made, end = (datetime.fromisoformat(key[name]) for name in ("create_time", "expire_time"))
        assert end - made == expected


def test_an_expiry_date_is_midnight_in_utc(cli: Cli) -> None:
    """A date without a time means midnight in UTC."""
    made = cli.json("keys", "create", "k", "--role", "developer", "--expires", "2090-12-31")
    assert made["api_key"]["expire_time"] == "2090-12-31T00:00:00Z"


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ((), "choose when the key expires: --ttl 30d, --expires 2030-12-31 or --never-expires"),
        (("--ttl", "1d", "--never-expires"), "give one of --ttl, --expires and --never-expires"),
        (("--ttl", "soon"), "--ttl: 'soon' is not a duration"),
        (("--expires", "tomorrow"), "--expires: 'tomorrow' is no time"),
        (("--ttl", "99999w"), "more than 36500 days"),
    ],
)
def test_a_key_without_one_clear_expiry_is_refused_with_what_to_give(
    cli: Cli, choice: tuple[str, ...], hint: str
) -> None:
    """Without exactly one expiration, create is rejected with a hint."""
    answer = cli("keys", "create", "k", "--role", "developer", *choice)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert hint in answer.err


def test_every_option_of_create_arrives(cli: Cli) -> None:
    """Description, owner by address, scopes and labels are those of the key."""
    cli.admin.create_user("dana@example.com")
    made = cli.json(
        *("keys", "create", "k", "--role", "developer", "--never-expires"),
        *("--description", "for invoices", "--owner", "Dana@example.com"),
        *("--scope", "a.read", "--scope", "b.*", "--label", "team=pay", "--label", "empty="),
    )
    key = made["api_key"]
    assert (key["description"], key["owner_email"]) == ("for invoices", "dana@example.com")
    assert (key["scopes"], key["labels"]) == (["a.read", "b.*"], {"team": "pay", "empty": ""})


def test_a_token_file_is_for_its_user_alone(cli: Cli) -> None:
    """The file has mode 0600, holds the token, and standard output stays empty."""
    answer = cli.done(
        *("keys", "create", "k", "--role", "developer", "--never-expires", "--token-file", "t")
    )
    path = cli.directory / "t"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TOKEN.fullmatch(path.read_text().strip())
    assert answer.out == ""


def test_a_token_file_that_exists_is_refused_before_anything_is_made(cli: Cli) -> None:
    """An existing token file is left alone, and no key is created."""
    (cli.directory / "t").write_text("precious")
    answer = cli(
        *("keys", "create", "k", "--role", "developer", "--never-expires", "--token-file", "t")
    )
    assert (answer.code, (cli.directory / "t").read_text()) == (2, "precious")
    assert "exists already; nothing was created" in answer.err
    assert len(cli.json("keys", "list")["api_keys"]) == 1


def test_a_refused_create_leaves_no_token_file(cli: Cli) -> None:
    """A failed create leaves no token file."""
    answer = cli(
        *("keys", "create", "", "--role", "developer", "--never-expires", "--token-file", "t")
    )
    assert answer.code == 2
    assert not (cli.directory / "t").exists()


def test_a_token_that_cannot_be_written_is_said_to_be_lost(cli: Cli) -> None:
    """When a token cannot be written, the error names the key and how to rotate it."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [COMMAND, "keys", "create", "k", "--role", "developer", "--never-expires"],
            env=cli.environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    key = cli.json("keys", "list", "--name", "k", "--limit", "1")["api_keys"][0]
    assert done.returncode == 1
    assert f"is lost; the key {key['id']} exists" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_the_list_has_the_columns_of_the_product(cli: Cli) -> None:
    """Name, id, state, role, creator, owner and the three dates; 'never' where there is none."""
    cli.create_key("unused")
    header, row, *_ = cli.done("keys", "list").out.splitlines()
    assert re.split(r"  +", header) == [
        *("NAME", "ID", "STATE", "ROLE", "CREATOR", "OWNER", "CREATED", "LAST USED", "EXPIRES")
    ]
    cells = re.split(r"  +", row)
    assert (cells[0], cells[2], cells[3]) == ("unused", "active", "developer")
    assert (cells[4], cells[7], cells[8]) == ("admin@example.com", "never", "never")
    assert cells[6].startswith(f"{datetime.now(UTC):%Y-%m-}")


def test_an_empty_list_says_what_to_do_next(cli: Cli) -> None:
    """An empty list prints nothing, and a hint on standard error."""
    answer = cli.done("keys", "list", "--name", "nothing")
    assert answer.out == ""
    assert "leave out a filter" in answer.err


def test_an_empty_list_is_an_empty_list_for_programs(cli: Cli) -> None:
    """An empty list is a complete document for programs."""
    assert cli.json("keys", "list", "--name", "x") == {"api_keys": [], "more": False}


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (("--state", "revoked"), ["gone"]),
        (("--state", "revoked", "--state", "disabled"), ["gone", "off"]),
        (("--name", "SHO"), ["short"]),
        (("--expires-before", "2d"), ["short"]),
        (("--expires-before", "2090-01-01", "--sort", "name"), ["danas", "short"]),
        (("--unused-since", "1h"), []),
        (("--unused-since", "2090-01-01", "--state", "disabled"), ["off"]),
        (("--owner", "dana@example.com"), ["danas"]),
        (
            ("--sort", "name desc", "--state", "active", "--expires-before", "90d"),
            ["short", "danas"],
        ),
    ],
)
def test_filters_and_orders(many: Cli, filters: tuple[str, ...], names: list[str]) -> None:
    """Each filter leaves the keys it names, in the order asked for."""
    listed = many.json("keys", "list", *filters)["api_keys"]
    assert [key["name"] for key in listed] == names


@pytest.mark.parametrize("order", ["create_time", "expire_time", "name", "last_used_time"])
def test_all_keys_are_in_the_order_of_the_service(many: Cli, order: str) -> None:
    """With --all the command sorts, and it sorts as the service does, absent times included."""
    for sort in (order, f"{order} desc"):
        limited = many.json("keys", "list", "--sort", sort, "--limit", "100")["api_keys"]
        everything = many.json("keys", "list", "--sort", sort, "--all")["api_keys"]
        assert [key["id"] for key in everything] == [key["id"] for key in limited]


def test_all_keys_in_an_unknown_order_are_refused(many: Cli) -> None:
    """The error names the orders that there are."""
    answer = many("keys", "list", "--all", "--sort", "size")
    assert answer.code != 0
    assert "create_time, expire_time, name, last_used_time" in answer.err


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A service with keys of several kinds, for the tests of lists."""
    with command_line(tmp_path_factory.mktemp("many")) as command:
        dana = command.admin.create_user("dana@example.com")
        command.create_key("short", ttl=timedelta(days=1))
        command.create_key("danas", ttl=timedelta(days=30), owner_id=dana.id)
        off, _ = command.create_key("off")
        command.done("keys", "disable", off)
        gone, _ = command.create_key("gone")
        command.done("keys", "revoke", gone, "--reason", "lost", "--yes")
        yield command


def test_a_limited_list_says_that_there_is_more(many: Cli) -> None:
    """A limited list says how to see more; programs get `more`."""
    answer = many.done("keys", "list", "--limit", "2")
    assert len(answer.out.splitlines()) == 3
    assert "--all shows all" in answer.err
    assert many.json("keys", "list", "--limit", "2")["more"] is True


def test_all_shows_more_than_a_page(cli: Cli) -> None:
    """Pages are followed to the end."""
    for number in range(60):
        cli.create_key(name=f"key {number}")
    listed = cli.json("keys", "list", "--all")
    assert (len(listed["api_keys"]), listed["more"]) == (61, False)


def test_a_reader_that_has_enough_ends_the_list_quietly(cli: Cli) -> None:
    """A closed pipe ends the list without a message; the exit code is that of the signal."""
    for _ in range(300):
        cli.create_key("k", description="long " * 150)
    done = subprocess.run(
        ["bash", "-c", "keybearer keys list --all -o json | head -1; echo ${PIPESTATUS[0]}"],
        env=cli.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ('{"api_keys": [\n141\n', "")


def test_show_tells_which_role_counts_and_why(cli: Cli) -> None:
    """`show` names the granted and the effective role when they differ."""
    dana = cli.admin.create_user("dana@example.com", role="ROLE_DEVELOPER")
    key_id, _ = cli.create_key("k", role="ROLE_ADMIN", owner_id=dana.id)
    shown = cli.done("keys", "show", key_id).out
    assert "admin, effective developer: the owner's role is lower" in shown


def test_update_changes_what_is_given_and_nothing_else(cli: Cli) -> None:
    """The fields not named stay as they were."""
    key_id, _ = cli.create_key("before", labels={"a": "b"}, scopes=["x"])
    key = cli.json("keys", "update", key_id, "--name", "after", "--scope", "y", "--ttl", "1d")
    assert key["api_key"]["name"] == "after"
    assert key["api_key"]["scopes"] == ["y"]
    assert key["api_key"]["labels"] == {"a": "b"}
    assert key["api_key"]["expire_time"] is not None


def test_update_can_take_scopes_and_labels_away(cli: Cli) -> None:
    """`update` can remove all scopes and labels."""
    key_id, _ = cli.create_key("k", labels={"a": "b"}, scopes=["x"])
    key = cli.json("keys", "update", key_id, "--no-scopes", "--no-labels")["api_key"]
    assert (key["scopes"], key["labels"]) == ([], {})


def test_update_without_a_change_is_refused(cli: Cli) -> None:
    """`update` without a change is rejected with a hint."""
    answer = cli("keys", "update", "4f9QzVbT1xKc8LmN")
    assert (answer.code, "give at least one change" in answer.err) == (2, True)


def test_update_with_a_stale_etag_is_refused(cli: Cli) -> None:
    """`update` with a stale etag is rejected."""
    key_id, _ = cli.create_key("k")
    answer = cli("keys", "update", key_id, "--name", "n", "--etag", "other", "-o", "json")
    assert (answer.code, answer.error["reason"]) == (1, "ETAG_MISMATCH")


def test_disable_and_enable(cli: Cli) -> None:
    """A disabled key does not validate, an enabled one does again."""
    key_id, token = cli.create_key("k")
    cli.done("keys", "disable", key_id)
    assert cli.outcome(token) == "DISABLED"
    cli.done("keys", "enable", key_id)
    assert cli.outcome(token) == "VALID"


def test_rotate_with_an_overlap_needs_no_confirmation(cli: Cli) -> None:
    """With an overlap both tokens work, and `show` names its end."""
    key_id, old = cli.create_key("k")
    new = cli.done("keys", "rotate", key_id, "--overlap", "1h").out
    assert cli.outcome(old) == cli.outcome(new) == "VALID"
    assert "accepted until" in cli.done("keys", "show", key_id).out


def test_rotate_without_an_overlap_needs_a_yes(cli: Cli) -> None:
    """Without a terminal and without --yes, rotate changes nothing."""
    key_id, old = cli.create_key("k")
    assert cli("keys", "rotate", key_id).code == 2
    assert cli.outcome(old) == "VALID"
    cli.done("keys", "rotate", key_id, "--yes")
    assert cli.outcome(old) == "NOT_FOUND"


def test_an_overlap_can_be_shortened(cli: Cli) -> None:
    """`--overlap-until` brings the end of the old secret forward."""
    key_id, _ = cli.create_key("k")
    cli.done("keys", "rotate", key_id, "--overlap", "10h")
    before = cli.json("keys", "show", key_id)["api_key"]["overlap_end_time"]
    after = cli.json("keys", "update", key_id, "--overlap-until", "1h")["api_key"]
    assert after["overlap_end_time"] < before


def test_revoke_needs_a_yes(cli: Cli) -> None:
    """Without a terminal and without --yes, revoke changes nothing."""
    key_id, token = cli.create_key("k")
    answer = cli("keys", "revoke", key_id, "--reason", "lost")
    assert (answer.code, "add --yes" in answer.err) == (2, True)
    assert cli.outcome(token) == "VALID"


def test_revoke_kills_several_keys(cli: Cli) -> None:
    """Several keys are revoked; programs get one object for each key."""
    ids = [cli.create_key(f"k{number}")[0] for number in range(3)]
    answer = cli.done(
        *("keys", "revoke", *ids, "--reason", "no-longer-used", "--note", "tidy", "--yes"),
        *("--output", "json"),
    )
    revoked = [json.loads(line)["api_key"] for line in answer.out.splitlines()]
    assert [key["id"] for key in revoked] == ids
    assert {
        (key["state"], key["revocation_reason"], key["revocation_note"]) for key in revoked
    } == {("REVOKED", "NO_LONGER_USED", "tidy")}


def test_revoke_looks_all_keys_up_before_the_first_is_revoked(cli: Cli) -> None:
    """A wrong id prevents every revocation."""
    key_id, token = cli.create_key("k")
    answer = cli("keys", "revoke", key_id, "nosuchkey0000000", "--reason", "lost", "--yes")
    assert (answer.code, "RESOURCE_NOT_FOUND" in answer.err) == (1, True)
    assert cli.outcome(token) == "VALID"


def test_revoke_takes_filters_instead_of_ids(cli: Cli) -> None:
    """Keys that fit all filters are revoked, a disabled one too, and no other."""
    ids = [cli.create_key(name)[0] for name in ("old-1", "old-2", "new")]
    gone, _ = cli.create_key("old-3")
    cli.done("keys", "revoke", gone, "--reason", "lost", "--yes")
    cli.done("keys", "disable", ids[1])
    words = ("keys", "revoke", "--name", "old", "--unused-since", "0s", "--reason", "superseded")
    answer = cli.done(*words, "--yes", "--output", "json")
    revoked = [json.loads(line)["api_key"]["id"] for line in answer.out.splitlines()]
    assert sorted(revoked) == sorted(ids[:2])
    assert cli.json("keys", "show", ids[2])["api_key"]["state"] == "ACTIVE"
    assert cli.json("keys", "show", gone)["api_key"]["revocation_reason"] == "LOST"


def test_a_dry_run_of_revoke_names_the_keys_and_changes_nothing(cli: Cli) -> None:
    """People read how many it would be; programs get one object for each key."""
    key_id, token = cli.create_key("spare")
    words = (
        "keys",
        "revoke",
        "--name",
        "spare",
        "--state",
        "active",
        "--reason",
        "lost",
        "--dry-run",
    )
    answer = cli.done(*words)
    assert (key_id in answer.out, "1 key would be revoked" in answer.err) == (True, True)
    assert cli.json(*words)["api_key"]["state"] == "ACTIVE"
    assert cli.outcome(token) == "VALID"


def test_revoke_of_filters_that_fit_nothing_says_so(cli: Cli) -> None:
    """It is no error, and asks nothing."""
    answer = cli.done("keys", "revoke", "--name", "nothing like it", "--reason", "lost")
    assert (answer.out, answer.err) == ("", "No key matches; nothing was changed.\n")


@pytest.mark.parametrize(
    "which",
    [(), ("--account", "acc"), ("k", "--name", "k"), ("k", "--account", "acc")],
    ids=["nothing", "an account alone", "ids and a filter", "ids and an account"],
)
def test_revoke_takes_either_ids_or_filters(cli: Cli, which: tuple[str, ...]) -> None:
    """Anything else is a wrong use."""
    answer = cli("keys", "revoke", *which, "--reason", "lost", "--yes")
    assert (answer.code, "name the keys, or say which by --owner" in answer.err) == (2, True)


def test_revoking_twice_answers_the_first_revocation(cli: Cli) -> None:
    """Revoking twice is no error and returns the first revocation."""
    key_id, _ = cli.create_key("k")
    cli.done("keys", "revoke", key_id, "--reason", "lost", "--yes")
    answer = cli.done("keys", "revoke", key_id, "--reason", "compromised")
    assert "was revoked already" in answer.out
    assert "lost" in answer.out


def test_a_lost_answer_can_be_gone_on_with(cli: Cli) -> None:
    """The same request id with a greater attempt gives the same key another token."""
    request = ("--request-id", "0b0e7a0c-5a5e-4f0e-9d51-1df4a4b2f3aa")
    create = ("keys", "create", "k", "--role", "developer", "--never-expires", *request)
    first = cli.json(*create)
    second = cli.json(*create, "--attempt", "2")
    assert (first["api_key"]["id"], True) == (second["api_key"]["id"], second["replayed"])
    assert cli.outcome(second["token"]) == "VALID"


def test_names_are_shown_and_not_obeyed(cli: Cli) -> None:
    """Names with markup or other scripts are shown as they are."""
    cli.create_key("[red]鍵[/red]")
    assert "[red]鍵[/red]" in cli.done("keys", "list").out
    latin = cli.process("keys", "list", environment={"PYTHONIOENCODING": "latin-1"})
    assert (latin.code, "[red]\\u9375[/red]" in latin.out) == (0, True)
