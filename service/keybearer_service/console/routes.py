"""What surrounds every request: the session, where a form comes from, errors as pages, the log."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive

from keybearer.models import Presented
from keybearer_service.console import links, problems
from keybearer_service.console.exports import CSV, Export
from keybearer_service.console.pages import Pages
from keybearer_service.console.problems import Problem, problem_of
from keybearer_service.console.security import PublicOrigin
from keybearer_service.console.signing_in import RULE, forget, set_shown
from keybearer_service.console.visits import (
    SESSION_COOKIE,
    SHOWN_COOKIE,
    TICKED,
    Answer,
    BodyError,
    Browser,
    Visit,
    cookies_of,
    read_form,
)
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import CallAbandoned, Code, ServiceError
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.gateway.routes import IDENTIFIED
from keybearer_service.usecases.audit import RefusalLog
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.failures import Failures
from keybearer_service.validation.callers import Callers

log = structlog.get_logger(__name__)

THREADS: Final = 4
"""A page takes a few milliseconds, and a few administrators look at some."""
_SHOWN_LENGTH: Final = 16
_REFUSALS: Final = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)

View = Callable[[Visit], Answer]
AgainView = Callable[[Visit, Problem], Answer]


class Routes:
    """Makes routes of views, each with what surrounds every request."""

    def __init__(
        self,
        pages: Pages,
        session_callers: Callers,
        refusals: RefusalLog,
        failures: Failures,
        clock: Clock,
        entropy: Entropy,
        on_outcome_unknown: Callable[[], None],
    ) -> None:
        """Create it.

        Args:
            pages: Renders what cannot be done.
            session_callers: Knows callers by their sessions.
            refusals: Audits callers who are administrators no more.
            failures: Knows what is wrong when something fails.
            clock: Measures requests.
            entropy: Draws ids of requests.
            on_outcome_unknown: Called when a commit failed; the process is to end.
        """
        self._pages = pages
        self._session_callers = session_callers
        self._refusals = refusals
        self._failures = failures
        self._clock = clock
        self._entropy = entropy
        self._on_outcome_unknown = on_outcome_unknown
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="console")
        self.origin = PublicOrigin("http://127.0.0.1")
        """At which browsers reach the console."""

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    # --- kinds of routes --------------------------------------------------------------------------

    def open(self, path: str, view: View, *, is_post: bool = False) -> Route:
        """Return a route that somebody who is not signed in may use."""

        def answer(visit: Visit) -> Answer:
            self._admit(visit)
            return view(visit)

        return self.route(path, answer, is_post=is_post)

    def get(self, path: str, view: View) -> Route:
        """Return the route of a page for those who are signed in."""

        def answer(visit: Visit) -> Answer:
            if self._admit(visit):
                return view(visit)
            response = RedirectResponse(links.sign_in_link(links.own_path(visit.path)), 303)
            forget(response, SESSION_COOKIE)
            return Answer(response)

        return self.route(path, answer)

    def export(self, path: str, export: Callable[[Visit], Export]) -> Route:
        """Return the route of a file that is written while it is sent."""

        def answer(visit: Visit) -> Answer:
            made = export(visit)
            # Whatever is wrong is said by a page, as long as nothing was sent.
            first = next(made.parts, b"")
            headers = {"content-disposition": f'attachment; filename="{made.name}"'}
            rest = self._in_parts(visit, made.parts)
            body = StreamingResponse(_after(first, rest), media_type=CSV, headers=headers)
            return Answer(body)

        return self.get(path, answer)

    async def _in_parts(self, visit: Visit, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield parts that are made in a thread, each for somebody who may still have it."""

        def following() -> bytes | None:
            if not self._admit(visit):
                raise CallAbandoned
            return next(parts, None)

        loop = asyncio.get_running_loop()
        while (part := await loop.run_in_executor(self._executor, following)) is not None:
            yield part

    def form(self, path: str, form: View, view: View, again: AgainView) -> Iterator[Route]:
        """Yield the routes of a form that is sent to where it is shown."""
        yield self.get(path, form)
        yield self.post(path, view, again)

    def post(self, path: str, view: View, again: AgainView) -> Route:
        """Return the route of a change.

        Args:
            path: Where it is.
            view: Makes the change.
            again: Shows the form with all that was typed, when the change cannot be made.
        """

        def answer(visit: Visit) -> Answer:
            try:
                if not self._admit(visit):
                    return again(visit, problems.SIGNED_OUT)
                if not visit.has_csrf:
                    return self._again(visit, again, problems.STALE_FORM)
                return view(visit)
            except CallAbandoned:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, what was typed is kept
                problem = self._problem_of(visit, self._error_of(visit, error))
                return self._again(visit, again, problem)

        return self.route(path, answer, is_post=True)

    def _again(self, visit: Visit, again: AgainView, problem: Problem) -> Answer:
        """Show a form once more; without what stands around it when that cannot be read."""
        if problem is problems.NOT_FOUND:
            return Answer(self.problem(visit, problem))
        if not problem.can_read:
            return again(visit, problem)
        try:
            return again(visit, problem)
        except CallAbandoned:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, what was typed is kept
            worse = self._problem_of(visit, self._error_of(visit, error))
            if worse is problems.NOT_FOUND:
                return Answer(self.problem(visit, worse))
            return again(visit, replace(worse, can_read=False))

    # --- one request ------------------------------------------------------------------------------

    def route(
        self, path: str, view: View, *, is_post: bool = False, from_elsewhere: bool = False
    ) -> Route:
        """Return a route for everybody.

        Args:
            path: Where it is.
            view: The view, which judges by itself who comes.
            is_post: Whether it takes a form.
            from_elsewhere: Whether the form may come from another origin.
        """
        method = "POST" if is_post else "GET"

        async def endpoint(request: Request) -> Response:
            form: Sequence[tuple[str, str]] = ()
            if is_post and not from_elsewhere and not self.origin.sent(request.headers):
                return self.problem(self.visit(request, path), problems.CROSS_SITE)
            try:
                if is_post:
                    form = await read_form(request)
            except ClientDisconnect:
                return Response()  # for nobody
            except BodyError as error:
                problem = Problem(status=error.status, title="This form cannot be read.")
                return self.problem(self.visit(request, path), problem)
            visit = self.visit(request, f"{method} {path}", form)
            return await self._in_thread(request, visit, view)

        return Route(path, endpoint, methods=[method])

    async def _in_thread(self, request: Request, visit: Visit, view: View) -> Response:
        loop = asyncio.get_running_loop()
        watching = loop.create_task(_note_end(request.receive, visit.browser))
        try:
            response = await loop.run_in_executor(self._executor, self._answer, visit, view)
        finally:
            watching.cancel()
        if visit.is_signed_in:
            setattr(request.state, IDENTIFIED, True)
        return response

    def _answer(self, visit: Visit, view: View) -> Response:
        try:
            answer = view(visit)
        except CallAbandoned:
            return Response(status_code=503)  # for nobody
        except Exception as error:  # noqa: BLE001 - the one place where every error is answered
            known = self._error_of(visit, error)
            answer = Answer(self.problem(visit, self._problem_of(visit, known)))
        response = answer.response
        if answer.shows_secret:
            set_shown(response, self._entropy.base62(_SHOWN_LENGTH))
        elif SHOWN_COOKIE in visit.cookies:
            # A browser that kept the page with the secret throws it away now.
            forget(response, SHOWN_COOKIE)
        if visit.is_post:
            self._log(visit, response)
        return response

    def _admit(self, visit: Visit) -> bool:
        """Judge the session in the cookie; return whether it may use the console."""
        call = visit.call
        token = visit.cookies.get(SESSION_COOKIE, "")
        if not token:
            return False
        try:
            self._session_callers.admit(call, Presented(token, call.peer))
        except ServiceError as refusal:
            if refusal.code not in _REFUSALS:
                raise
            if call.caller is not None:
                # Somebody who was an administrator once.
                self._refusals.refused(call, refusal.reason)
            call.caller = None
            return False
        return True

    def visit(self, request: Request, method: str, form: Sequence[tuple[str, str]] = ()) -> Visit:
        """Return a request as the views see it; the session is not judged yet."""
        peer = request.client.host if request.client else ""
        browser = Browser(peer, self._clock)
        query = dict(request.query_params)
        return Visit(
            call=CallContext(
                method,
                RULE,
                browser,
                lambda: self._entropy.base62(ID_LENGTH),
                self._clock.monotonic(),
            ),
            browser=browser,
            is_post=request.method == "POST",
            path=f"{request.scope['path']}{query_of(request)}",
            named=request.path_params,
            account=query.get("account", ""),
            query=query,
            form=dict(form),
            ticked=[
                value
                for name, value in (form or request.query_params.multi_items())
                if name == TICKED
            ],
            cookies=cookies_of(request),
            user_agent=request.headers.get("user-agent", ""),
        )

    # --- what cannot be done ----------------------------------------------------------------------

    async def http_error(self, request: Request, error: Exception) -> Response:
        """Return the page for a path or a method that is not there."""
        status = error.status_code if isinstance(error, HTTPException) else 0
        is_method = status == problems.NO_SUCH_METHOD.status
        problem = problems.NO_SUCH_METHOD if is_method else problems.NOT_FOUND
        return self.problem(self.visit(request, ""), problem)

    def problem(self, visit: Visit, problem: Problem) -> Response:
        """Return the page that says nothing but what is wrong."""
        return self._pages.show("problem.html", visit, problem=problem)

    def _error_of(self, visit: Visit, error: Exception) -> ServiceError:
        return self._failures.error_of(error, visit.call, self._on_outcome_unknown)

    def _problem_of(self, visit: Visit, error: ServiceError) -> Problem:
        if error.code in _REFUSALS and visit.call.caller is not None:
            self._refusals.refused(visit.call, error.reason)
        problem = problem_of(error, visit.call.request_id)
        if problem is problems.NOT_FOUND:
            # Perhaps it is the account that is not there: the links of the page lead out of it.
            visit.account = ""
        if problem.asks_to_sign_in:
            # Inside the change the session was found to have ended.
            visit.call.caller = None
        return problem

    def _log(self, visit: Visit, response: Response) -> None:
        call = visit.call
        log.info(
            "console_form_answered",
            method=call.method,
            status=response.status_code,
            request_id=call.request_id,
            peer=call.peer,
            session_id="" if call.caller is None else call.caller.session_id,
            ms=round((self._clock.monotonic() - call.started) * 1000, 2),
        )


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


def query_of(request: Request) -> str:
    """Return the query of a URL with its question mark; empty without one."""
    # Not by `request.url`, which is made of a header that may be no host at all.
    query = request.scope["query_string"].decode("latin-1")
    return f"?{query}" if query else ""


async def _note_end(receive: Receive, browser: Browser) -> None:
    """Note when the browser has gone; the body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
    browser.has_gone = True
