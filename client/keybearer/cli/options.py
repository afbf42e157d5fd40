"""Options that several commands share, and what finds the things they name."""

from pathlib import Path
from typing import Annotated

import typer

from keybearer._client.client import KeybearerClient
from keybearer.cli.output import PAGE
from keybearer.cli.refusals import Refusal

YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do it without asking; for scripts, which must say so.")
]
LimitOption = Annotated[
    int, typer.Option(min=1, max=100_000, metavar="N", help="How many to show.")
]
AllOption = Annotated[
    bool, typer.Option("--all", help="Show all, however many; progress goes to standard error.")
]
AccountOption = Annotated[
    str,
    typer.Option(help="The id of another account; operators only. Default: your own", metavar="ID"),
]
NewTokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the token to this new file (0600) instead of standard output; refused before "
        "anything is made when the file exists.",
    ),
]
RequestIdOption = Annotated[
    str,
    typer.Option(
        metavar="UUID", help="Go on with a request whose answer was lost; the error named it."
    ),
]
AttemptOption = Annotated[
    int,
    typer.Option(min=1, max=2**31 - 1, metavar="N", help="With --request-id: as the error said."),
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The id of the key.")]
UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="The id or the e-mail address of the user.")
]

DEFAULT_LIMIT = 50


def limit_of(limit: int, *, show_all: bool) -> int | None:
    """Answer how many to show; None: all."""
    return None if show_all else limit


def page_size_of(limit: int | None) -> int:
    """Answer how many to fetch at once: one more than is shown, to know whether there are more."""
    return PAGE if limit is None else min(limit + 1, PAGE)


def user_id_of(client: KeybearerClient, user: str, account_id: str = "") -> str:
    """Answer the id of a user named by id or address.

    Raises:
        Refusal: No live user of the account has the address.
        KeybearerError: It could not be looked up.
    """
    if "@" not in user:
        return user
    for found in client.list_users(email_contains=user, account_id=account_id):
        if found.email == user.lower():
            return found.id
    raise Refusal(
        f"no user has the address {user}; `keybearer users list` shows who is there",
        code="NOT_FOUND",
        reason="RESOURCE_NOT_FOUND",
    )
