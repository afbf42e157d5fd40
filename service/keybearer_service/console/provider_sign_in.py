"""Signing in at the provider: the way there and back, proving it again, and its sign-outs."""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog
from starlette.responses import RedirectResponse, Response

from keybearer_service.console import links
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import NOT_FOUND
from keybearer_service.console.provider import Provider, ProviderUnreachable, Request
from keybearer_service.console.provider_tokens import TokenRefused
from keybearer_service.console.sealing import Seal
from keybearer_service.console.signing_in import (
    SOMEBODY_ELSE,
    SignInPages,
    enter,
    forget,
    keep,
)
from keybearer_service.console.visits import (
    ATTEMPT_COOKIE,
    INVITATION_COOKIE,
    PERSON_COOKIE,
    Answer,
    Visit,
)
from keybearer_service.domain.clock import HOUR, MINUTE, SECOND, Clock, Micros, after
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import Code, RoleInsufficient, ServiceError
from keybearer_service.domain.identity import ProvenPerson
from keybearer_service.net.bounds import peer_of
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.usecases.audit import RefusalLog
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.usecases.sign_ins import SignInManager, SignInRefused

log = structlog.get_logger(__name__)

TRIES_A_MINUTE: Final = 20
"""Of one address (IPv6: one /64), in each process: answers, invitations and logouts."""
ATTEMPT_LIVES_FOR: Final = 10 * MINUTE
"""From the way to the provider to the last press of a button."""
_TAG_LENGTH: Final = 8
"""Of its state, what an attempt is known by."""
_MOST_ATTEMPTS: Final = 4
"""A browser with so many unfinished ones begins anew: its headers must not grow without end."""
SIGNED_IN_WITHIN: Final = 8 * HOUR
"""How long ago the person may have signed in at the provider."""
_SECRET_LENGTH: Final = 43
_REFUSALS: Final = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
_AGAIN, _CONNECT, _INVITATION = "again", "connect", "invitation"
_PURPOSES: Final = frozenset({"", _AGAIN, _CONNECT, _INVITATION})
INVITATION_INVALID: Final = "This invitation does not work any more. Ask for a new one."
_INVITATION_LOST: Final = (
    "The invitation was opened in another browser, or more than ten minutes ago. Open its link "
    "once more."
)
_WORDS: Final[Mapping[str, str]] = {
    "NOT_INVITED": "Nobody here is connected with this sign-in. Ask an administrator of your "
    "account for an invitation.",
    "EMAIL_NOT_VERIFIED": "The provider does not say that your e-mail address is yours. Ask an "
    "administrator of your account for an invitation.",
    "EMAIL_UNKNOWN": "No user here has your e-mail address. Ask an administrator of your account.",
    "IDENTITY_TAKEN": "This sign-in is connected with a user already. One sign-in is one user.",
    "USER_HAS_IDENTITY": "This user is connected with another sign-in. An administrator can remove "
    "that one.",
    "INVITATION_INVALID": INVITATION_INVALID,
    RoleInsufficient.reason: "You are no administrator here. The console is for administrators.",
    "SOMEBODY_ELSE": SOMEBODY_ELSE,
}
"""What is said of a refusal; of every other one that it was refused."""
_REFUSED: Final = "The sign-in was refused. Its reason stands in the audit log."
_UNREACHABLE: Final = "The provider cannot be reached at the moment. Nothing was changed."
LOST: Final = (
    "This sign-in was begun in another browser or tab, or more than ten minutes ago. Sign in once "
    "more."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """A sign-in at the provider that is under way. It waits in a sealed cookie."""

    purpose: str
    state: str
    nonce: str
    verifier: str
    since: int
    """The person must have signed in at the provider since then, in microseconds."""
    max_age_s: int
    next_path: str
    session_id: str
    """The session that connects a sign-in with its user; empty for another purpose."""
    who: tuple[str, str]
    """Issuer and subject who must come back; empty for anybody."""
    invitation: str

    def request(self, redirect_uri: str) -> Request:
        """Return what the provider is asked for."""
        return Request(
            redirect_uri=redirect_uri,
            state=self.state,
            nonce=self.nonce,
            verifier=self.verifier,
            max_age_s=self.max_age_s,
        )


def _attempt_cookie(state: str) -> str:
    """Return the name of the cookie of an attempt: several tabs may be at one each."""
    return f"{ATTEMPT_COOKIE}-{state[:_TAG_LENGTH]}"


def _attempts_in(visit: Visit) -> list[str]:
    return [name for name in visit.cookies if name.startswith(ATTEMPT_COOKIE)]


class ProviderPages:
    """The views of signing in at the provider."""

    def __init__(
        self,
        pages: Pages,
        provider: Provider,
        seal: Seal,
        signing_in: SignInPages,
        sign_ins: SignInManager,
        sessions: SessionManager,
        refusals: RefusalLog,
        clock: Clock,
        entropy: Entropy,
        *,
        email_account: str,
        origin: Callable[[], str],
    ) -> None:
        """Create the views.

        Args:
            pages: Renders them.
            provider: Where people sign in.
            seal: Seals what waits in browsers.
            signing_in: The page to sign in at.
            sign_ins: Opens sessions for people, and ends them.
            sessions: Ends the session that a browser had before.
            refusals: Audits sign-ins that were refused.
            clock: Counts tries.
            entropy: Draws what answers must repeat.
            email_account: The account in which a verified address names a user; empty for none.
            origin: Returns the scheme and host of the console.
        """
        self._pages = pages
        self._provider = provider
        self._seal = seal
        self._signing_in = signing_in
        self._sign_ins = sign_ins
        self._sessions = sessions
        self._refusals = refusals
        self._clock = clock
        self._entropy = entropy
        self._email_account = email_account
        self._origin = origin
        self._tries = MinuteQuota(clock, TRIES_A_MINUTE)

    @property
    def _redirect_uri(self) -> str:
        return self._origin() + links.CALLBACK

    # --- to the provider and back -----------------------------------------------------------------

    def start(self, visit: Visit) -> Answer:
        """Send the browser to the provider."""
        purpose = visit.query.get("for", "")
        attempt = self._attempt(visit, purpose if purpose in _PURPOSES else "")
        if attempt is None:
            return self._signing_in.ask(visit, "", status=400, trouble=_INVITATION_LOST)
        if purpose == _AGAIN and attempt.purpose != _AGAIN and visit.is_signed_in:
            # Signed in with a token, which is what proves it again.
            return Answer(RedirectResponse(links.sign_in_link(is_again=True), 303))
        try:
            target = self._provider.sign_in_url(attempt.request(self._redirect_uri))
        except ProviderUnreachable:
            return self._unreachable(visit, attempt)
        response = RedirectResponse(target, 303)
        others = _attempts_in(visit)
        if len(others) >= _MOST_ATTEMPTS:
            for name in others:
                forget(response, name)
        self.keep(response, _attempt_cookie(attempt.state), asdict(attempt))
        return Answer(response)

    def _attempt(self, visit: Visit, purpose: str) -> _Attempt | None:
        """Return a new attempt; None for an invitation that the browser does not have."""
        invitation, session_id, who = "", "", None
        if purpose == _INVITATION:
            invitation = str((self.opened(visit, INVITATION_COOKIE) or {}).get("token", ""))
            if not invitation:
                return None
        if purpose == _AGAIN:
            who = self._sign_ins.person_of(visit.call) if visit.is_signed_in else None
            purpose = _AGAIN if who else ""
        if purpose == _CONNECT:
            session_id = visit.call.identity.session_id if visit.is_signed_in else ""
            purpose = _CONNECT if session_id else ""
        is_again, now = purpose == _AGAIN, self._clock.now()
        return _Attempt(
            purpose=purpose,
            state=self._entropy.base62(_SECRET_LENGTH),
            nonce=self._entropy.base62(_SECRET_LENGTH),
            verifier=self._entropy.base62(_SECRET_LENGTH),
            since=now if is_again else after(now, -SIGNED_IN_WITHIN),
            max_age_s=0 if is_again else SIGNED_IN_WITHIN // SECOND,
            next_path=links.own_path(visit.query.get("next", "")),
            session_id=session_id,
            who=who or ("", ""),
            invitation=invitation,
        )

    def callback(self, visit: Visit) -> Answer:
        """Check the answer of the provider, which is accepted once, and sign in."""
        answer = self._callback(visit)
        cookie = _attempt_cookie(visit.query.get("state", ""))
        if cookie in visit.cookies:
            forget(answer.response, cookie)
        return answer

    def _callback(self, visit: Visit) -> Answer:
        if not self.may_try(visit):
            trouble = "Too many sign-ins from this address. Wait a minute, then try again."
            return self._signing_in.ask(visit, "", status=429, trouble=trouble)
        cookie = _attempt_cookie(visit.query.get("state", ""))
        if cookie not in visit.cookies and _attempts_in(visit):
            return self.refused(visit, "STATE")
        found = self.opened(visit, cookie)
        if found is None:
            return self._signing_in.ask(visit, "", status=400, trouble=LOST)
        attempt = _Attempt(**{**found, "who": tuple(found["who"])})
        try:
            person = self._person(visit, attempt)
        except TokenRefused as refusal:
            return self.refused(visit, refusal.reason, is_again=attempt.purpose == _AGAIN)
        except ProviderUnreachable:
            return self._unreachable(visit, attempt)
        if attempt.who[0] and attempt.who != (person.issuer, person.subject):
            return self.refused(visit, "SOMEBODY_ELSE", is_again=attempt.purpose == _AGAIN)
        if attempt.purpose in (_CONNECT, _INVITATION):
            response = RedirectResponse(links.confirm_link(), 303)
            value = {
                "person": asdict(person),
                "session_id": attempt.session_id,
                "invitation": attempt.invitation,
            }
            self.keep(response, PERSON_COOKIE, value)
            return Answer(response)
        target = links.sign_in_link(attempt.next_path, is_done=True)
        if attempt.purpose == _AGAIN:
            target = links.SIGNED_IN
        return self.entered(visit, person, target)

    def _person(self, visit: Visit, attempt: _Attempt) -> ProvenPerson:
        """Return whom the answer of the provider names.

        Raises:
            TokenRefused: It is not the answer to this attempt, or it was taken before.
            ProviderUnreachable: The provider cannot be asked.
        """
        query = visit.query
        state = query.get("state", "")
        if not hmac.compare_digest(state.encode(), attempt.state.encode()):
            raise TokenRefused("STATE")
        issuer = query.get("iss")
        if issuer is None and self._provider.endpoints().names_itself:
            raise TokenRefused("ISSUER_MISSING")
        if issuer is not None and issuer != self._provider.issuer:
            raise TokenRefused("ISSUER")
        if not self._sign_ins.use_state(visit.call, attempt.state):
            raise TokenRefused("STATE_USED")
        code = query.get("code", "")
        if "error" in query or not code:
            raise TokenRefused("PROVIDER_REFUSED")
        return self._provider.person(
            attempt.request(self._redirect_uri), code, since=Micros(attempt.since)
        )

    def entered(
        self, visit: Visit, person: ProvenPerson, target: str, invitation: str = ""
    ) -> Answer:
        """Open a session for a person whom the provider has named, or say why not.

        Args:
            visit: The answer of the provider, or the press of the button behind it.
            person: The person.
            target: Where to go.
            invitation: The secret of an invitation; empty without one.
        """
        before = visit.call.caller if visit.is_signed_in else None
        visit.call.caller = None
        try:
            token = self._sign_ins.sign_in(
                visit.call,
                person,
                visit.user_agent,
                invitation=invitation,
                email_account=self._email_account,
            )
        except SignInRefused as refusal:
            return self.refused(visit, refusal.reason)
        except ServiceError as refusal:
            if refusal.code not in _REFUSALS:
                raise
            return self.refused(visit, refusal.reason)
        return enter(self._sessions, visit, before, token, target)

    def refused(self, visit: Visit, reason: str, *, is_again: bool = False) -> Answer:
        """Audit a refused sign-in, and return the page that says why.

        Args:
            visit: The answer of the provider, or the press of the button behind it.
            reason: Why.
            is_again: Whether somebody who is signed in was to prove it again, and still is to:
                the page must not lead to a sign-in as anybody.
        """
        before, visit.call.caller = visit.call.caller, None
        self._refusals.refused(visit.call, reason)
        visit.call.caller = before
        trouble = _WORDS.get(reason, _REFUSED)
        if reason == "PROVIDER_REFUSED":
            trouble = "The provider did not sign you in."
        return self._signing_in.ask(visit, "", status=403, trouble=trouble, is_again=is_again)

    def _unreachable(self, visit: Visit, attempt: _Attempt) -> Answer:
        return self._signing_in.ask(
            visit,
            attempt.next_path,
            status=503,
            trouble=_UNREACHABLE,
            is_again=attempt.purpose == _AGAIN,
        )

    def signed_in(self, visit: Visit) -> Answer:
        """Show that the person has proven again who they are."""
        return Answer(self._pages.show("signed_in.html", visit))

    # --- signing out ------------------------------------------------------------------------------

    def sign_out_at_provider(self, visit: Visit) -> Answer:
        """Send the browser to where one signs out of the provider."""
        target = self._provider.sign_out_url()
        if not target:
            return Answer(self._pages.show("problem.html", visit, problem=NOT_FOUND))
        return Answer(RedirectResponse(target, 303))

    def backchannel_logout(self, visit: Visit) -> Answer:
        """End sessions because the provider says so; no cookie of the request is looked at."""
        if not self.may_try(visit):
            return Answer(Response(status_code=429))
        try:
            logout = self._provider.logout(visit.form.get("logout_token", ""))
        except TokenRefused as refusal:
            return self._not_logged_out(visit, refusal.reason)
        except ProviderUnreachable:
            return Answer(Response(status_code=503))
        is_new = self._sign_ins.end_at_provider(
            visit.call,
            self._provider.issuer,
            logout_id=logout.id,
            subject=logout.subject,
            provider_session=logout.provider_session,
        )
        return Answer(Response()) if is_new else self._not_logged_out(visit, "USED")

    def _not_logged_out(self, visit: Visit, reason: str) -> Answer:
        log.warning("backchannel_logout_refused", reason=reason, peer=visit.call.peer)
        return Answer(Response(status_code=400))

    # --- what all need ----------------------------------------------------------------------------

    def may_try(self, visit: Visit) -> bool:
        """Count a try of an address; return whether there may be one more in this minute."""
        self._tries.collect()
        return self._tries.admit(peer_of(visit.call.peer))

    def opened(self, visit: Visit, cookie: str) -> Mapping[str, Any] | None:
        """Return what was sealed into a cookie; None for nothing that is ours and not over."""
        return self._seal.open(cookie, visit.cookies.get(cookie, ""))

    def keep(self, response: Response, cookie: str, value: Mapping[str, Any]) -> None:
        """Have the browser keep a value for ten minutes, sealed."""
        sealed = self._seal.close(cookie, value, ATTEMPT_LIVES_FOR)
        keep(response, cookie, sealed, max_age=ATTEMPT_LIVES_FOR // SECOND)
