"""The page of sessions: who is signed in."""

from starlette.responses import RedirectResponse

from keybearer_service.console import links, problems
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import Problem
from keybearer_service.console.visits import Answer, Visit
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.sessions import MAX_LISTED_SESSIONS, SessionManager


class SessionPages:
    """The views of sessions. They call use cases, and nothing else."""

    def __init__(self, pages: Pages, sessions: SessionManager, accounts: AccountManager) -> None:
        self._pages = pages
        self._sessions = sessions
        self._accounts = accounts

    def list(self, visit: Visit) -> Answer:
        """Show one's own sessions, and those of the account."""
        return self._page(visit)

    def end(self, visit: Visit) -> Answer:
        """End a session; one that has ended is as it should be."""
        self._sessions.end_other(visit.call, visit.session_id)
        target = links.area_link("sessions", visit.account)
        return Answer(RedirectResponse(target, 303))

    def end_again(self, visit: Visit, problem: Problem) -> Answer:
        """Show the list again, when a session could not be ended."""
        return self._page(visit, problem)

    def _page(self, visit: Visit, problem: Problem | None = None) -> Answer:
        can_read = problems.can_read(problem)
        found = self._sessions.list_open(visit.call, visit.scope) if can_read else ()
        own_user = visit.call.identity.owner_id if can_read else ""
        response = self._pages.show(
            "sessions.html",
            visit,
            area="sessions",
            account=self._accounts.get(visit.call, visit.scope.only).name if can_read else "",
            own=[one for one in found if one.session.user_id == own_user],
            others=[one for one in found if one.session.user_id != own_user],
            own_id=visit.call.identity.session_id if can_read else "",
            is_cut=len(found) >= MAX_LISTED_SESSIONS,
            can_read=can_read,
            problem=problem,
        )
        return Answer(response)
