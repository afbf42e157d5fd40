"""The console as an application: routes, and what stands before and behind every view."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keybearer.models import Presented
from keybearer_service.console import links, problems
from keybearer_service.console.accounts import AccountPages
from keybearer_service.console.audit import AuditPages
from keybearer_service.console.exports import CSV, Export, Exports
from keybearer_service.console.fetching import Fetcher
from keybearer_service.console.key_changes import SWITCHES, KeyChangePages
from keybearer_service.console.key_list import KeyList
from keybearer_service.console.keys import KeyPages
from keybearer_service.console.pages import IMMUTABLE, Asset, Pages
from keybearer_service.console.problems import Problem, problem_of
from keybearer_service.console.provider import Provider
from keybearer_service.console.provider_sign_in import ProviderPages
from keybearer_service.console.sealing import Seal
from keybearer_service.console.security import HEADERS, STRICT_TRANSPORT, PublicOrigin
from keybearer_service.console.sessions import SessionPages
from keybearer_service.console.several_keys import SeveralKeysPages
from keybearer_service.console.signing_in import RULE, SignInPages, forget, set_shown
from keybearer_service.console.users import UserPages
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
        key_list = KeyList(self._pages, parts.keys, parts.accounts, parts.clock)
        self._keys = KeyPages(
            key_list,
            parts.keys,
            parts.users,
            parts.audit_history,
            parts.identities,
            parts.clock,
            parts.entropy,
            has_provider=provider is not None,
        )
        self._key_changes = KeyChangePages(key_list, parts.keys, parts.clock, parts.entropy)
        self._users = UserPages(
            self._pages,
            parts.users,
            parts.keys,
            parts.accounts,
            parts.sessions,
            parts.audit_history,
            parts.clock,
        )
        self._audit = AuditPages(
            self._pages, parts.audit_history, parts.keys, parts.users, parts.accounts
        )
        self._several = SeveralKeysPages(key_list, parts.keys, parts.clock)
        self._exports = Exports(key_list, parts.keys, self._audit, parts.audit_history, parts.clock)
        self._accounts = AccountPages(self._pages, parts.accounts)
        self._sessions = SessionPages(self._pages, parts.sessions, parts.accounts)
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
            # Of the path as it was sent, which cannot be read as another origin.
            path = scope["raw_path"].decode("ascii", "replace").partition("?")[0]
            target = f"{self._origin.url}/{path.lstrip('/')}{_query_of(request)}"
            return RedirectResponse(target, 307)
        return self._problem(self._visit(request, ""), problems.WRONG_HOST)

    def _guards(self) -> list[tuple[bytes, bytes]]:
        headers = dict(HEADERS)
        if self._origin.is_tls:
            headers["strict-transport-security"] = STRICT_TRANSPORT
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    # --- routes -----------------------------------------------------------------------------------

    def _application(self) -> Starlette:
        routes = [
            Route("/", self._to_keys),
            Route(links.ROOT, self._to_keys),
            *(Route(path, _static(asset)) for path, asset in self._pages.assets.items()),
            *self._sign_in_routes(),
            *self._key_routes(),
            *self._user_routes(),
            self._get(links.AUDIT, self._audit.list),
            self._export(links.EXPORT_AUDIT, self._exports.audit),
            self._get(links.ACCOUNTS, self._accounts.list),
            self._get(links.SESSIONS, self._sessions.list),
            self._post(
                f"{links.SESSIONS}/{{session_id}}/end", self._sessions.end, self._sessions.end_again
            ),
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

    def _sign_in_routes(self) -> Iterator[Route]:
        pages = self._signing_in
        yield self._open(links.SIGN_IN, pages.form)
        yield self._open(links.SIGN_IN, pages.sign_in, is_post=True)
        yield self._open(links.THEME, pages.theme, is_post=True)
        yield self._post(links.SIGN_OUT, pages.sign_out, pages.sign_out_again)

    def _key_routes(self) -> Iterator[Route]:
        keys, changes = self._keys, self._key_changes
        one = f"{links.KEYS}/{{key_id}}"
        yield self._get(links.KEYS, keys.list)
        yield self._post(links.KEYS, keys.create, keys.create_again)
        yield self._get(links.NEW_KEY, keys.new)
        yield self._export(links.EXPORT_KEYS, self._exports.keys)
        several = self._several
        yield from self._form(
            links.REVOKE_KEYS, several.revoking, several.revoke, several.revoke_again
        )
        yield self._get(one, keys.details)
        yield self._open(f"{one}/saved", keys.saved, is_post=True)
        yield from self._form(f"{one}/revoke", keys.revoking, keys.revoke, keys.revoke_again)
        yield from self._form(f"{one}/edit", changes.editing, changes.edit, changes.edit_again)
        yield from self._form(
            f"{one}/rotate", changes.rotating, changes.rotate, changes.rotate_again
        )
        for change in SWITCHES:
            yield from self._form(
                f"{one}/{change}",
                partial(changes.switching, change),
                partial(changes.switch, change),
                partial(changes.switch_again, change),
            )

    def _user_routes(self) -> Iterator[Route]:
        users = self._users
        one = f"{links.USERS}/{{user_id}}"
        yield self._get(links.USERS, users.list)
        yield self._post(links.USERS, users.create, users.create_again)
        yield self._get(links.NEW_USER, users.new)
        yield self._get(one, users.details)
        yield from self._form(f"{one}/edit", users.editing, users.edit, users.edit_again)
        yield from self._form(f"{one}/delete", users.deleting, users.delete, users.delete_again)

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

    def _export(self, path: str, export: Callable[[Visit], Export]) -> Route:
        """Return the route of a file that is written while it is sent."""

        def answer(visit: Visit) -> Answer:
            made = export(visit)
            # Whatever is wrong is said by a page, as long as nothing was sent.
            first = next(made.parts, b"")
            headers = {"content-disposition": f'attachment; filename="{made.name}"'}
            rest = self._in_parts(visit, made.parts)
            body = StreamingResponse(_after(first, rest), media_type=CSV, headers=headers)
            return Answer(body)

        return self._get(path, answer)

    async def _in_parts(self, visit: Visit, parts: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Yield parts that are made in a thread, each for somebody who may still have it."""

        def following() -> bytes | None:
            if not self._admit(visit):
                raise CallAbandoned
            return next(parts, None)

        loop = asyncio.get_running_loop()
        while (part := await loop.run_in_executor(self._executor, following)) is not None:
            yield part

    def _form(self, path: str, form: View, view: View, again: AgainView) -> Iterator[Route]:
        """Yield the routes of a form that is sent to where it is shown."""
        yield self._get(path, form)
        yield self._post(path, view, again)

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
                    return self._again(visit, again, problems.STALE_FORM)
                return view(visit)
            except CallAbandoned:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, what was typed is kept
                problem = self._problem_of(visit, self._error_of(visit, error))
                return self._again(visit, again, problem)

        return self._route(path, answer, is_post=True)

    def _again(self, visit: Visit, again: AgainView, problem: Problem) -> Answer:
        """Show a form once more; without what stands around it when that cannot be read."""
        if problem is problems.NOT_FOUND:
            return Answer(self._problem(visit, problem))
        if not problem.can_read:
            return again(visit, problem)
        try:
            return again(visit, problem)
        except CallAbandoned:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, what was typed is kept
            worse = self._problem_of(visit, self._error_of(visit, error))
            if worse is problems.NOT_FOUND:
                return Answer(self._problem(visit, worse))
            return again(visit, replace(worse, can_read=False))

    # --- one request ------------------------------------------------------------------------------

    def _route(
        self, path: str, view: View, *, is_post: bool = False, from_elsewhere: bool = False
    ) -> Route:
        method = "POST" if is_post else "GET"

        async def endpoint(request: Request) -> Response:
            form: Sequence[tuple[str, str]] = ()
            if is_post and not from_elsewhere and not self._origin.sent(request.headers):
                return self._problem(self._visit(request, path), problems.CROSS_SITE)
            try:
                if is_post:
                    form = await read_form(request)
            except ClientDisconnect:
                return Response()  # for nobody
            except BodyError as error:
                problem = Problem(status=error.status, title="This form cannot be read.")
                return self._problem(self._visit(request, path), problem)
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

    def _visit(self, request: Request, method: str, form: Sequence[tuple[str, str]] = ()) -> Visit:
        parts = self._parts
        peer = request.client.host if request.client else ""
        browser = Browser(peer, parts.clock)
        query = dict(request.query_params)
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
            path=f"{request.scope['path']}{_query_of(request)}",
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

    async def _http_error(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 0
        is_method = status == problems.NO_SUCH_METHOD.status
        problem = problems.NO_SUCH_METHOD if is_method else problems.NOT_FOUND
        return self._problem(self._visit(request, ""), problem)

    def _problem(self, visit: Visit, problem: Problem) -> Response:
        return self._pages.show("problem.html", visit, status=problem.status, problem=problem)

    def _error_of(self, visit: Visit, error: Exception) -> ServiceError:
        return self._parts.failures.error_of(error, visit.call, self._on_outcome_unknown)

    def _problem_of(self, visit: Visit, error: ServiceError) -> Problem:
        if error.code in _REFUSALS and visit.call.caller is not None:
            self._parts.refusals.refused(visit.call, error.reason)
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
            ms=round((self._parts.clock.monotonic() - call.started) * 1000, 2),
        )


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


def _query_of(request: Request) -> str:
    # Not by `request.url`, which is made of a header that may be no host at all.
    query = request.scope["query_string"].decode("latin-1")
    return f"?{query}" if query else ""


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
