"""The page where an operator chooses the account to look at."""

from collections.abc import Sequence
from dataclasses import replace

from keybearer_service.console.links import AccountListState
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import sentence
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.domain import validators
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import Account
from keybearer_service.storage import AccountQuery
from keybearer_service.usecases.access import authorize_every_account
from keybearer_service.usecases.accounts import AccountManager


class AccountPages:
    """The view of accounts. It calls use cases, and nothing else."""

    def __init__(self, pages: Pages, accounts: AccountManager) -> None:
        self._pages = pages
        self._accounts = accounts

    def list(self, visit: Visit) -> Answer:
        """Show the accounts.

        Raises:
            OperatorOnly: The caller is no operator.
        """
        scope = authorize_every_account(visit.call)
        state = visit.state_of(AccountListState)
        trouble, next_page = "", ""
        found: Sequence[Account] = ()
        try:
            contained = validators.contained("q", state.q)
            query = AccountQuery(scope=scope, name_contains=contained)
            page = self._accounts.list(visit.call, query, 0, state.page)
            found, next_page = page.items, page.next_page_token
        except FieldInvalid as error:
            trouble = sentence(error.description)
        response = self._pages.show(
            "accounts.html",
            visit,
            status=400 if trouble else 200,
            area="accounts",
            account=self._accounts.get(visit.call, visit.scope.only).name,
            accounts=state,
            found=found,
            current=visit.scope.only,
            next_page=replace(state, page=next_page) if next_page else None,
            trouble=trouble,
        )
        return Answer(response)
