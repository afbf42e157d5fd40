"""Where things are: every link and every form of the console leads to one of these."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

ROOT: Final = "/console"
KEYS: Final = f"{ROOT}/keys"
NEW_KEY: Final = f"{KEYS}/new"
REVOKE_KEYS: Final = f"{KEYS}/revoke"
EXPORT_KEYS: Final = f"{KEYS}/export.csv"
USERS: Final = f"{ROOT}/users"
NEW_USER: Final = f"{USERS}/new"
AUDIT: Final = f"{ROOT}/audit"
EXPORT_AUDIT: Final = f"{AUDIT}/export.csv"
SESSIONS: Final = f"{ROOT}/sessions"
ACCOUNTS: Final = f"{ROOT}/accounts"
SIGN_IN: Final = f"{ROOT}/sign-in"
START: Final = f"{SIGN_IN}/start"
CALLBACK: Final = f"{SIGN_IN}/callback"
CONFIRM: Final = f"{SIGN_IN}/confirm"
SIGNED_IN: Final = f"{ROOT}/signed-in"
INVITATION: Final = f"{ROOT}/invitation"
LOGOUT_AT_PROVIDER: Final = f"{ROOT}/sign-out/provider"
BACKCHANNEL_LOGOUT: Final = f"{ROOT}/backchannel-logout"
SIGN_OUT: Final = f"{ROOT}/sign-out"
SIGNED_OUT: Final = f"{ROOT}/signed-out"
THEME: Final = f"{ROOT}/theme"
STATIC: Final = f"{ROOT}/static"
AREAS: Final = {"keys": KEYS, "users": USERS, "audit": AUDIT, "sessions": SESSIONS}
"""The lists that stand in the head of every page."""
MAX_NEXT: Final = 2000
"""Characters of a path that is returned to after a sign-in."""


@dataclass(frozen=True, slots=True)
class PageState:
    """What a list shows. It stands in the URL, and in those of what is opened above the list."""

    account: str = ""
    """The account that an operator looks at; empty for one's own."""
    page: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> Self:
        """Return what the query of a URL says."""
        return cls(**{one.name: query.get(one.name, "") for one in fields(cls)})

    def but(self, **changes: str) -> Self:
        """Return another list, from its first page on unless a page is named."""
        return replace(self, **{"page": "", **changes})

    @property
    def pairs(self) -> dict[str, str]:
        """What is not as it is without being said."""
        values = {one.name: str(getattr(self, one.name)) for one in fields(self)}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class ListState(PageState):
    """Which keys a list shows, and in which order."""

    view: str = ""
    q: str = ""
    owner: str = ""
    order: str = ""


@dataclass(frozen=True, slots=True)
class UserListState(PageState):
    """Which users a list shows."""

    view: str = ""
    q: str = ""


@dataclass(frozen=True, slots=True)
class AuditState(PageState):
    """Which events the log shows."""

    actor: str = ""
    """An id, or the e-mail address of a user."""
    target: str = ""
    """The same."""
    action: str = ""
    after: str = ""
    """A day, as all of these in UTC and as 2026-05-10: events of this day and of later ones."""
    before: str = ""
    """A day: events of this day and of earlier ones."""


@dataclass(frozen=True, slots=True)
class AccountListState(PageState):
    """Which accounts the picker offers."""

    q: str = ""


def area_link(area: str, account: str) -> str:
    """Return one of the areas, as it is without filters.

    Args:
        area: One of AREAS.
        account: The account that is looked at; empty for one's own.
    """
    return _with_query(AREAS[area], {"account": account})


def keys_link(state: ListState, *, revoked: str = "", at: str = "") -> str:
    """Return the list of keys.

    Args:
        state: Which keys.
        revoked: The key of which the page says that it is revoked.
        at: The link or button that gets the focus, such as `create`, or `key-` and the id of a key.
    """
    fragment = f"#{quote(at, safe='')}" if at else ""
    return _with_query(KEYS, {**state.pairs, "revoked": revoked}) + fragment


