"""`keybearer accounts`."""

import itertools
from collections.abc import Iterator
from typing import Annotated

import typer

from keybearer._client.client import KeybearerClient
from keybearer._client.requests import NEVER_EXPIRES
from keybearer._wire.limits import MAX_NAME, MAX_PAGE_SIZE
from keybearer.cli import inputs, output
from keybearer.cli.options import (
    DEFAULT_LIMIT,
    AllOption,
    AttemptOption,
    ColumnsOption,
    LimitOption,
    NewTokenFileOption,
    RequestIdOption,
    WideOption,
    YesOption,
    limit_of,
    page_size_of,
)
from keybearer.cli.output import ID_WIDTH, Column, Layout, moment_text
from keybearer.cli.session import Session, command
from keybearer.cli.terminal import confirm
from keybearer.cli.token_files import token_sink
from keybearer.models import Account, ApiKeyState

app = typer.Typer()

AccountArgument = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The id of the account.")]


def _state(account: Account) -> str:
    if account.disable_time is not None:
        return "disabled"
    return "active, operator" if account.is_operator else "active"


_COLUMNS: list[Column[Account]] = [
    Column("name", lambda account: account.name),
    Column("id", lambda account: account.id, under=True, least=ID_WIDTH),
    Column("state", _state),
    Column("created", lambda account: account.create_time),
]


@command(
    app,
    "create",
    "keybearer accounts create Research --admin-email lee@example.com --token-file lee.token",
)
def create(
    session: Session,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 100 characters.")],
    admin_email: Annotated[
        str, typer.Option(metavar="EMAIL", help="The address of its first administrator.")
    ],
    admin_name: Annotated[
        str,
        typer.Option(
            metavar="TEXT", help="The name of its first administrator. Default: the address"
        ),
    ] = "",
    ttl: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long that administrator's key is accepted, as 90d. Default: it never expires",
        ),
    ] = None,
    token_file: NewTokenFileOption = None,
    request_id: RequestIdOption = "",
    attempt: AttemptOption = 1,
) -> None:
    """Create an account with its first administrator, and show that user's token once."""
    life = NEVER_EXPIRES if ttl is None else inputs.duration("--ttl", ttl)
    client = session.client
    with token_sink(token_file) as sink:
        with session.changing():
            issued = client.create_account(
                name,
                admin_email=admin_email,
                admin_display_name=admin_name or admin_email[:MAX_NAME],
                ttl=life,
                request_id=request_id,
                attempt=attempt,
            )
        facts = [
            ("account", f"{issued.account.name} ({issued.account.id})"),
            ("administrator", output.person_text(issued.user.email, issued.user.id)),
            ("key", f"{issued.api_key.name} ({issued.api_key.id})"),
            ("expires", moment_text(issued.api_key.expire_time)),
        ]
        sink.deliver(
            issued.token,
            issued.api_key,
            {
                "account": issued.account,
                "user": issued.user,
                "api_key": issued.api_key,
                "replayed": issued.replayed,
            },
            f"Created the account:\n\n{output.facts_text(facts)}",
            as_json=session.as_json,
        )


@command(app, "list", "keybearer accounts list", "keybearer accounts list --name research")
def list_(
    session: Session,
    *,
    name: Annotated[
        str, typer.Option(metavar="TEXT", help="Only accounts with this in their name.")
    ] = "",
    limit: LimitOption = DEFAULT_LIMIT,
    show_all: AllOption = False,
    wide: WideOption = False,
    columns: ColumnsOption = "",
) -> None:
    """List accounts, the newest first."""
    shown = limit_of(limit, show_all=show_all)
    accounts = session.client.list_accounts(name_contains=name, page_size=page_size_of(shown))
    output.show_list(
        accounts,
        Layout(columns=_COLUMNS),
        name="accounts",
        limit=shown,
        empty="No account matches; leave out --name, or create one: "
        "keybearer accounts create NAME --admin-email EMAIL",
        as_json=session.as_json,
        wide=wide,
        columns=columns,
    )


@command(app, "show", "keybearer accounts show 7hJk3PqWvZ5sXt2R")
def show(session: Session, account: AccountArgument) -> None:
    """Show an account."""
    found = session.client.get_account(account)
    session.show({"account": found}, output.facts_text(_facts(found)))


@command(app, "disable", "keybearer accounts disable 7hJk3PqWvZ5sXt2R")
def disable(session: Session, *, account: AccountArgument, yes: YesOption = False) -> None:
    """Disable an account: all its keys are refused until it is enabled again."""
    client = session.client
    confirm("Disable this account?", lambda: _warning(client, account), yes=yes)
    with session.changing():
        found = client.disable_account(account)
    session.show(
        {"account": found},
        f"Disabled {_named(found)}; `keybearer accounts enable {found.id}` undoes it.",
    )


@command(app, "enable", "keybearer accounts enable 7hJk3PqWvZ5sXt2R")
def enable(session: Session, account: AccountArgument) -> None:
    """Enable an account: its keys work again as before."""
    client = session.client
    with session.changing():
        found = client.enable_account(account)
    session.show({"account": found}, f"Enabled {_named(found)}.")


def _warning(client: KeybearerClient, account_id: str) -> Iterator[str]:
    account = client.get_account(account_id)
    keys = client.list_api_keys(
        states=[ApiKeyState.ACTIVE], account_id=account_id, page_size=MAX_PAGE_SIZE
    )
    count = len(list(itertools.islice(keys, MAX_PAGE_SIZE)))
    active = f"{count}{' or more' if count == MAX_PAGE_SIZE else ''} active key{'s' * (count != 1)}"
    yield f"{account.name} ({account.id}): {active} will be refused, until it is enabled again."


def _named(account: Account) -> str:
    return output.visible(f"{account.name} ({account.id})")


def _facts(account: Account) -> list[tuple[str, str]]:
    return [
        ("name", account.name),
        ("id", account.id),
        ("state", _state(account)),
        ("created", moment_text(account.create_time)),
        ("disabled", moment_text(account.disable_time, "")),
        ("etag", account.etag),
    ]
