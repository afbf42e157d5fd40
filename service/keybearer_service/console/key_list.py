"""The list of keys, and what stands above it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from keybearer._wire.enums import ApiKeyState
from keybearer_service.console import problems
from keybearer_service.console.key_texts import EXPIRING_SOON, Row, row_of
from keybearer_service.console.links import ListState
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import Problem, sentence
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.domain import validators
from keybearer_service.domain.clock import DAY, Clock, Micros, after
from keybearer_service.domain.errors import FieldInvalid, ResourceNotFound
from keybearer_service.domain.model import ApiKey
from keybearer_service.storage import KeyQuery
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.keys import KeyManager

log = structlog.get_logger(__name__)

UNUSED_FOR: Final = 90 * DAY
COUNTED: Final = 100
"""Keys of a view that are counted; of more it says that there are more."""
ORDERS: Final = {
    "": ("create_time", True),
    "oldest": ("create_time", False),
    "name": ("name", False),
    "name-last": ("name", True),
    "used": ("last_used_time", True),
    "unused": ("last_used_time", False),
    "expires": ("expire_time", False),
    "expires-last": ("expire_time", True),
}
"""How the list is sorted, by what the URL says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One of the views that the list offers."""

    name: str
    title: str
    state: ListState
    is_current: bool
    count: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The head of a column."""

    title: str
    sorted_by: str = ""
    """`ascending`, `descending`, or empty."""
    state: ListState | None = None
    """The list in the order of this column; None for a column without an order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The list behind everything that is about keys."""

    rows: Sequence[Row]
    views: Sequence[View]
    columns: Sequence[Column]
    next_page: ListState | None
    first_page: ListState | None
    is_filtered: bool
    problem: str = ""
    said: ApiKey | None = None
    """The key of which the page says that it is revoked."""


class KeyList:
    """Shows keys of an account, and pages above them."""

    def __init__(
        self, pages: Pages, keys: KeyManager, accounts: AccountManager, clock: Clock
    ) -> None:
        self._pages = pages
        self._keys = keys
        self._accounts = accounts
        self._clock = clock

    def page(self, visit: Visit) -> Answer:
        """Show the list."""
        listing, account = self.listing(visit), self.account_name(visit)
        status = 400 if listing.problem else 200
        page = self._pages.show("keys.html", visit, status=status, account=account, listing=listing)
        return Answer(page)

    def above(
        self,
        template: str,
        visit: Visit,
        *,
        status: int = 200,
        problem: Problem | None = None,
        can_read: bool = True,
        **values: Any,
    ) -> Answer:
        """Show a page above the list.

        Args:
            template: The page.
            visit: The visit.
            status: The status of the answer, unless a problem has one.
            problem: Why a form could not be carried out.
            can_read: Whether the list can be read; a page stands alone without it. After a problem
                it may not be.
            **values: What the page shows.
        """
        can_read = can_read and problems.can_read(problem)
        listing = self.listing(visit) if can_read else None
        account = self.account_name(visit) if can_read else ""
        page = self._pages.show(
            template,
            visit,
            status=status,
            account=account,
            listing=listing,
            problem=problem,
            **values,
        )
        return Answer(page)

    def key(self, visit: Visit) -> ApiKey:
        """Return the key that the URL names; the page is about its account then.

        Raises:
            ResourceNotFound: There is no such key.
        """
        key = self._keys.get(visit.call, visit.key_id)
        visit.turn_to(key.account_id)
        return key

    def key_after(self, visit: Visit, problem: Problem | None) -> ApiKey | None:
        """Return the key that the URL names; None where a problem says that it cannot be read."""
        return self.key(visit) if problems.can_read(problem) else None

    def with_secret(self, visit: Visit, **values: Any) -> Answer:
        """Show a secret above the list, or without it when the list cannot be read any more.

        The change is committed, and nothing else will ever show the secret.
        """
        try:
            answer = self.above("shown.html", visit, **values)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not cost the secret
            log.warning("secret_shown_alone", cause=type(error).__name__)
            answer = self.above("shown.html", visit, can_read=False, **values)
        answer.shows_secret = True
        return answer

    def account_name(self, visit: Visit) -> str:
        """Return the name of the account that a page is about."""
        return self._accounts.get(visit.call, visit.scope.only).name

    def listing(self, visit: Visit) -> Listing:
        """Return the part of the list that the URL names."""
        state, now = visit.state, self._clock.now()
        found: Sequence[ApiKey] = ()
        next_page, problem = "", ""
        try:
            page = self._keys.list(visit.call, self.query(visit), 0, state.page)
            found, next_page = page.items, page.next_page_token
        except FieldInvalid as error:
            problem = sentence(error.description)
        return Listing(
            rows=[row_of(key, now) for key in found],
            views=self._views(visit, state, now),
            columns=_columns(state),
            next_page=replace(state, page=next_page) if next_page else None,
            first_page=state.but() if state.page else None,
            is_filtered=bool(state.view or state.q or state.owner),
            problem=problem,
            said=self._said(visit),
        )

    def query(self, visit: Visit) -> KeyQuery:
        """Return which keys the URL asks for.

        Raises:
            FieldInvalid: It cannot be understood.
        """
        state, now = visit.state, self._clock.now()
        order, descending = ORDERS.get(state.order, ORDERS[""])
        query = KeyQuery(scope=visit.scope, now=now, order_by=order, descending=descending)
        return replace(
            query,
            owner_id=validators.contained("owner", state.owner),
            name_contains=validators.contained("q", state.q),
            **_filters(state.view, now),
        )

    def _views(self, visit: Visit, state: ListState, now: Micros) -> Sequence[View]:
        return [
            View(
                name=name,
                title=title,
                state=state.but(view=name),
                is_current=name == state.view,
                count=self._count(visit, name, now) if name in _COUNTED_VIEWS else "",
            )
            for name, title in _VIEWS.items()
        ]

    def _count(self, visit: Visit, view: str, now: Micros) -> str:
        query = KeyQuery(scope=visit.scope, now=now, **_COUNTED_VIEWS[view])
        page = self._keys.list(visit.call, replace(query, **_filters(view, now)), COUNTED, "")
        return f"{len(page.items)}+" if page.next_page_token else str(len(page.items))

    def _said(self, visit: Visit) -> ApiKey | None:
        revoked = visit.query.get("revoked", "")
        if not revoked:
            return None
        try:
            key = self._keys.get(visit.call, revoked)
        except ResourceNotFound:
            return None
        return key if key.revoke_time is not None else None


