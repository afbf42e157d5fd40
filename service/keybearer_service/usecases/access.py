"""Which accounts a caller may touch: decided here, for every entry point.

Administrators of the operator account may act in every account, all other callers in their own.
Any caller of the operator account may ask about tokens of other accounts. What a caller may not
touch looks exactly as if it did not exist.
"""

from collections.abc import Set as AbstractSet
from typing import Protocol

from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.errors import FieldInvalid, OperatorOnly, ResourceNotFound
from keybearer_service.domain.model import ANY_ACCOUNT
from keybearer_service.domain.verdict import Match
from keybearer_service.storage import Reader
from keybearer_service.usecases.call_context import CallContext

EVERY_ACCOUNT = frozenset({ANY_ACCOUNT})
"""What stands for all accounts in a set of them."""


class Asker(Protocol):
    """An authenticated caller that asks about tokens."""

    @property
    def account_id(self) -> str:
        """The asker's own account."""
        ...

    @property
    def is_operator(self) -> bool:
        """Whether that is the operator account."""
        ...


def authorize(call: CallContext, requested: str) -> AccountScope:
    """Return the scope of the account that a request is about.

    Args:
        call: The call; its caller is authenticated.
        requested: The `account_id` of the request; empty means the caller's own account.

    Raises:
        OperatorOnly: Another account, and the caller is no administrator of the operator account.
            The error is the same whether that account exists or not.
    """
    own = call.identity.account_id
    if requested not in ("", own) and reach_of(call).account_id is not None:
        raise _operator_only("account_id")
    return AccountScope(requested or own)


def authorize_audit(call: CallContext, requested: str) -> AccountScope:
    """Return the scope of the audit log that a request is about; `-` means every account.

    Raises:
        OperatorOnly: As `authorize`.
    """
    scope = authorize(call, requested)
    return reach_of(call) if requested == ANY_ACCOUNT else scope


def reach_of(call: CallContext) -> AccountScope:
    """Return the scope of everything that the caller may touch by its id."""
    caller = call.identity
    is_unbounded = caller.is_operator and caller.role is Role.ADMIN
    return AccountScope(None if is_unbounded else caller.account_id)


def authorize_every_account(call: CallContext) -> AccountScope:
    """Return the scope of all accounts, for a list of them.

    Raises:
        OperatorOnly: The caller is no administrator of the operator account.
    """
    scope = reach_of(call)
    if scope.account_id is not None:
        raise OperatorOnly("only operators look at other accounts")
    return scope


def authorize_question(asker: Asker, requested: str, field: str = "account_id") -> AccountScope:
    """Return the scope of the keys that a question about a token is about.

    Args:
        asker: Who asks.
        requested: The account that is named; empty means the asker's own, `-` every account.
        field: The name of the field in the request, for the error.

    Raises:
        OperatorOnly: Another account, and the asker is not of the operator account.
    """
    if requested in ("", asker.account_id):
        return AccountScope(asker.account_id)
    if not asker.is_operator:
        raise _operator_only(field)
    return AccountScope(None if requested == ANY_ACCOUNT else requested)


def gateway_scopes(
    meant: AbstractSet[str], may_name: AbstractSet[str], named: AbstractSet[str]
) -> list[AccountScope]:
    """Return the scopes of the keys that a gateway asks about.

    Args:
        meant: The accounts that it means when none is named.
        may_name: The accounts that may be named.
        named: The accounts that the requirement names, from all its sources. In each of the three
            `-` stands for every account.

    Raises:
        OperatorOnly: An account that may not be named.
        FieldInvalid: Several accounts.
    """
    if may_name != EVERY_ACCOUNT and named - may_name:
        raise OperatorOnly("account_id: the gateway may not ask about the keys of this account")
    particular = named - EVERY_ACCOUNT
    if len(particular) > 1:
        raise FieldInvalid("account_id", "several sources name different accounts")
    accounts = particular or (EVERY_ACCOUNT if named else meant)
    return [AccountScope(None if one == ANY_ACCOUNT else one) for one in sorted(accounts)]


def question_reach_of(asker: Asker) -> AccountScope:
    """Return the scope of all keys that an asker may ask about, or hear of as a watcher."""
    return AccountScope(None if asker.is_operator else asker.account_id)


def scope_of_holder(match: Match) -> AccountScope:
    """Return the scope of somebody who proved to hold a secret: the account of its key."""
    return AccountScope(match.record.account_id)


def scope_of_nobody() -> AccountScope:
    """Return a scope that covers no account, for a caller who has no user's authority."""
    return AccountScope("")


def scope_of_sign_in(account_id: str) -> AccountScope:
    """Return the scope of somebody who signs in: the account that an invitation or a setting names.

    Args:
        account_id: That account.
    """
    return AccountScope(account_id)


def assert_account_exists(reader: Reader, scope: AccountScope) -> None:
    """Raise unless the account that an operator named exists.

    Raises:
        ResourceNotFound: There is no such account.
    """
    if scope.account_id is not None and reader.account(scope, scope.account_id) is None:
        raise ResourceNotFound("account", scope.account_id)


def _operator_only(field: str) -> OperatorOnly:
    return OperatorOnly(f"{field}: only operators may name another account")
