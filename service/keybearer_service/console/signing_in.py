"""Signing in with the token of an administrator's key, and signing out."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse, Response

from keybearer.access import AccessRule, Role
from keybearer.models import Presented
from keybearer_service.console import links
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import Problem
from keybearer_service.console.provider import Provider
from keybearer_service.console.security import CLEAR_SITE_DATA
from keybearer_service.console.visits import (
    SESSION_COOKIE,
    SHOWN_COOKIE,
    THEME_COOKIE,
    THEMES,
    Answer,
    Visit,
)
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.errors import Code, CredentialsExpired, ServiceError
from keybearer_service.domain.verdict import Caller
from keybearer_service.net.bounds import peer_of
from keybearer_service.net.sign_in import KeySignIn
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.usecases.audit import RefusalLog
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.validation.callers import Callers

TRIES_A_MINUTE: Final = 5
"""Of one address (IPv6: one /64), in each process."""
RULE: Final = AccessRule(role=Role.ADMIN)
"""The console is for administrators."""
_REFUSALS: Final = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
SOMEBODY_ELSE: Final = "You signed in as somebody else. Nothing was changed."
_A_YEAR_S: Final = 365 * 24 * 3600


class SignInPages:
    """The views of signing in and out."""

    def __init__(
        self,
        pages: Pages,
        sessions: SessionManager,
        key_callers: Callers,
        refusals: RefusalLog,
        clock: Clock,
        provider: Provider | None,
        key_sign_in: KeySignIn,
        is_anybody_connected: Callable[[], bool],
    ) -> None:
        """Create the views.

        Args:
            pages: Renders them.
            sessions: Opens and ends sessions.
            key_callers: Knows callers by the tokens of their keys.
            refusals: Audits sign-ins that were refused.
            clock: Counts tries.
            provider: Where people sign in; None for nowhere.
            key_sign_in: Whether a token opens a session.
            is_anybody_connected: Returns whether an operator can sign in at the provider.
        """
        self._pages = pages
        self._sessions = sessions
        self._key_callers = key_callers
        self._refusals = refusals
        self._tries = MinuteQuota(clock, TRIES_A_MINUTE)
        self._provider = provider
        self._key_sign_in = key_sign_in
        self._is_anybody_connected = is_anybody_connected

    def form(self, visit: Visit) -> Answer:
        """Show the form; somebody who is signed in goes on."""
        wanted = links.own_path(visit.query.get("next", ""))
        if visit.is_signed_in and not visit.query.get("again"):
            return Answer(RedirectResponse(wanted or links.KEYS, 303))
        if visit.query.get("done"):
            return self.ask(visit, wanted, status=400, lost_cookie=True)
        return self.ask(visit, wanted)

    def sign_in(self, visit: Visit) -> Answer:
        """Open a session for the holder of an administrator's token."""
        wanted = links.own_path(visit.query.get("next", ""))
        self._tries.collect()
        if not self._tries.admit(peer_of(visit.call.peer)):
            error = "Too many tries from this address. Wait a minute, then try again."
            return self.ask(visit, wanted, status=429, error=error)
        if not self._takes_tokens():
            error = "Tokens open no session here at the moment. Sign in at the provider."
            return self.ask(visit, wanted, status=403, error=error)
        before = visit.call.caller if visit.is_signed_in else None
        visit.call.caller = None
        presented = Presented(visit.form.get("token", "").strip(), visit.call.peer)
        try:
            caller = self._key_callers.admit(visit.call, presented)
            if visit.query.get("again") and before and before.owner_id != caller.owner_id:
                self._refusals.refused(visit.call, "SOMEBODY_ELSE")
                visit.call.caller = before
                return self.ask(visit, wanted, status=403, error=SOMEBODY_ELSE)
            failed = self._provider is not None and self._provider.is_down()
            token = self._sessions.open(visit.call, visit.user_agent, provider_failed=failed)
        except ServiceError as refusal:
            if refusal.code not in _REFUSALS:
                raise
            self._refusals.refused(visit.call, refusal.reason)
            visit.call.caller = None
            return self.ask(visit, wanted, status=403, error=_words(refusal))
        return enter(self._sessions, visit, before, token, links.sign_in_link(wanted, is_done=True))

    def _takes_tokens(self) -> bool:
        if self._key_sign_in != "auto":
            return self._key_sign_in == "on"
        if self._provider is None or not self._is_anybody_connected():
            return True
        return self._provider.is_down()

    def sign_out(self, visit: Visit) -> Answer:
        """End the session, and have the browser forget what it kept."""
        self._sessions.end(visit.call)
        return self.signed_out(visit)

    def sign_out_again(self, visit: Visit, problem: Problem) -> Answer:
        """Return the page for a user who is already signed out, or the question again."""
        if problem.asks_to_sign_in:
            return self.signed_out(visit)
        return Answer(self._pages.show("sign_out.html", visit, problem=problem))

    def signed_out(self, visit: Visit) -> Answer:
        """Return the page for a user who has signed out."""
        visit.call.caller = None
        at_provider = self._provider is not None and bool(self._provider.sign_out_url())
        response = self._pages.show("signed_out.html", visit, at_provider=at_provider)
        forget(response, SESSION_COOKIE)
        forget(response, SHOWN_COOKIE)
        response.headers["clear-site-data"] = CLEAR_SITE_DATA
        return Answer(response)

    def theme(self, visit: Visit) -> Answer:
        """Keep the choice of light or dark, and go back."""
        chosen = visit.form.get("theme", "")
        target = links.own_path(visit.form.get("next", "")) or links.KEYS
        response = RedirectResponse(target, 303)
        if chosen in THEMES:
            keep(response, THEME_COOKIE, chosen, max_age=_A_YEAR_S)
        return Answer(response)

    def ask(
        self,
        visit: Visit,
        wanted: str,
        *,
        status: int = 200,
        error: str = "",
        trouble: str = "",
        lost_cookie: bool = False,
        is_again: bool = False,
    ) -> Answer:
        """Show the page to sign in at.

        Args:
            visit: Whose answer it is.
            wanted: Where to go afterwards; empty for the list.
            status: The status.
            error: What is wrong with the token that was typed.
            trouble: Why a sign-in at the provider did not succeed.
            lost_cookie: Whether the browser has not sent the cookie of its session back.
            is_again: Whether somebody who is signed in was to prove it again.
        """
        return Answer(
            self._pages.show(
                "sign_in.html",
                visit,
                status=status,
                next_path=wanted,
                error=error,
                trouble=trouble,
                lost_cookie=lost_cookie,
                is_again=is_again or bool(visit.query.get("again")),
                provider="" if self._provider is None else name_of(self._provider.issuer),
                takes_tokens=self._takes_tokens(),
                is_down=self._provider is not None and self._provider.is_down(),
            )
        )


