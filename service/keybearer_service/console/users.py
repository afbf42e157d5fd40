"""The pages of users: list, create, details, edit, delete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.responses import RedirectResponse

from keybearer._wire.enums import ApiKeyState, UserType
from keybearer._wire.limits import MAX_PAGE_SIZE
from keybearer.access import Role
from keybearer_service.console import links, problems
from keybearer_service.console.audit_texts import Happened, happened_to_user
from keybearer_service.console.forms import EditUserForm, FormErrors, NewUserForm
from keybearer_service.console.key_texts import (
    ROLE_WORDS,
    TYPE_WORDS,
    Row,
    is_used_lately,
    row_of,
)
from keybearer_service.console.links import UserListState
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import Problem, sentence
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.console.ways_in import WaysIn
from keybearer_service.domain import validators
from keybearer_service.domain.clock import MINUTE, Clock
from keybearer_service.domain.errors import (
    EmailTaken,
    EtagMismatch,
    FieldInvalid,
    LastAdmin,
    ResourceNotFound,
)
from keybearer_service.domain.model import ApiKey, User
from keybearer_service.storage import AuditQuery, KeyQuery, UserQuery
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditHistory
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.pagination import Listed
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.usecases.users import Deletion, UserManager

HISTORY_PAGE: Final = 20
SHOWN_KEYS: Final = 20
"""Keys of a user in their details, and of each kind in the preview of a deletion."""
FILTERS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "": ("All", {}),
    "admins": ("Administrators", {"roles": (Role.ADMIN,)}),
    "people": ("People", {"types": (UserType.PERSON,)}),
    "services": ("Service accounts", {"types": (UserType.SERVICE_ACCOUNT,)}),
    "deleted": ("With deleted", {"show_deleted": True}),
}
"""The views of the list: their titles, and what they ask for."""
_UNREVOKED: Final = (ApiKeyState.ACTIVE, ApiKeyState.DISABLED, ApiKeyState.EXPIRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One of the views that the list offers."""

    title: str
    state: UserListState
    is_current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UserListing:
    """The list behind everything that is about users."""

    users: Sequence[User]
    state: UserListState
    views: Sequence[View]
    next_page: UserListState | None
    problem: str = ""
    said: User | None = None
    """The user of whom the page says that they are deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """Keys that a deletion revokes, or may."""

    count: int
    rows: Sequence[Row]
    """The first of them, those that were used last at the head."""
    used_lately: int
    """How many of those that were looked at have been used in the last 7 days."""
    looked_at: int


class UserPages:
    """The views of users. They call use cases, and nothing else."""

    def __init__(
        self,
        pages: Pages,
        users: UserManager,
        keys: KeyManager,
        accounts: AccountManager,
        sessions: SessionManager,
        audit: AuditHistory,
        ways_in: WaysIn,
        clock: Clock,
    ) -> None:
        self._pages = pages
        self._users = users
        self._keys = keys
        self._accounts = accounts
        self._sessions = sessions
        self._audit = audit
        self._ways_in = ways_in
        self._clock = clock

    # --- list -------------------------------------------------------------------------------------

    def list(self, visit: Visit) -> Answer:
        """Show the users of the account."""
        listing = self._listing(visit)
        status = 400 if listing.problem else 200
        return self._show("users.html", visit, listing, status=status)

    def _listing(self, visit: Visit) -> UserListing:
        state = visit.state_of(UserListState)
        found: Sequence[User] = ()
        next_page, problem = "", ""
        try:
            _, wanted = FILTERS.get(state.view, FILTERS[""])
            contained = validators.contained("q", state.q)
            query = UserQuery(scope=visit.scope, email_contains=contained, **wanted)
            page = self._users.list(visit.call, query, 0, state.page)
            found, next_page = page.items, page.next_page_token
        except FieldInvalid as error:
            problem = sentence(error.description)
        return UserListing(
            users=found,
            state=state,
            views=[
                View(title=title, state=state.but(view=name), is_current=name == state.view)
                for name, (title, _) in FILTERS.items()
            ],
            next_page=replace(state, page=next_page) if next_page else None,
            problem=problem,
            said=self._said(visit),
        )

    def _said(self, visit: Visit) -> User | None:
        try:
            user = self._users.get(visit.call, visit.query.get("deleted", ""))
        except (FieldInvalid, ResourceNotFound):
            return None
        return user if user.delete_time is not None else None

    # --- create -----------------------------------------------------------------------------------

    def new(self, visit: Visit) -> Answer:
        """Show the form for a new user."""
        return self._create_form(visit, NewUserForm())

    def create(self, visit: Visit) -> Answer:
        """Create a user, and show them."""
        form = NewUserForm.read(visit.form)
        try:
            new = form.new_user()
            user = self._users.create(visit.call, visit.scope, new)
        except FormErrors as error:
            return self._create_form(visit, form, errors=error.errors, status=400)
        except EmailTaken:
            taken_by = self._users.by_email(visit.call, visit.scope, new.email)
            return self._create_form(visit, form, taken_by=taken_by, status=409)
        return self._done(visit, user.id, "created")

    def create_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form with all that was typed, when it could not be carried out."""
        return self._create_form(visit, NewUserForm.read(visit.form), problem=problem)

    def _create_form(
        self,
        visit: Visit,
        form: NewUserForm,
        *,
        errors: Mapping[str, str] | None = None,
        taken_by: User | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        return self._above(
            "create_user.html",
            visit,
            problem,
            status=status,
            form=form,
            errors=errors or {},
            taken_by=taken_by,
            roles=ROLE_WORDS,
            types=TYPE_WORDS,
        )

    # --- details ----------------------------------------------------------------------------------

    def details(self, visit: Visit) -> Answer:
        """Show everything about a user."""
        user = self._user(visit)
        now = self._clock.now()
        keys = self._keys_of(visit, user, SHOWN_KEYS)
        history, older = self._history(visit, user)
        return self._above(
            "user.html",
            visit,
            None,
            user=user,
            role=ROLE_WORDS[user.role],
            type=TYPE_WORDS[user.type],
            is_self=user.id == visit.call.identity.owner_id,
            signs_in=self._ways_in.has_provider
            and user.type is UserType.PERSON
            and user.delete_time is None,
            rows=[row_of(key, now) for key in keys.items],
            has_more_keys=bool(keys.next_page_token),
            sessions=self._sessions.list_open(visit.call, visit.scope, user.id),
            history=history,
            more_history=older,
            done=_done_words(visit.query.get("done", ""), user, now),
        )

    def _history(self, visit: Visit, user: User) -> tuple[Sequence[Happened], str]:
        query = AuditQuery(scope=visit.scope, target_id=user.id)
        try:
            page = self._audit.list(visit.call, query, HISTORY_PAGE, visit.query.get("history", ""))
        except FieldInvalid:  # a page of another list
            page = self._audit.list(visit.call, query, HISTORY_PAGE, "")
        return [happened_to_user(event) for event in page.items], page.next_page_token

    def _keys_of(self, visit: Visit, user: User, count: int, **wanted: Any) -> Listed[ApiKey]:
        query = KeyQuery(scope=visit.scope, now=self._clock.now(), owner_id=user.id, **wanted)
        return self._keys.list(visit.call, query, count, "")

    # --- edit -------------------------------------------------------------------------------------

    def editing(self, visit: Visit) -> Answer:
        """Show the form that changes a user."""
        return self._edit_form(visit, EditUserForm.of(self._user(visit)))

    def edit(self, visit: Visit) -> Answer:
        """Change a user, and show them."""
        form = EditUserForm.read(visit.form)
        user = self._live(visit)
        try:
            self._users.update(visit.call, user.id, form.update())
        except FormErrors as error:
            return self._edit_form(visit, form, errors=error.errors, status=400)
        except EtagMismatch:
            theirs = self._live(visit)
            # Without a difference it is this very form, sent twice.
            if _differences(form, theirs):
                return self._edit_form(visit, form, theirs=theirs, status=409)
        return self._done(visit, user.id, "edited")

    def edit_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the form with all that was typed, when it could not be carried out."""
        return self._edit_form(visit, EditUserForm.read(visit.form), problem=problem)

    def _edit_form(
        self,
        visit: Visit,
        form: EditUserForm,
        *,
        errors: Mapping[str, str] | None = None,
        theirs: User | None = None,
        problem: Problem | None = None,
        status: int = 200,
    ) -> Answer:
        user = self._live(visit) if problems.can_read(problem) else None
        return self._above(
            "edit_user.html",
            visit,
            problem,
            status=status,
            user=user,
            user_id=visit.user_id,
            is_self=user is not None and user.id == visit.call.identity.owner_id,
            leaves_nobody=user is not None and self._ways_in.none_without_user(user),
            form=form,
            etag=form.etag if theirs is None else theirs.etag,
            changed_at=None if theirs is None else theirs.update_time,
            differences={} if theirs is None else _differences(form, theirs),
            errors=errors or {},
            roles=ROLE_WORDS,
        )

    # --- delete -----------------------------------------------------------------------------------

    def deleting(self, visit: Visit) -> Answer:
        """Show what deleting a user takes along, and ask."""
        return self._delete_form(visit)

    def delete(self, visit: Visit) -> Answer:
        """Delete a user, and say so above the list."""
        user = self._user(visit)
        if user.delete_time is None:
            self._users.delete(
                visit.call,
                user.id,
                validate_only=False,
                revoke_created=bool(visit.form.get("revoke_created")),
            )
        state = visit.state_of(UserListState)
        return Answer(RedirectResponse(links.users_link(state, deleted=user.id), 303))

    def delete_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the question as it was, when it could not be carried out."""
        return self._delete_form(visit, problem=problem)

    def _delete_form(self, visit: Visit, *, problem: Problem | None = None) -> Answer:
        user = self._user(visit) if problems.can_read(problem) else None
        plan = None
        if user is not None and user.delete_time is None:
            try:
                plan = self._users.delete(
                    visit.call, user.id, validate_only=True, revoke_created=False
                )
            except LastAdmin:
                problem = problems.LAST_ADMIN
        return self._above(
            "delete_user.html",
            visit,
            problem,
            user=user,
            user_id=visit.user_id,
            is_last=problem is problems.LAST_ADMIN,
            is_self=user is not None and user.id == visit.call.identity.owner_id,
            leaves_nobody=plan is not None and self._ways_in.none_without_user(plan.user),
            owned=None if plan is None else self._owned(visit, plan),
            others=None if plan is None else self._for_others(visit, plan),
            revoke_created=bool(visit.form.get("revoke_created")),
        )

    def _owned(self, visit: Visit, plan: Deletion) -> Doomed:
        found = self._keys_of(visit, plan.user, MAX_PAGE_SIZE, states=_UNREVOKED)
        return self._doomed(plan.revoked.count, found.items)

    def _for_others(self, visit: Visit, plan: Deletion) -> Doomed:
        keys = []
        for key_id in plan.created_for_others.ids[:MAX_PAGE_SIZE]:
            try:
                keys.append(self._keys.get(visit.call, key_id))
            except ResourceNotFound:  # of an account that the caller may not see
                continue
        return self._doomed(plan.created_for_others.count, keys)

    def _doomed(self, count: int, keys: Sequence[ApiKey]) -> Doomed:
        now = self._clock.now()
        ordered = sorted(keys, key=lambda key: -(key.last_used_time or 0))
        return Doomed(
            count=count,
            rows=[row_of(key, now) for key in ordered[:SHOWN_KEYS]],
            used_lately=sum(is_used_lately(key, now) for key in keys),
            looked_at=len(keys),
        )

    # --- what all need ----------------------------------------------------------------------------

    def _user(self, visit: Visit) -> User:
        user = self._users.get(visit.call, visit.user_id)
        visit.turn_to(user.account_id)
        return user

    def _live(self, visit: Visit) -> User:
        user = self._user(visit)
        if user.delete_time is not None:
            raise ResourceNotFound("user", user.id)
        return user

    def _done(self, visit: Visit, user_id: str, done: str) -> Answer:
        target = links.user_link(user_id, visit.state_of(UserListState), done=done)
        return Answer(RedirectResponse(target, 303))

    def _above(
        self,
        template: str,
        visit: Visit,
        problem: Problem | None,
        *,
        status: int = 200,
        **values: Any,
    ) -> Answer:
        listing = self._listing(visit) if problems.can_read(problem) else None
        return self._show(template, visit, listing, status=status, problem=problem, **values)

    def _show(
        self,
        template: str,
        visit: Visit,
        listing: UserListing | None,
        *,
        status: int,
        **values: Any,
    ) -> Answer:
        account = ""
        if listing is not None:
            account = self._accounts.get(visit.call, visit.scope.only).name
        page = self._pages.show(
            template,
            visit,
            status=status,
            area="users",
            account=account,
            listing=listing,
            users=visit.state_of(UserListState),
            role_words=ROLE_WORDS,
            type_words=TYPE_WORDS,
            **values,
        )
        return Answer(page)


def _differences(form: EditUserForm, theirs: User) -> Mapping[str, str]:
    """Return what a user has where a form without errors says something else."""
    mine = form.update()
    texts = {
        "Name": (mine.display_name, theirs.display_name),
        "Role": (ROLE_WORDS[mine.role], ROLE_WORDS[theirs.role]),
    }
    return {name: there for name, (here, there) in texts.items() if here != there}


def _done_words(done: str, user: User, now: int) -> str:
    """Return what was just done to a user; empty when the user does not look like it."""
    if user.delete_time is not None or now - user.update_time > MINUTE:
        return ""
    words = {
        "created": "The user is there. Keys can be created for them now.",
        "edited": "The change is saved. A role counts from the next check of a key on.",
    }
    return words.get(done, "")
