"""The console as an application: routes, and what stands before and behind every view."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keybearer.models import Presented
from keybearer_service.console import links, problems
from keybearer_service.console.fetching import Fetcher
from keybearer_service.console.keys import KeyPages
from keybearer_service.console.pages import IMMUTABLE, Asset, Pages
from keybearer_service.console.problems import Problem, problem_of
from keybearer_service.console.provider import Provider
from keybearer_service.console.provider_sign_in import ProviderPages
from keybearer_service.console.sealing import Seal
from keybearer_service.console.security import HEADERS, STRICT_TRANSPORT, PublicOrigin
from keybearer_service.console.signing_in import RULE, SignInPages, forget, set_shown
from keybearer_service.console.visits import (
    SESSION_COOKIE,
    SHOWN_COOKIE,
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
from keybearer_service.net.sign_in import SignInSettings
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditHistory, RefusalLog
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.failures import Failures
from keybearer_service.usecases.identities import IdentityManager
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.usecases.sign_ins import SignInManager
from keybearer_service.usecases.users import UserManager
from keybearer_service.validation.callers import Callers

log = structlog.get_logger(__name__)

THREADS: Final = 4
"""A page takes a few milliseconds, and a few administrators look at some."""
_SHOWN_LENGTH: Final = 16
_REFUSALS: Final = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)

View = Callable[[Visit], Answer]
AgainView = Callable[[Visit, Problem], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleParts:
    """What the console is made of: use cases, and who knows callers."""

    keys: KeyManager
    users: UserManager
    accounts: AccountManager
    audit_history: AuditHistory
    sessions: SessionManager
    sign_ins: SignInManager
    identities: IdentityManager
    sign_in: SignInSettings
    operator_account: str
    seal_key: bytes
    """Of the installation, for what browsers keep."""
    key_callers: Callers
    session_callers: Callers
    refusals: RefusalLog
    sign_in_refusals: RefusalLog
    failures: Failures
    clock: Clock
    entropy: Entropy


class Console:
    """The pages for administrators, as an ASGI application."""

    def __init__(self, parts: ConsoleParts, on_outcome_unknown: Callable[[], None]) -> None:
        """Create the application; `serve_at` says where it is before it serves.

        Args:
            parts: What it is made of.
            on_outcome_unknown: Called when a commit failed; the process is to end.
        """
        self._parts = parts
        self._on_outcome_unknown = on_outcome_unknown
        settings = parts.sign_in.provider
        provider = None if settings is None else Provider(settings, Fetcher(), parts.clock)
        self._pages = Pages(parts.clock, has_provider=provider is not None)
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="console")
        self._origin = PublicOrigin("http://127.0.0.1")
        self._keys = KeyPages(
            self._pages,
            parts.keys,
            parts.users,
            parts.accounts,
            parts.audit_history,
            parts.identities,
            parts.clock,
            parts.entropy,
            has_provider=provider is not None,
        )
        self._signing_in = SignInPages(
            self._pages,
            parts.sessions,
            parts.key_callers,
            parts.sign_in_refusals,
            parts.clock,
            provider,
            parts.sign_in.key_sign_in,
            lambda: parts.identities.has_administrator(parts.operator_account),
        )
        self._at_provider = None if provider is None else self._provider_pages(provider)
        self._app = self._application()

    def _provider_pages(self, provider: Provider) -> ProviderPages:
        parts = self._parts
        by_email = parts.sign_in.bind == "verified-email"
        return ProviderPages(
            self._pages,
            provider,
            Seal(parts.seal_key, parts.clock),
            self._signing_in,
            parts.sign_ins,
            parts.sessions,
            parts.identities,
            parts.accounts,
            parts.sign_in_refusals,
            parts.clock,
            parts.entropy,
            email_account=parts.sign_in.bind_account if by_email else "",
            origin=lambda: self._origin.url,
        )

    def serve_at(self, url: str) -> None:
        """Note the origin at which browsers reach the console; others are refused."""
        self._origin = PublicOrigin(url)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and add the headers that every response of this port has."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in self._guards() if pair[0] not in given),
                ]
            await send(message)

        hosts = Headers(scope=scope).getlist("host")
        is_here = len(hosts) == 1 and self._origin.is_host(hosts[0])
        app = self._app if is_here else self._elsewhere(scope, hosts)
        await app(scope, receive, send_guarded)

    def _elsewhere(self, scope: Scope, hosts: Sequence[str]) -> ASGIApp:
        """Return the answer to somebody who uses another name of this machine, or a wrong one."""
        request = Request(scope)
        if len(hosts) == 1 and self._origin.is_alias(hosts[0]) and scope["method"] == "GET":
            query = f"?{request.url.query}" if request.url.query else ""
            # Of the path as it was sent, which cannot be read as another origin.
            path = scope["raw_path"].decode("ascii", "replace").partition("?")[0]
            return RedirectResponse(f"{self._origin.url}/{path.lstrip('/')}{query}", 307)
        return self._problem(self._visit(request, "", {}), problems.WRONG_HOST)

    def _guards(self) -> list[tuple[bytes, bytes]]:
        headers = dict(HEADERS)
        if self._origin.is_tls:
            headers["strict-transport-security"] = STRICT_TRANSPORT
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    # --- routes -----------------------------------------------------------------------------------

    def _application(self) -> Starlette:
        keys, signing_in = self._keys, self._signing_in
        one = f"{links.KEYS}/{{key_id}}"
        routes = [
            Route("/", self._to_keys),
            Route(links.ROOT, self._to_keys),
            *(Route(path, _static(asset)) for path, asset in self._pages.assets.items()),
            self._open(links.SIGN_IN, signing_in.form),
            self._open(links.SIGN_IN, signing_in.sign_in, is_post=True),
            self._open(links.THEME, signing_in.theme, is_post=True),
            self._post(links.SIGN_OUT, signing_in.sign_out, signing_in.sign_out_again),
            self._get(links.KEYS, keys.list),
            self._post(links.KEYS, keys.create, keys.create_again),
            self._get(links.NEW_KEY, keys.new),
            self._get(one, keys.details),
            self._open(f"{one}/saved", keys.saved, is_post=True),
            self._get(f"{one}/revoke", keys.revoking),
            self._post(f"{one}/revoke", keys.revoke, keys.revoke_again),
            *(() if self._at_provider is None else self._provider_routes(self._at_provider)),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: self._http_error})
        app.router.redirect_slashes = False
        return app

    def _provider_routes(self, pages: ProviderPages) -> Iterator[Route]:
        yield self._open(links.START, pages.start)
        yield self._open(links.CALLBACK, pages.callback)
        yield self._get(links.SIGNED_IN, pages.signed_in)
        yield self._open(links.CONFIRM, pages.confirming)
        yield self._open(links.CONFIRM, pages.confirm, is_post=True)
        yield self._open(links.INVITATION, pages.invitation)
        yield self._open(links.INVITATION, pages.invited, is_post=True)
        yield self._open(links.LOGOUT_AT_PROVIDER, pages.sign_out_at_provider)
        yield self._route(
            links.BACKCHANNEL_LOGOUT, pages.backchannel_logout, is_post=True, from_elsewhere=True
        )
        one = f"{links.USERS}/{{user_id}}/sign-in"
        yield self._get(one, pages.of_user)
        yield self._post(f"{one}/invite", pages.invite, pages.of_user_again)
        yield self._post(f"{one}/remove", pages.remove, pages.of_user_again)

    async def _to_keys(self, _request: Request) -> Response:
        return RedirectResponse(links.KEYS, 303)

    def _open(self, path: str, view: View, *, is_post: bool = False) -> Route:
        """Return a route that somebody who is not signed in may use."""

        def answer(visit: Visit) -> Answer:
            self._admit(visit)
            return view(visit)

        return self._route(path, answer, is_post=is_post)

    def _get(self, path: str, view: View) -> Route:
        """Return the route of a page for those who are signed in."""

        def answer(visit: Visit) -> Answer:
            if self._admit(visit):
                return view(visit)
            response = RedirectResponse(links.sign_in_link(links.own_path(visit.path)), 303)
            forget(response, SESSION_COOKIE)
            return Answer(response)

        return self._route(path, answer)

    def _post(self, path: str, view: View, again: AgainView) -> Route:
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
                    return again(visit, problems.STALE_FORM)
                return view(visit)
            except CallAbandoned:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, what was typed is kept
                problem = self._problem_of(visit, self._error_of(visit, error))
                if problem is problems.NOT_FOUND:
                    return Answer(self._problem(visit, problem))
                return again(visit, problem)

        return self._route(path, answer, is_post=True)

    # --- one request ------------------------------------------------------------------------------

    def _route(
        self, path: str, view: View, *, is_post: bool = False, from_elsewhere: bool = False
    ) -> Route:
        method = "POST" if is_post else "GET"

        async def endpoint(request: Request) -> Response:
            form: Mapping[str, str] = {}
            if is_post and not from_elsewhere and not self._origin.sent(request.headers):
                return self._problem(self._visit(request, path, {}), problems.CROSS_SITE)
            try:
                if is_post:
                    form = await read_form(request)
            except ClientDisconnect:
                return Response()  # for nobody
            except BodyError as error:
                problem = Problem(status=error.status, title="This form cannot be read.")
                return self._problem(self._visit(request, path, {}), problem)
            visit = self._visit(request, f"{method} {path}", form)
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
            answer = Answer(self._problem(visit, self._problem_of(visit, known)))
        response = answer.response
        if answer.shows_secret:
            set_shown(response, self._parts.entropy.base62(_SHOWN_LENGTH))
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
            self._parts.session_callers.admit(call, Presented(token, call.peer))
        except ServiceError as refusal:
            if refusal.code not in _REFUSALS:
                raise
            if call.caller is not None:
                # Somebody who was an administrator once.
                self._parts.refusals.refused(call, refusal.reason)
            call.caller = None
            return False
        return True

    def _visit(self, request: Request, method: str, form: Mapping[str, str]) -> Visit:
        parts = self._parts
        peer = request.client.host if request.client else ""
        browser = Browser(peer, parts.clock)
        query = f"?{request.url.query}" if request.url.query else ""
        return Visit(
            call=CallContext(
                method,
                RULE,
                browser,
                lambda: parts.entropy.base62(ID_LENGTH),
                parts.clock.monotonic(),
            ),
            browser=browser,
            is_post=request.method == "POST",
            path=f"{request.scope['path']}{query}",
            key_id=request.path_params.get("key_id", ""),
            user_id=request.path_params.get("user_id", ""),
            query=dict(request.query_params),
            form=form,
            cookies=cookies_of(request),
            user_agent=request.headers.get("user-agent", ""),
        )

    # --- what cannot be done ----------------------------------------------------------------------

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 0
        is_method = status == problems.NO_SUCH_METHOD.status
        problem = problems.NO_SUCH_METHOD if is_method else problems.NOT_FOUND
        return self._problem(self._visit(request, "", {}), problem)

    def _problem(self, visit: Visit, problem: Problem) -> Response:
        return self._pages.show("problem.html", visit, status=problem.status, problem=problem)

    def _error_of(self, visit: Visit, error: Exception) -> ServiceError:
        return self._parts.failures.error_of(error, visit.call, self._on_outcome_unknown)

    def _problem_of(self, visit: Visit, error: ServiceError) -> Problem:
        if error.code in _REFUSALS and visit.call.caller is not None:
            self._parts.refusals.refused(visit.call, error.reason)
        problem = problem_of(error, visit.call.request_id)
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
            ms=round((self._parts.clock.monotonic() - call.started) * 1000, 2),
        )


def _static(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        headers = {"content-type": asset.content_type, "cache-control": IMMUTABLE}
        return Response(asset.content, headers=headers)

    return endpoint


async def _note_end(receive: Receive, browser: Browser) -> None:
    """Note when the browser has gone; the body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
    browser.has_gone = True
