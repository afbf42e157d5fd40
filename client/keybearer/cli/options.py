"""Options that several commands share, and how their values are resolved."""

from pathlib import Path
from typing import Annotated

import typer

from keybearer._client.client import KeybearerClient
from keybearer._wire.limits import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from keybearer.cli.refusals import Refusal

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask for a confirmation; scripts need this.")
]
LimitOption = Annotated[
    int, typer.Option(min=1, max=100_000, metavar="N", help="How many to show.")
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Show all; progress goes to standard error.")
]
AccountOption = Annotated[
    str,
    typer.Option(help="The id of another account; operators only. Default: your own", metavar="ID"),
]
NewTokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the token to this new file (0600) instead of standard output. A file that "
        "exists is rejected before anything is created.",
    ),
]
RequestIdOption = Annotated[
    str,
    typer.Option(
        metavar="UUID", help="Continue a request whose response was lost; the error names it."
    ),
]
AttemptOption = Annotated[
    int,
    typer.Option(
        min=1,
        max=2**31 - 1,
        metavar="N",
        help="With --request-id: the number that the error names.",
    ),
]
WideOption = Annotated[
    bool,
    typer.Option("--wide", help="One line for each item, with all columns, as in a pipe."),
]
ColumnsOption = Annotated[
    str,
    typer.Option(
        metavar="NAMES", help="Only these columns, as name,id; an unknown name lists them."
    ),
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The id of the key.")]
UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="The id or the e-mail address of the user.")
]

DEFAULT_LIMIT = DEFAULT_PAGE_SIZE


def limit_of(limit: int, *, show_all: bool) -> int | None:
    """Return how many items to show; None means all."""
    return None if show_all else limit


def page_size_of(limit: int | None) -> int:
    """Return how many items to fetch at once: one more than are shown, to see if there are more."""
    return MAX_PAGE_SIZE if limit is None else min(limit + 1, MAX_PAGE_SIZE)


def user_id_of(client: KeybearerClient, user: str, account_id: str = "") -> str:
    """Return the id of a user who is named by id or address.

    Raises:
        Refusal: No live user of the account has the address.
        KeybearerError: The users could not be listed.
    """
    if "@" not in user:
        return user
    for found in client.list_users(email_contains=user, account_id=account_id):
        if found.email == user.lower():
            return found.id
    raise Refusal(
        f"no user has the address {user}; `keybearer users list` shows the users",
        code="NOT_FOUND",
        reason="RESOURCE_NOT_FOUND",
    )