def new_key_link(state: ListState) -> str:
    """Return the form for a new key, above a list."""
    return _with_query(NEW_KEY, state.pairs)


def create_key_link(state: ListState) -> str:
    """Return where the form for a new key is sent."""
    return _with_query(KEYS, state.pairs)


def key_link(key_id: str, state: ListState, *, history: str = "", done: str = "") -> str:
    """Return the details of a key, above a list.

    Args:
        key_id: The key.
        state: The list.
        history: The page of the key's history; empty for the first one.
        done: What was just done to the key.
    """
    query = {**state.pairs, "history": history, "done": done}
    return _with_query(f"{KEYS}/{quote(key_id, safe='')}", query)


def revoke_link(key_id: str, state: ListState) -> str:
    """Return the form that revokes a key, and where it is sent."""
    return change_key_link(key_id, "revoke", state)


def change_key_link(key_id: str, change: str, state: ListState) -> str:
    """Return the form of a change of a key, and where it is sent.

    Args:
        key_id: The key.
        change: `edit`, `rotate`, `disable`, `enable`, `end-old-secret` or `revoke`.
        state: The list.
    """
    return _with_query(f"{KEYS}/{quote(key_id, safe='')}/{change}", state.pairs)


def revoke_keys_link(state: ListState) -> str:
    """Return the form that revokes several keys, and where it is sent."""
    return _with_query(REVOKE_KEYS, state.pairs)


def export_keys_link(state: ListState) -> str:
    """Return the keys of a list as a file."""
    return _with_query(EXPORT_KEYS, state.but().pairs)


def export_audit_link(state: AuditState) -> str:
    """Return a part of the log as a file."""
    return _with_query(EXPORT_AUDIT, state.but().pairs)


def accounts_link(state: AccountListState) -> str:
    """Return the accounts that an operator can look at."""
    return _with_query(ACCOUNTS, state.pairs)


def pick_account_link(account: str) -> str:
    """Return the accounts to choose from, when one is looked at."""
    return accounts_link(AccountListState(account=account))


def saved_link(key_id: str, state: ListState) -> str:
    """Return where the page that shows a secret goes on to."""
    return _with_query(f"{KEYS}/{quote(key_id, safe='')}/saved", state.pairs)


def users_link(state: UserListState, *, deleted: str = "", at: str = "") -> str:
    """Return the list of users.

    Args:
        state: Which users.
        deleted: The user of whom the page says that they are deleted.
        at: The link that gets the focus, such as `create`, or `user-` and the id of a user.
    """
    fragment = f"#{quote(at, safe='')}" if at else ""
    return _with_query(USERS, {**state.pairs, "deleted": deleted}) + fragment


def new_user_link(state: UserListState) -> str:
    """Return the form for a new user, above a list."""
    return _with_query(NEW_USER, state.pairs)


def create_user_link(state: UserListState) -> str:
    """Return where the form for a new user is sent."""
    return _with_query(USERS, state.pairs)


def user_link(user_id: str, state: UserListState, *, history: str = "", done: str = "") -> str:
    """Return the details of a user, above a list.

    Args:
        user_id: The user.
        state: The list.
        history: The page of what was done to the user; empty for the first one.
        done: What was just done to the user.
    """
    query = {**state.pairs, "history": history, "done": done}
    return _with_query(f"{USERS}/{quote(user_id, safe='')}", query)


def change_user_link(user_id: str, change: str, state: UserListState) -> str:
    """Return the form of a change of a user, and where it is sent.

    Args:
        user_id: The user.
        change: `edit` or `delete`.
        state: The list.
    """
    return _with_query(f"{USERS}/{quote(user_id, safe='')}/{change}", state.pairs)


def audit_link(state: AuditState) -> str:
    """Return a part of the log."""
    return _with_query(AUDIT, state.pairs)


def events_link(account: str, *, target: str = "", actor: str = "") -> str:
    """Return the events about something, or of somebody."""
    return audit_link(AuditState(account=account, target=target, actor=actor))


