"""Says when a change would take the caller's own authority away, or the last key of an account.

A service cannot know that this is a mistake. The command asks before it happens, also where it
asks nothing else, and says it even when the question is skipped.
"""

from collections.abc import Callable, Iterable

from keybearer._client.client import KeybearerClient
from keybearer.access import Role
from keybearer.cli import output
from keybearer.cli.session import Session
from keybearer.cli.terminal import confirm
from keybearer.models import ApiKey, ApiKeyState, Caller, User


def warn(session: Session, question: str, warnings: Iterable[str], *, yes: bool) -> None:
    """Ask for a confirmation of a change that asks for none otherwise, if there are warnings.

    Args:
        session: The run of the command.
        question: The question.
        warnings: Lines from the functions below.
        yes: Whether the change was confirmed on the command line; the warnings are shown then too.

    Raises:
        Refusal: The answer is not yes, or there is nobody to ask.
    """
    lines = list(warnings)
    if lines and yes:
        show(session, lines)
    elif lines:
        confirm(question, lambda: lines, yes=False)


def show(session: Session, warnings: Iterable[str]) -> None:
    """Show warnings whose question is skipped."""
    for line in warnings:
        session.note(output.visible(line))


def of_keys(client: KeybearerClient, keys: Iterable[ApiKey], verb: str) -> list[str]:
    """Return the warnings for a change that ends the authority of keys.

    Args:
        client: The caller's client.
        keys: The keys, as they are before the change.
        verb: What happens to them: `revoke`, `disable`, `lower`.
    """
    changed = {key.id: key for key in keys}
    own_id = client.who_am_i().identity.key_id
    warnings = []
    if own_id in changed:
        warnings.append(
            f"WARNING: {changed[own_id].name} ({own_id}) is the key that you are using: "
            f"you {verb} your own access."
        )
    return warnings + of_last_keys(client, changed.values())


def of_last_keys(client: KeybearerClient, keys: Iterable[ApiKey]) -> list[str]:
    """Return a warning for each account that keeps no live ADMIN key without these keys."""
    lost = {key.id: key for key in keys}
    caller = client.who_am_i()
    warnings = []
    for account_id in sorted({key.account_id for key in lost.values() if _manages(key)}):
        warnings += _of_account(client, caller, account_id, lambda key: key.id in lost)
    return warnings


def of_user(
    client: KeybearerClient, user: User, verb: str, *, with_created: bool = False
) -> list[str]:
    """Return the warnings for a change that ends the authority of a user.

    Args:
        client: The caller's client.
        user: Who, before the change.
        verb: What happens to the user: `delete` or `lower`.
        with_created: Whether the keys that this user created for others end too.
    """
    caller = client.who_am_i()
    warnings = []

    def is_lost(key: ApiKey) -> bool:
        return key.owner_id == user.id or (with_created and key.created_by == user.id)

    if caller.identity.owner_id == user.id:
        warnings.append(f"WARNING: {user.email} is you. You {verb} yourself.")
    elif with_created and is_lost(client.get_api_key(caller.identity.key_id)):
        warnings.append("WARNING: the key that you are using is one of them.")
    if user.role is Role.ADMIN or with_created:
        warnings += _of_account(client, caller, user.account_id, is_lost)
    return warnings


def _of_account(
    client: KeybearerClient, caller: Caller, account_id: str, is_lost: Callable[[ApiKey], bool]
) -> list[str]:
    """Return a warning unless a live ADMIN key of the account remains."""
    for user in client.list_users(roles=[Role.ADMIN], account_id=account_id):
        keys = client.list_api_keys(
            states=[ApiKeyState.ACTIVE], owner_id=user.id, account_id=account_id
        )
        if any(_manages(key) and not is_lost(key) for key in keys):
            return []
    own = account_id == caller.identity.account_id
    rescue = (
        "only `keybearer-server admin-token`, on the machine of the service, makes another"
        if own and caller.is_operator
        else "only an operator can make another"
    )
    whose = "of your account" if own else f"of the account {account_id}"
    return [f"WARNING: no other live ADMIN key {whose} would be left; {rescue}."]


def _manages(key: ApiKey) -> bool:
    return key.state is ApiKeyState.ACTIVE and key.effective_role is Role.ADMIN