_VIEWS: Final = {
    "": "All",
    "active": "Active",
    "expiring": "Expiring soon",
    "unused": "Unused for 90 days",
    "over": "Revoked and expired",
}
_COUNTED_VIEWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "expiring": {"order_by": "expire_time", "descending": False},
    "unused": {"order_by": "create_time", "descending": False},
}
"""The views that ask for work, and the order in which their keys are counted soonest."""


def _filters(view: str, now: Micros) -> Mapping[str, Any]:
    # By whole days: a page token belongs to one query, and this one must not change every moment.
    today = Micros(now - now % DAY)
    if view == "active":
        return {"states": (ApiKeyState.ACTIVE,)}
    if view == "expiring":
        soon = after(today, EXPIRING_SOON + DAY)
        return {"states": (ApiKeyState.ACTIVE,), "expires_before": soon}
    if view == "unused":
        return {"states": (ApiKeyState.ACTIVE,), "unused_since": after(today, -UNUSED_FOR)}
    if view == "over":
        return {"states": (ApiKeyState.EXPIRED, ApiKeyState.REVOKED)}
    return {}


def _columns(state: ListState) -> Sequence[Column]:
    def column(title: str, first: str, second: str) -> Column:
        # The order of the URL that is not there is the one that is shown without.
        shown = state.order if state.order in ORDERS else ""
        if shown not in (first, second):
            return Column(title=title, state=state.but(order=first))
        _, descending = ORDERS[shown]
        return Column(
            title=title,
            sorted_by="descending" if descending else "ascending",
            state=state.but(order=second if shown == first else first),
        )

    return [
        column("Name", "name", "name-last"),
        Column(title="Status"),
        Column(title="Created by"),
        column("Created", "", "oldest"),
        column("Last used", "used", "unused"),
        column("Expires", "expires", "expires-last"),
    ]