def keys_of_link(user_id: str, account: str) -> str:
    """Return the keys of a user."""
    return keys_link(ListState(account=account, owner=user_id))


def key_of_link(key_id: str, account: str) -> str:
    """Return the details of a key, from a page that stands above no list of keys."""
    return key_link(key_id, ListState(account=account))


def user_of_link(user_id: str, account: str) -> str:
    """Return the details of a user, from a page that stands above no list of users."""
    return user_link(user_id, UserListState(account=account))


def end_session_link(session_id: str, account: str) -> str:
    """Return where the form is sent that ends a session."""
    path = f"{SESSIONS}/{quote(session_id, safe='')}/end"
    return _with_query(path, {"account": account})


def sign_in_link(next_path: str = "", *, is_done: bool = False, is_again: bool = False) -> str:
    """Return the page to sign in at, and where its form is sent.

    Args:
        next_path: Where to go afterwards.
        is_done: Whether the form was accepted, so that the cookie must have come back.
        is_again: Whether somebody who is signed in is to prove who they are once more.
    """
    pairs = {"next": next_path, "done": "1" if is_done else "", "again": "1" if is_again else ""}
    return _with_query(SIGN_IN, pairs)


def start_link(purpose: str = "", next_path: str = "") -> str:
    """Return what leads to the provider.

    Args:
        purpose: Empty to sign in; `again`, `connect` or `invitation`.
        next_path: Where to go afterwards.
    """
    return _with_query(START, {"for": purpose, "next": next_path})


def confirm_link() -> str:
    """Return the question whether a sign-in is to be connected, and where its form is sent."""
    return CONFIRM


def invitation_link() -> str:
    """Return the page of an invitation, and where its form is sent."""
    return INVITATION


def user_sign_in_link(user_id: str, change: str = "") -> str:
    """Return how a user signs in, or where a form is sent that changes it.

    Args:
        user_id: The user.
        change: Empty for the page; `invite` or `remove`.
    """
    page = f"{USERS}/{quote(user_id, safe='')}/sign-in"
    return f"{page}/{change}" if change else page


def provider_sign_out_link() -> str:
    """Return what leads to the sign-out at the provider."""
    return LOGOUT_AT_PROVIDER


def sign_out_link() -> str:
    """Return where the form that signs out is sent."""
    return SIGN_OUT


def theme_link() -> str:
    """Return where the choice of light or dark is sent."""
    return THEME


def own_path(text: str) -> str:
    """Return a path of the console, and nothing else; empty for everything else."""
    if len(text) > MAX_NEXT or not text.isascii() or not text.isprintable() or "\\" in text:
        return ""
    target = text.partition("#")[0]
    path = target.partition("?")[0]
    is_ours = any(
        path == area or path.startswith(f"{area}/") for area in (*AREAS.values(), ACCOUNTS)
    )
    return target if is_ours and "//" not in path else ""


def _with_query(path: str, pairs: Mapping[str, str]) -> str:
    """Return a path with those of the pairs that have a value."""
    query = urlencode({name: value for name, value in pairs.items() if value})
    return f"{path}?{query}" if query else path


TEMPLATE_FUNCTIONS: Final[Mapping[str, Any]] = {
    one.__name__: one
    for one in (
        area_link,
        keys_link,
        new_key_link,
        create_key_link,
        key_link,
        revoke_link,
        change_key_link,
        revoke_keys_link,
        export_keys_link,
        export_audit_link,
        accounts_link,
        pick_account_link,
        saved_link,
        users_link,
        new_user_link,
        create_user_link,
        user_link,
        change_user_link,
        audit_link,
        events_link,
        keys_of_link,
        key_of_link,
        user_of_link,
        end_session_link,
        sign_in_link,
        start_link,
        confirm_link,
        invitation_link,
        user_sign_in_link,
        provider_sign_out_link,
        sign_out_link,
        theme_link,
    )
}
"""What the templates build links with."""
