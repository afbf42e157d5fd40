"""The pages of keys: list, create, shown once, details, revoke."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.responses import RedirectResponse

from keybearer._wire.enums import ApiKeyState, UserType
from keybearer.access import Role
from keybearer_service.console import links
from keybearer_service.console.forms import CreateForm, FormErrors, RevokeForm, errors_of
from keybearer_service.console.key_texts import (
    EXPIRING_SOON,
    REASONS,
    ROLE_WORDS,
    Row,
    happened,
    is_used_lately,
    notices_of,
    reason_words,
    row_of,
)
from keybearer_service.console.links import ListState
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import Problem
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.domain.clock import DAY, Clock, Micros, after
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import (
    FieldInvalid,
    ReplayImpossible,
    RequestIdReused,
    ResourceNotFound,
)
from keybearer_service.domain.model import ApiKey
from keybearer_service.storage import AuditQuery, KeyQuery, UserQuery
from keybearer_service.usecases.access import authorize
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditHistory
from keybearer_service.usecases.identities import IdentityManager
from keybearer_service.usecases.issuing import IssuedKey
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.users import UserManager

UNUSED_FOR: Final = 90 * DAY
COUNTED: Final = 100
"""Keys of a view that are counted; of more it says that there are more."""
HISTORY_PAGE: Final = 20
SUGGESTED_OWNERS: Final = 100
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


class KeyPages:
    """The views of keys. They call use cases, and nothing else."""

    def __init__(
        self,
        pages: Pages,
        keys: KeyManager,
        users: UserManager,
        accounts: AccountManager,
        audit: AuditHistory,
        identities: IdentityManager,
        clock: Clock,
        entropy: Entropy,
        *,
        has_provider: bool,
    ) -> None:
        self._identities = identities
        self._has_provider = has_provider
        self._pages = pages
        self._keys = keys
        self._users = users
        self._accounts = accounts
        self._audit = audit
        self._clock = clock
        self._entropy = entropy

    # --- list -------------------------------------------------------------------------------------

    def list(self, visit: Visit) -> Answer:
        """Show the keys of the account."""
        listing = self._listing(visit)
        return self._above("keys.html", visit, listing, status=400 if listing.problem else 200)

    def _listing(self, visit: Visit) -> Listing:
        state, now = visit.state, self._clock.now()
        query, problem = self._query(visit, state, now)
        found: Sequence[ApiKey] = ()
        next_page = ""
        if not problem:
            try:
                page = self._keys.list(visit.call, query, 0, state.page)
                found, next_page = page.items, page.next_page_token
            except FieldInvalid as error:
                problem = f"{error.description[:1].upper()}{error.description[1:]}."
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

    def _query(self, visit: Visit, state: ListState, now: Micros) -> tuple[KeyQuery, str]:
        scope = authorize(visit.call, "")
        order, descending = ORDERS.get(state.order, ORDERS[""])
        query = KeyQuery(scope=scope, now=now, order_by=order, descending=descending)
        query = replace(query, owner_id=state.owner, name_contains=state.q)
        too_long = len(state.q) > 254 or len(state.owner) > 254  # noqa: PLR2004 - as in the API
        problem = "The text to look for is too long." if too_long else ""
        return replace(query, **_filters(state.view, now)), problem

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
        query = KeyQuery(scope=authorize(visit.call, ""), now=now, **_COUNTED_VIEWS[view])
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

    # --- create -----------------------------------------------------------------------------------

    def new(self, visit: Visit) -> Answer:
        """Show the form for a new key."""
        return self._create_form(visit, CreateForm.fresh(self._entropy))

    def create(self, visit: Visit) -> Answer:
        """Create a key and show its secret, this once."""
        form = CreateForm.read(visit.form)
        try:
            issued = self._create(visit, form)
        except FormErrors as error:
            return self._create_form(visit, form, errors=error.errors, status=400)
        except FieldInvalid as error:
            return self._create_form(visit, form, errors=errors_of(error), status=400)
        except (ReplayImpossible, RequestIdReused) as error:
            return self._made_before(visit, form, is_other=isinstance(error, RequestIdReused))
        return self._shown_once(visit, issued)

    def create_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form for a new key with all that was typed, when it could not be carried out."""
        return self._create_form(visit, CreateForm.read(visit.form), problem=problem)

    def _create(self, visit: Visit, form: CreateForm) -> IssuedKey:
        scope = authorize(visit.call, "")
        new = form.new_key("")
        new = replace(new, owner_id=self._owner_id(visit, form.owner))
        request = form.idempotency_key(scope.only, new.owner_id)
        return self._keys.create(visit.call, scope, new, request)

    def _owner_id(self, visit: Visit, email: str) -> str:
        wanted = email.strip().lower()
        if not wanted:
            return ""
        unknown = FormErrors({"owner": "No user of this account has this e-mail address."})
        if len(wanted) > 254:  # noqa: PLR2004 - as in the API
            raise unknown
        query = UserQuery(scope=authorize(visit.call, ""), email_contains=wanted)
        token = ""
        while True:
            page = self._users.list(visit.call, query, 0, token)
            for user in page.items:
                if user.email == wanted:
                    return user.id
            token = page.next_page_token
            if not token:
                raise unknown

    def _create_form(
        self,
        visit: Visit,
        form: CreateForm,
        *,
        errors: Mapping[str, str] | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        return self._above(
            "create.html",
            visit,
            self._behind(visit, problem),
            status=problem.status if problem else status,
            form=form,
            errors=errors or {},
            problem=problem,
            owners=[] if problem else self._suggested_owners(visit),
            roles=ROLE_WORDS,
        )

    def _suggested_owners(self, visit: Visit) -> Sequence[str]:
        query = UserQuery(scope=authorize(visit.call, ""))
        users = self._users.list(visit.call, query, SUGGESTED_OWNERS, "").items
        ordered = sorted(users, key=lambda user: user.type is not UserType.SERVICE_ACCOUNT)
        return [user.email for user in ordered]

    def _shown_once(self, visit: Visit, issued: IssuedKey) -> Answer:
        answer = self._above(
            "shown.html", visit, self._listing(visit), key=issued.key, token=issued.token
        )
        answer.shows_secret = True
        return answer

    def _made_before(self, visit: Visit, form: CreateForm, *, is_other: bool) -> Answer:
        made = self._keys.made_before(visit.call, form.request_id)
        return self._above(
            "made.html",
            visit,
            self._listing(visit),
            status=409,
            form=form,
            key=None if made is None else made.key,
            next_attempt=made.attempt + 1 if made and made.is_reissuable and not is_other else 0,
            is_other=is_other,
        )

    def saved(self, visit: Visit) -> Answer:
        """Go on from the page that showed a secret."""
        target = links.keys_link(ListState(), at=visit.key_id)
        return Answer(RedirectResponse(target, 303))

    # --- details ----------------------------------------------------------------------------------

    def details(self, visit: Visit) -> Answer:
        """Show everything about a key."""
        key = self._keys.get(visit.call, visit.key_id)
        query = AuditQuery(scope=authorize(visit.call, ""), target_id=key.id)
        query = replace(query, scope=query.scope.narrowed_to(key.account_id))
        try:
            history = self._audit.list(
                visit.call, query, HISTORY_PAGE, visit.query.get("history", "")
            )
        except FieldInvalid:  # a page of another list
            history = self._audit.list(visit.call, query, HISTORY_PAGE, "")
        now = self._clock.now()
        return self._above(
            "details.html",
            visit,
            self._listing(visit),
            key=key,
            row=row_of(key, now),
            reason=reason_words(key),
            notices=list(notices_of(key, now)),
            history=[happened(event) for event in history.items],
            more_history=history.next_page_token,
        )

    # --- revoke -----------------------------------------------------------------------------------

    def revoking(self, visit: Visit) -> Answer:
        """Show the form that revokes a key."""
        return self._revoke_form(visit, RevokeForm())

    def revoke(self, visit: Visit) -> Answer:
        """Revoke a key, and say so above the list."""
        form = RevokeForm.read(visit.form)
        key = self._keys.get(visit.call, visit.key_id)
        if key.revoke_time is not None:
            return self._revoke_form(visit, form)
        try:
            self._keys.revoke(visit.call, visit.key_id, *form.revocation())
        except FormErrors as error:
            return self._revoke_form(visit, form, errors=error.errors, status=400)
        target = links.keys_link(visit.state, revoked=visit.key_id)
        return Answer(RedirectResponse(target, 303))

    def revoke_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form that revokes a key as it was, when it could not be carried out."""
        return self._revoke_form(visit, RevokeForm.read(visit.form), problem=problem)

    def _revoke_form(
        self,
        visit: Visit,
        form: RevokeForm,
        *,
        errors: Mapping[str, str] | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        now = self._clock.now()
        can_read = problem is None or problem.can_read
        key = self._keys.get(visit.call, visit.key_id) if can_read else None
        return self._above(
            "revoke.html",
            visit,
            self._behind(visit, problem),
            status=problem.status if problem else status,
            key=key,
            key_id=visit.key_id,
            form=form,
            errors=errors or {},
            problem=problem,
            reasons=REASONS,
            reason="" if key is None else reason_words(key),
            is_used_lately=key is not None and is_used_lately(key, now),
            leaves_nobody=key is not None
            and key.effective_role is Role.ADMIN
            and self._identities.leaves_nobody(
                key.account_id, with_provider=self._has_provider, without_key=key.id
            ),
        )

    # --- what all need ----------------------------------------------------------------------------

    def _behind(self, visit: Visit, problem: Problem | None) -> Listing | None:
        return self._listing(visit) if problem is None or problem.can_read else None

    def _above(
        self,
        template: str,
        visit: Visit,
        listing: Listing | None,
        *,
        status: int = 200,
        **values: Any,
    ) -> Answer:
        account = "" if listing is None else self._account_name(visit)
        return Answer(
            self._pages.show(
                template, visit, status=status, account=account, listing=listing, **values
            )
        )

    def _account_name(self, visit: Visit) -> str:
        return self._accounts.get(visit.call, visit.call.identity.account_id).name


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
