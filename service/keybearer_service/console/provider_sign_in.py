"""Signing in at the provider, and connecting people there with users here."""

import hmac
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog
from starlette.responses import RedirectResponse, Response

from keybearer_service.console import links
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import (
    NOT_FOUND,
    SIGN_IN_AGAIN,
    SIGNED_OUT,
    STALE_FORM,
    Problem,
)
from keybearer_service.console.provider import Provider, ProviderUnreachable, Request
from keybearer_service.console.provider_tokens import TokenRefused
from keybearer_service.console.sealing import Seal
from keybearer_service.console.signing_in import (
    SOMEBODY_ELSE,
    SignInPages,
    enter,
    forget,
    keep,
    name_of,
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
from keybearer_service.domain.errors import (
    Code,
    FieldInvalid,
    RoleInsufficient,
    ServiceError,
    SignInAgain,
)
from keybearer_service.domain.identity import ProvenPerson
from keybearer_service.net.bounds import peer_of
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import RefusalLog
from keybearer_service.usecases.identities import IdentityManager
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.usecases.sign_ins import SignInManager, SignInRefused

log = structlog.get_logger(__name__)

TRIES_A_MINUTE: Final = 20
"""Of one address (IPv6: one /64), in each process: answers, invitations and logouts."""
ATTEMPT_LIVES_FOR: Final = 10 * MINUTE
"""From the way to the provider to the last press of a button."""
SIGNED_IN_WITHIN: Final = 8 * HOUR
"""How long ago the person may have signed in at the provider."""
_SECRET_LENGTH: Final = 43
_REFUSALS: Final = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
_AGAIN, _CONNECT, _INVITATION = "again", "connect", "invitation"
_PURPOSES: Final = frozenset({"", _AGAIN, _CONNECT, _INVITATION})
_WORDS: Final[Mapping[str, str]] = {
    "NOT_INVITED": "Nobody here is connected with this sign-in. Ask an administrator of your "
    "account for an invitation.",
    "EMAIL_NOT_VERIFIED": "The provider does not say that your e-mail address is yours. Ask an "
    "administrator of your account for an invitation.",
    "EMAIL_UNKNOWN": "No user here has your e-mail address. Ask an administrator of your account.",
    "IDENTITY_TAKEN": "This sign-in is connected with a user already. One sign-in is one user.",
    "USER_HAS_IDENTITY": "This user is connected with another sign-in. An administrator can remove "
    "that one.",
    "INVITATION_INVALID": "This invitation does not work any more. Ask for a new one.",
    RoleInsufficient.reason: "You are no administrator here. The console is for administrators.",
    "SOMEBODY_ELSE": SOMEBODY_ELSE,
}
"""What is said of a refusal; of every other one that it was refused."""
_REFUSED: Final = "The sign-in was refused. Its reason stands in the audit log."
_UNREACHABLE: Final = "The provider cannot be reached at the moment. Nothing was changed."
_LOST: Final = (
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
        identities: IdentityManager,
        accounts: AccountManager,
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
            identities: Binds people to users.
            accounts: Names accounts.
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
        self._identities = identities
        self._accounts = accounts
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
            return self._invitation_page(visit, error=_WORDS["INVITATION_INVALID"], status=400)
        if purpose == _AGAIN and attempt.purpose != _AGAIN and visit.is_signed_in:
            # Signed in with a token, which is what proves it again.
            return Answer(RedirectResponse(links.sign_in_link(is_again=True), 303))
        try:
            target = self._provider.sign_in_url(attempt.request(self._redirect_uri))
        except ProviderUnreachable:
            return self._signing_in.ask(visit, attempt.next_path, status=503, trouble=_UNREACHABLE)
        response = RedirectResponse(target, 303)
        self._keep(response, ATTEMPT_COOKIE, asdict(attempt))
        return Answer(response)

    def _attempt(self, visit: Visit, purpose: str) -> _Attempt | None:
        """Return a new attempt; None for an invitation that the browser does not have."""
        invitation, session_id, who = "", "", None
        if purpose == _INVITATION:
            invitation = str((self._opened(visit, INVITATION_COOKIE) or {}).get("token", ""))
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
        forget(answer.response, ATTEMPT_COOKIE)
        return answer

    def _callback(self, visit: Visit) -> Answer:
        if not self._may_try(visit):
            trouble = "Too many sign-ins from this address. Wait a minute, then try again."
            return self._signing_in.ask(visit, "", status=429, trouble=trouble)
        found = self._opened(visit, ATTEMPT_COOKIE)
        if found is None:
            return self._signing_in.ask(visit, "", status=400, trouble=_LOST)
        attempt = _Attempt(**{**found, "who": tuple(found["who"])})
        try:
            person = self._person(visit, attempt)
        except TokenRefused as refusal:
            return self._refused(visit, refusal.reason)
        except ProviderUnreachable:
            return self._signing_in.ask(visit, attempt.next_path, status=503, trouble=_UNREACHABLE)
        if attempt.who[0] and attempt.who != (person.issuer, person.subject):
            return self._refused(visit, "SOMEBODY_ELSE")
        if attempt.purpose in (_CONNECT, _INVITATION):
            response = RedirectResponse(links.confirm_link(), 303)
            value = {
                "person": asdict(person),
                "session_id": attempt.session_id,
                "invitation": attempt.invitation,
            }
            self._keep(response, PERSON_COOKIE, value)
            return Answer(response)
        target = links.sign_in_link(attempt.next_path, is_done=True)
        if attempt.purpose == _AGAIN:
            target = links.SIGNED_IN
        return self._entered(visit, person, target)

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

    def _entered(
        self, visit: Visit, person: ProvenPerson, target: str, invitation: str = ""
    ) -> Answer:
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
            return self._refused(visit, refusal.reason)
        except ServiceError as refusal:
            if refusal.code not in _REFUSALS:
                raise
            return self._refused(visit, refusal.reason)
        return enter(self._sessions, visit, before, token, target)

    def _refused(self, visit: Visit, reason: str) -> Answer:
        before, visit.call.caller = visit.call.caller, None
        self._refusals.refused(visit.call, reason)
        visit.call.caller = before
        trouble = _WORDS.get(reason, _REFUSED)
        if reason == "PROVIDER_REFUSED":
            trouble = "The provider did not sign you in."
        return self._signing_in.ask(visit, "", status=403, trouble=trouble)

    def signed_in(self, visit: Visit) -> Answer:
        """Show that the person has proven again who they are."""
        return Answer(self._pages.show("signed_in.html", visit))

    # --- connecting -------------------------------------------------------------------------------

    def invitation(self, visit: Visit) -> Answer:
        """Show the page that an invitation leads to; the script sends the secret on."""
        return self._invitation_page(visit)

    def invited(self, visit: Visit) -> Answer:
        """Show whom an invitation is for, with a link to the provider."""
        token = visit.form.get("invitation", "").strip().rpartition("#")[2]
        if not self._may_try(visit):
            error = "Too many tries from this address. Wait a minute, then try again."
            return self._invitation_page(visit, error=error, status=429)
        invited = self._identities.invited(token)
        if invited is None:
            return self._invitation_page(visit, error=_WORDS["INVITATION_INVALID"], status=400)
        answer = Answer(
            self._pages.show(
                "invited.html", visit, invited=invited, provider=name_of(self._provider.issuer)
            )
        )
        self._keep(answer.response, INVITATION_COOKIE, {"token": token})
        return answer

    def _invitation_page(self, visit: Visit, *, error: str = "", status: int = 200) -> Answer:
        return Answer(self._pages.show("invitation.html", visit, status=status, error=error))

    def confirming(self, visit: Visit) -> Answer:
        """Ask whether a sign-in and a user are to be connected, and name both."""
        found = self._opened(visit, PERSON_COOKIE)
        if found is None:
            return self._signing_in.ask(visit, "", status=400, trouble=_LOST)
        return self._question(visit, found)

    def _question(
        self, visit: Visit, found: Mapping[str, Any], problem: Problem | None = None
    ) -> Answer:
        invitation = found["invitation"]
        if invitation:
            invited = self._identities.invited(invitation)
            if invited is None:
                return self._refused(visit, "INVITATION_INVALID")
            user_email, account = invited.user.email, invited.account.name
        elif visit.is_signed_in:
            caller = visit.call.identity
            user_email = caller.owner_email
            account = self._accounts.get(visit.call, caller.account_id).name
        else:
            return self._signing_in.ask(visit, "", status=401, trouble=SIGNED_OUT.title)
        person = found["person"]
        return Answer(
            self._pages.show(
                "confirm.html",
                visit,
                status=problem.status if problem else 200,
                problem=problem,
                provider=name_of(self._provider.issuer),
                person=person["email"] or person["subject"],
                user_email=user_email,
                account_name=account,
            )
        )

    def confirm(self, visit: Visit) -> Answer:
        """Connect a sign-in with a user."""
        found = self._opened(visit, PERSON_COOKIE)
        if found is None:
            return self._signing_in.ask(visit, "", status=400, trouble=_LOST)
        person = ProvenPerson(**found["person"])
        if found["invitation"]:
            target = links.sign_in_link(is_done=True)
            answer = self._entered(visit, person, target, found["invitation"])
        else:
            answer = self._connected(visit, found, person)
            if answer.response.status_code == STALE_FORM.status:
                return answer  # asked once more
        forget(answer.response, PERSON_COOKIE)
        forget(answer.response, INVITATION_COOKIE)
        return answer

    def _connected(self, visit: Visit, found: Mapping[str, Any], person: ProvenPerson) -> Answer:
        if not visit.is_signed_in:
            return self._signing_in.ask(visit, "", status=401, trouble=SIGNED_OUT.title)
        if visit.call.identity.session_id != found["session_id"]:
            return self._refused(visit, "SOMEBODY_ELSE")
        if not visit.has_csrf:
            return self._question(visit, found, STALE_FORM)
        try:
            self._identities.connect(visit.call, person)
        except SignInRefused as refusal:
            return self._refused(visit, refusal.reason)
        except SignInAgain:
            return self._question(visit, found, SIGN_IN_AGAIN)
        target = links.user_sign_in_link(visit.call.identity.owner_id)
        return Answer(RedirectResponse(target, 303))

    # --- how a user signs in ----------------------------------------------------------------------

    def of_user(self, visit: Visit) -> Answer:
        """Show how a user signs in."""
        return self._of_user(visit)

    def of_user_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show how a user signs in, when it could not be changed."""
        if not problem.can_read:
            return Answer(
                self._pages.show("problem.html", visit, status=problem.status, problem=problem)
            )
        return self._of_user(visit, problem=problem)

    def _of_user(self, visit: Visit, *, problem: Problem | None = None, error: str = "") -> Answer:
        state = self._identities.state_of(visit.call, visit.user_id)
        user, caller = state.user, visit.call.identity
        is_last = state.identity is not None and self._identities.leaves_nobody(
            user.account_id, with_provider=True, without_identity_of=user.id
        )
        return Answer(
            self._pages.show(
                "user_sign_in.html",
                visit,
                status=problem.status if problem else 400 if error else 200,
                account=self._accounts.get(visit.call, user.account_id).name,
                user=user,
                identity=state.identity,
                invitation=state.invitation,
                provider=name_of(self._provider.issuer),
                is_other_provider=state.identity is not None
                and state.identity.issuer != self._provider.issuer,
                is_self=user.id == caller.owner_id,
                is_last=is_last,
                problem=problem,
                error=error,
            )
        )

    def invite(self, visit: Visit) -> Answer:
        """Invite a person, and show the link, this once."""
        try:
            issued = self._identities.invite(visit.call, visit.user_id)
        except FieldInvalid as error:
            text = f"{error.description[:1].upper()}{error.description[1:]}."
            return self._of_user(visit, error=text)
        link = f"{self._origin()}{links.invitation_link()}#{issued.token}"
        response = self._pages.show(
            "invitation_shown.html",
            visit,
            account=self._accounts.get(visit.call, issued.user.account_id).name,
            user=issued.user,
            link=link,
            expire_time=issued.expire_time,
        )
        return Answer(response, shows_secret=True)

    def remove(self, visit: Visit) -> Answer:
        """Remove the sign-in of a user."""
        user = self._identities.remove(visit.call, visit.user_id)
        return Answer(RedirectResponse(links.user_sign_in_link(user.id), 303))

    # --- signing out ------------------------------------------------------------------------------

    def sign_out_at_provider(self, visit: Visit) -> Answer:
        """Send the browser to where one signs out of the provider."""
        target = self._provider.sign_out_url()
        if not target:
            return Answer(self._pages.show("problem.html", visit, status=404, problem=NOT_FOUND))
        return Answer(RedirectResponse(target, 303))

    def backchannel_logout(self, visit: Visit) -> Answer:
        """End sessions because the provider says so; no cookie of the request is looked at."""
        if not self._may_try(visit):
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

    def _may_try(self, visit: Visit) -> bool:
        self._tries.collect()
        return self._tries.admit(peer_of(visit.call.peer))

    def _opened(self, visit: Visit, cookie: str) -> Mapping[str, Any] | None:
        return self._seal.open(cookie, visit.cookies.get(cookie, ""))

    def _keep(self, response: Response, cookie: str, value: Mapping[str, Any]) -> None:
        sealed = self._seal.close(cookie, value, ATTEMPT_LIVES_FOR)
        keep(response, cookie, sealed, max_age=ATTEMPT_LIVES_FOR // SECOND)