def name_of(issuer: str) -> str:
    """Return what people call a provider: its host."""
    return urlsplit(issuer).netloc


def enter(
    sessions: SessionManager, visit: Visit, before: Caller | None, token: str, target: str
) -> Answer:
    """Return the answer that gives a browser its new session.

    Args:
        sessions: Ends the one before: one browser has one session.
        visit: The sign-in.
        before: Who the browser was signed in as before.
        token: The token of the new session.
        target: Where to go.
    """
    if before is not None:
        visit.call.caller = before
        # Unless it has ended by itself.
        with suppress(ServiceError):
            sessions.end(visit.call)
    visit.call.caller = None
    response = RedirectResponse(target, 303)
    keep(response, SESSION_COOKIE, token)
    return Answer(response)


def set_shown(response: Response, value: str) -> None:
    """Note in the browser that it was shown a secret."""
    keep(response, SHOWN_COOKIE, value)


def forget(response: Response, name: str) -> None:
    """Have the browser forget a cookie."""
    response.delete_cookie(name, path="/", secure=True, httponly=True, samesite="lax")


def keep(response: Response, name: str, value: str, max_age: int | None = None) -> None:
    """Have the browser keep a cookie, for seconds or until it is closed."""
    response.set_cookie(
        name, value, max_age=max_age, path="/", secure=True, httponly=True, samesite="lax"
    )


def _words(refusal: ServiceError) -> str:
    if isinstance(refusal, CredentialsExpired):
        return "This key has expired."
    if refusal.code is Code.PERMISSION_DENIED:
        return "This key is not an administrator's. The console needs the token of an ADMIN key."
    return "This is not the token of a key that works."
