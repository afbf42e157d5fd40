"""Where things are: every link and every form of the console leads to one of these."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

ROOT: Final = "/console"
KEYS: Final = f"{ROOT}/keys"
NEW_KEY: Final = f"{KEYS}/new"
SIGN_IN: Final = f"{ROOT}/sign-in"
START: Final = f"{SIGN_IN}/start"
CALLBACK: Final = f"{SIGN_IN}/callback"
CONFIRM: Final = f"{SIGN_IN}/confirm"
SIGNED_IN: Final = f"{ROOT}/signed-in"
INVITATION: Final = f"{ROOT}/invitation"
LOGOUT_AT_PROVIDER: Final = f"{ROOT}/sign-out/provider"
BACKCHANNEL_LOGOUT: Final = f"{ROOT}/backchannel-logout"
USERS: Final = f"{ROOT}/users"
SIGN_OUT: Final = f"{ROOT}/sign-out"
SIGNED_OUT: Final = f"{ROOT}/signed-out"
THEME: Final = f"{ROOT}/theme"
STATIC: Final = f"{ROOT}/static"
MAX_NEXT: Final = 2000
"""Characters of a path that is returned to after a sign-in."""


@dataclass(frozen=True, slots=True)
class ListState:
    """Which keys a list shows. It stands in the URL, and in those of what is opened above it."""

    view: str = ""
    q: str = ""
    owner: str = ""
    order: str = ""
    page: str = ""

    @classmethod
    def read(cls, query: Mapping[str, str]) -> "ListState":
        """Return what the query of a URL says."""
        return cls(**{one.name: query.get(one.name, "") for one in fields(cls)})

    def but(self, **changes: str) -> "ListState":
        """Return another list, from its first page on unless a page is named."""
        return replace(self, **{"page": "", **changes})

    @property
    def pairs(self) -> dict[str, str]:
        """What is not as it is without being said."""
        values = {one.name: str(getattr(self, one.name)) for one in fields(self)}
        return {name: value for name, value in values.items() if value}


def keys_link(state: ListState, *, revoked: str = "", at: str = "") -> str:
    """Return the list of keys.

    Args:
        state: Which keys.
        revoked: The key of which the page says that it is revoked.
        at: The key whose link gets the focus.
    """
    fragment = f"#key-{quote(at, safe='')}" if at else ""
    return (
        _with_query(KEYS, {**state.pairs, **({"revoked": revoked} if revoked else {})}) + fragment
    )


def new_key_link(state: ListState) -> str:
    """Return the form for a new key, above a list."""
    return _with_query(NEW_KEY, state.pairs)


def create_link(state: ListState) -> str:
    """Return where the form for a new key is sent."""
    return _with_query(KEYS, state.pairs)


def key_link(key_id: str, state: ListState, *, history: str = "") -> str:
    """Return the details of a key, above a list.

    Args:
        key_id: The key.
        state: The list.
        history: The page of the key's history; empty for the first one.
    """
    pairs = {**state.pairs, **({"history": history} if history else {})}
    return _with_query(f"{KEYS}/{quote(key_id, safe='')}", pairs)


def revoke_link(key_id: str, state: ListState) -> str:
    """Return the form that revokes a key, and where it is sent."""
    return _with_query(f"{KEYS}/{quote(key_id, safe='')}/revoke", state.pairs)


def saved_link(key_id: str) -> str:
    """Return where the page that shows a secret goes on to."""
    return f"{KEYS}/{quote(key_id, safe='')}/saved"


def sign_in_link(next_path: str = "", *, is_done: bool = False, is_again: bool = False) -> str:
    """Return the page to sign in at, and where its form is sent.

    Args:
        next_path: Where to go afterwards.
        is_done: Whether the form was accepted, so that the cookie must have come back.
        is_again: Whether somebody who is signed in is to prove who they are once more.
    """
    pairs = {"next": next_path, "done": "1" if is_done else "", "again": "1" if is_again else ""}
    return _with_query(SIGN_IN, {name: value for name, value in pairs.items() if value})


def start_link(purpose: str = "", next_path: str = "") -> str:
    """Return what leads to the provider.

    Args:
        purpose: Empty to sign in; `again`, `connect` or `invitation`.
        next_path: Where to go afterwards.
    """
    pairs = {"for": purpose, "next": next_path}
    return _with_query(START, {name: value for name, value in pairs.items() if value})


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
    parts = (
        urlsplit(text) if len(text) <= MAX_NEXT and text.isascii() and text.isprintable() else None
    )
    if parts is None or parts.scheme or parts.netloc or "\\" in text:
        return ""
    is_ours = parts.path == KEYS or parts.path.startswith(f"{KEYS}/")
    return text.partition("#")[0] if is_ours and "//" not in parts.path else ""


def _with_query(path: str, pairs: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(pairs)}" if pairs else path


TEMPLATE_FUNCTIONS: Final[Mapping[str, Any]] = {
    one.__name__: one
    for one in (
        keys_link,
        new_key_link,
        create_link,
        key_link,
        revoke_link,
        saved_link,
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
