"""Connecting people at the provider with users here: invitations, and how a user signs in."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import RedirectResponse

from keybearer_service.console import links
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import (
    SIGN_IN_AGAIN,
    SIGNED_OUT,
    STALE_FORM,
    Problem,
    sentence,
)
from keybearer_service.console.provider_sign_in import INVITATION_INVALID, LOST, ProviderPages
from keybearer_service.console.signing_in import SignInPages, forget, name_of
from keybearer_service.console.visits import INVITATION_COOKIE, PERSON_COOKIE, Answer, Visit
from keybearer_service.console.ways_in import WaysIn
from keybearer_service.domain.errors import FieldInvalid, SignInAgain
from keybearer_service.domain.identity import ProvenPerson
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.identities import IdentityManager
from keybearer_service.usecases.sign_ins import SignInRefused


class ConnectingPages:
    """The views of invitations and of what connects a sign-in with a user."""

    def __init__(
        self,
        pages: Pages,
        flow: ProviderPages,
        signing_in: SignInPages,
        identities: IdentityManager,
        accounts: AccountManager,
        ways_in: WaysIn,
        *,
        issuer: str,
        origin: Callable[[], str],
    ) -> None:
        """Create the views.

        Args:
            pages: Renders them.
            flow: The way to the provider and back.
            signing_in: The page to sign in at.
            identities: Binds people to users.
            accounts: Names accounts.
            ways_in: Knows who else can administer an account.
            issuer: The provider.
            origin: Returns the scheme and host of the console.
        """
        self._pages = pages
        self._flow = flow
        self._signing_in = signing_in
        self._identities = identities
        self._accounts = accounts
        self._ways_in = ways_in
        self._issuer = issuer
        self._origin = origin

    # --- connecting -------------------------------------------------------------------------------

    def invitation(self, visit: Visit) -> Answer:
        """Show the page that an invitation leads to; the script sends the secret on."""
        return self._invitation_page(visit)

    def invited(self, visit: Visit) -> Answer:
        """Show whom an invitation is for, with a link to the provider."""
        token = visit.form.get("invitation", "").strip().rpartition("#")[2]
        if not self._flow.may_try(visit):
            error = "Too many tries from this address. Wait a minute, then try again."
            return self._invitation_page(visit, error=error, status=429)
        invited = self._identities.invited(token)
        if invited is None:
            return self._invitation_page(visit, error=INVITATION_INVALID, status=400)
        answer = Answer(
            self._pages.show("invited.html", visit, invited=invited, provider=name_of(self._issuer))
        )
        self._flow.keep(answer.response, INVITATION_COOKIE, {"token": token})
        return answer

    def _invitation_page(self, visit: Visit, *, error: str = "", status: int = 200) -> Answer:
        return Answer(self._pages.show("invitation.html", visit, status=status, error=error))

    def confirming(self, visit: Visit) -> Answer:
        """Ask whether a sign-in and a user are to be connected, and name both."""
        found = self._flow.opened(visit, PERSON_COOKIE)
        if found is None:
            return self._signing_in.ask(visit, "", status=400, trouble=LOST)
        return self._question(visit, found)

    def _question(
        self, visit: Visit, found: Mapping[str, Any], problem: Problem | None = None
    ) -> Answer:
        invitation = found["invitation"]
        if invitation:
            invited = self._identities.invited(invitation)
            if invited is None:
                return self._flow.refused(visit, "INVITATION_INVALID")
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
                problem=problem,
                provider=name_of(self._issuer),
                person=person["email"] or person["subject"],
                user_email=user_email,
                account_name=account,
            )
        )

    def confirm(self, visit: Visit) -> Answer:
        """Connect a sign-in with a user."""
        found = self._flow.opened(visit, PERSON_COOKIE)
        if found is None:
            return self._signing_in.ask(visit, "", status=400, trouble=LOST)
        person = ProvenPerson(**found["person"])
        if found["invitation"]:
            target = links.sign_in_link(is_done=True)
            return _over(self._flow.entered(visit, person, target, found["invitation"]))
        return self._connected(visit, found, person)

    def _connected(self, visit: Visit, found: Mapping[str, Any], person: ProvenPerson) -> Answer:
        if not visit.is_signed_in:
            return _over(self._signing_in.ask(visit, "", status=401, trouble=SIGNED_OUT.title))
        if visit.call.identity.session_id != found["session_id"]:
            return _over(self._flow.refused(visit, "SOMEBODY_ELSE"))
        if not visit.has_csrf:
            return self._question(visit, found, STALE_FORM)
        try:
            self._identities.connect(visit.call, person)
        except SignInRefused as refusal:
            return _over(self._flow.refused(visit, refusal.reason))
        except SignInAgain:
            return self._question(visit, found, SIGN_IN_AGAIN)
        target = links.user_sign_in_link(visit.call.identity.owner_id)
        return _over(Answer(RedirectResponse(target, 303)))

    # --- how a user signs in ----------------------------------------------------------------------

    def of_user(self, visit: Visit) -> Answer:
        """Show how a user signs in."""
        return self._of_user(visit)

    def of_user_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show how a user signs in, when it could not be changed."""
        if not problem.can_read:
            return Answer(self._pages.show("problem.html", visit, problem=problem))
        return self._of_user(visit, problem=problem)

    def _of_user(self, visit: Visit, *, problem: Problem | None = None, error: str = "") -> Answer:
        state = self._identities.state_of(visit.call, visit.user_id)
        user, caller = state.user, visit.call.identity
        visit.turn_to(user.account_id)
        return Answer(
            self._pages.show(
                "user_sign_in.html",
                visit,
                status=400 if error else 200,
                area="users",
                account=self._accounts.get(visit.call, user.account_id).name,
                user=user,
                identity=state.identity,
                invitation=state.invitation,
                hindrance=sentence(state.hindrance) if state.hindrance else "",
                provider=name_of(self._issuer),
                is_other_provider=state.identity is not None
                and state.identity.issuer != self._issuer,
                is_self=user.id == caller.owner_id,
                leaves_nobody=state.identity is not None
                and self._ways_in.none_without_sign_in_of(user),
                problem=problem,
                error=error,
            )
        )

    def invite(self, visit: Visit) -> Answer:
        """Invite a person, and show the link, this once."""
        try:
            issued = self._identities.invite(visit.call, visit.user_id)
        except FieldInvalid as error:
            return self._of_user(visit, error=sentence(error.description))
        visit.turn_to(issued.user.account_id)
        link = f"{self._origin()}{links.invitation_link()}#{issued.token}"
        response = self._pages.show(
            "invitation_shown.html",
            visit,
            area="users",
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


def _over(answer: Answer) -> Answer:
    """Have the browser forget who was to be connected."""
    forget(answer.response, PERSON_COOKIE)
    forget(answer.response, INVITATION_COOKIE)
    return answer
