"""The console as an application: its pages, and where each of them is."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keybearer_service.console import links, problems
from keybearer_service.console.accounts import AccountPages
from keybearer_service.console.audit import AuditPages
from keybearer_service.console.connecting import ConnectingPages
from keybearer_service.console.exports import Exports
from keybearer_service.console.fetching import Fetcher
from keybearer_service.console.key_changes import SWITCHES, KeyChangePages
from keybearer_service.console.key_list import KeyList
from keybearer_service.console.keys import KeyPages
from keybearer_service.console.pages import IMMUTABLE, Asset, Pages
from keybearer_service.console.provider import Provider
from keybearer_service.console.provider_sign_in import ProviderPages
from keybearer_service.console.routes import Routes, query_of
from keybearer_service.console.sealing import Seal
from keybearer_service.console.security import HEADERS, STRICT_TRANSPORT, PublicOrigin
from keybearer_service.console.sessions import SessionPages
from keybearer_service.console.several_keys import SeveralKeysPages
from keybearer_service.console.signing_in import SignInPages
from keybearer_service.console.users import UserPages
from keybearer_service.console.ways_in import WaysIn
from keybearer_service.domain.clock import Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.net.sign_in import SignInSettings
from keybearer_service.usecases.accounts import AccountManager
from keybearer_service.usecases.audit import AuditHistory, RefusalLog
from keybearer_service.usecases.failures import Failures
from keybearer_service.usecases.identities import IdentityManager
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.revoking import KeyRevoker
from keybearer_service.usecases.sessions import SessionManager
from keybearer_service.usecases.sign_ins import SignInManager
from keybearer_service.usecases.users import UserManager
from keybearer_service.validation.callers import Callers


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleParts:
    """What the console is made of: use cases, and who knows callers."""

    keys: KeyManager
    revoker: KeyRevoker
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
        settings = parts.sign_in.provider
        provider = None if settings is None else Provider(settings, Fetcher(), parts.clock)
        self._pages = Pages(parts.clock, has_provider=provider is not None)
        self._routes = Routes(
            self._pages,
            parts.session_callers,
            parts.refusals,
            parts.failures,
            parts.clock,
            parts.entropy,
            on_outcome_unknown,
        )
        ways_in = WaysIn(parts.identities, "" if settings is None else settings.issuer)
        key_list = KeyList(self._pages, parts.keys, parts.accounts, parts.clock)
        self._keys = KeyPages(
            key_list,
            parts.keys,
            parts.revoker,
            parts.users,
            parts.audit_history,
            ways_in,
            parts.clock,
            parts.entropy,
        )
        self._key_changes = KeyChangePages(
            key_list, parts.keys, ways_in, parts.clock, parts.entropy
        )
        self._users = UserPages(
            self._pages,
            parts.users,
            parts.keys,
            parts.accounts,
            parts.sessions,
            parts.audit_history,
            ways_in,
            parts.clock,
        )
        self._audit = AuditPages(
            self._pages, parts.audit_history, parts.keys, parts.users, parts.accounts
        )
        self._several = SeveralKeysPages(key_list, parts.keys, parts.revoker, ways_in, parts.clock)
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
            lambda: ways_in.has_sign_in(parts.operator_account),
        )
        self._at_provider = self._connecting = None
        if provider is not None:
            self._at_provider = self._provider_pages(provider)
            self._connecting = ConnectingPages(
                self._pages,
                self._at_provider,
                self._signing_in,
                parts.identities,
                parts.accounts,
                ways_in,
                issuer=provider.issuer,
                origin=lambda: self._routes.origin.url,
            )
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
            parts.sign_in_refusals,
            parts.clock,
            parts.entropy,
            email_account=parts.sign_in.bind_account if by_email else "",
            origin=lambda: self._routes.origin.url,
        )

    @property
    def forms(self) -> Sequence[str]:
        """The paths that take forms, with names in braces for what they name."""
        return self._paths("POST")

    @property
    def pages(self) -> Sequence[str]:
        """The paths that are opened, with names in braces for what they name."""
        return [path for path in self._paths("GET") if path not in self._pages.assets]

    def serve_at(self, url: str) -> None:
        """Note the origin at which browsers reach the console; others are refused."""
        self._routes.origin = PublicOrigin(url)

    def close(self) -> None:
        """End the threads."""
        self._routes.close()

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
        is_here = len(hosts) == 1 and self._routes.origin.is_host(hosts[0])
        app = self._app if is_here else self._elsewhere(scope, hosts)
        await app(scope, receive, send_guarded)

    def _elsewhere(self, scope: Scope, hosts: Sequence[str]) -> ASGIApp:
        """Return the answer to somebody who uses another name of this machine, or a wrong one."""
        request = Request(scope)
        if len(hosts) == 1 and self._routes.origin.is_alias(hosts[0]) and scope["method"] == "GET":
            # Of the path as it was sent, which cannot be read as another origin.
            path = scope["raw_path"].decode("ascii", "replace").partition("?")[0]
            target = f"{self._routes.origin.url}/{path.lstrip('/')}{query_of(request)}"
            return RedirectResponse(target, 307)
        return self._routes.problem(self._routes.visit(request, ""), problems.WRONG_HOST)

    def _guards(self) -> list[tuple[bytes, bytes]]:
        headers = dict(HEADERS)
        if self._routes.origin.is_tls:
            headers["strict-transport-security"] = STRICT_TRANSPORT
        return [(name.encode(), value.encode()) for name, value in headers.items()]

    # --- routes -----------------------------------------------------------------------------------

    def _paths(self, method: str) -> Sequence[str]:
        return [one.path for one in self._all_routes if method in (one.methods or ())]

    def _application(self) -> Starlette:
        to = self._routes
        routes = [
            Route("/", self._to_keys),
            Route(links.ROOT, self._to_keys),
            *(Route(path, _static(asset)) for path, asset in self._pages.assets.items()),
            *self._sign_in_routes(),
            *self._key_routes(),
            *self._user_routes(),
            to.get(links.AUDIT, self._audit.list),
            to.export(links.EXPORT_AUDIT, self._exports.audit),
            to.get(links.ACCOUNTS, self._accounts.list),
            to.get(links.SESSIONS, self._sessions.list),
            to.post(
                f"{links.SESSIONS}/{{session_id}}/end", self._sessions.end, self._sessions.end_again
            ),
            *self._provider_routes(),
        ]
        self._all_routes = routes
        app = Starlette(routes=routes, exception_handlers={HTTPException: to.http_error})
        app.router.redirect_slashes = False
        return app

    def _provider_routes(self) -> Iterator[Route]:
        to, pages, connecting = self._routes, self._at_provider, self._connecting
        if pages is None or connecting is None:
            return
        yield to.open(links.START, pages.start)
        yield to.open(links.CALLBACK, pages.callback)
        yield to.get(links.SIGNED_IN, pages.signed_in)
        yield to.open(links.LOGOUT_AT_PROVIDER, pages.sign_out_at_provider)
        yield to.route(
            links.BACKCHANNEL_LOGOUT, pages.backchannel_logout, is_post=True, from_elsewhere=True
        )
        yield to.open(links.CONFIRM, connecting.confirming)
        yield to.open(links.CONFIRM, connecting.confirm, is_post=True)
        yield to.open(links.INVITATION, connecting.invitation)
        yield to.open(links.INVITATION, connecting.invited, is_post=True)
        one = f"{links.USERS}/{{user_id}}/sign-in"
        yield to.get(one, connecting.of_user)
        yield to.post(f"{one}/invite", connecting.invite, connecting.of_user_again)
        yield to.post(f"{one}/remove", connecting.remove, connecting.of_user_again)

    def _sign_in_routes(self) -> Iterator[Route]:
        to, pages = self._routes, self._signing_in
        yield to.open(links.SIGN_IN, pages.form)
        yield to.open(links.SIGN_IN, pages.sign_in, is_post=True)
        yield to.open(links.THEME, pages.theme, is_post=True)
        yield to.post(links.SIGN_OUT, pages.sign_out, pages.sign_out_again)

    def _key_routes(self) -> Iterator[Route]:
        to, keys, changes = self._routes, self._keys, self._key_changes
        one = f"{links.KEYS}/{{key_id}}"
        yield to.get(links.KEYS, keys.list)
        yield to.post(links.KEYS, keys.create, keys.create_again)
        yield to.get(links.NEW_KEY, keys.new)
        yield to.export(links.EXPORT_KEYS, self._exports.keys)
        several = self._several
        yield from to.form(
            links.REVOKE_KEYS, several.revoking, several.revoke, several.revoke_again
        )
        yield to.get(one, keys.details)
        yield to.open(f"{one}/saved", keys.saved, is_post=True)
        yield from to.form(f"{one}/revoke", keys.revoking, keys.revoke, keys.revoke_again)
        yield from to.form(f"{one}/edit", changes.editing, changes.edit, changes.edit_again)
        yield from to.form(f"{one}/rotate", changes.rotating, changes.rotate, changes.rotate_again)
        for change in SWITCHES:
            yield from to.form(
                f"{one}/{change}",
                partial(changes.switching, change),
                partial(changes.switch, change),
                partial(changes.switch_again, change),
            )

    def _user_routes(self) -> Iterator[Route]:
        to, users = self._routes, self._users
        one = f"{links.USERS}/{{user_id}}"
        yield to.get(links.USERS, users.list)
        yield to.post(links.USERS, users.create, users.create_again)
        yield to.get(links.NEW_USER, users.new)
        yield to.get(one, users.details)
        yield from to.form(f"{one}/edit", users.editing, users.edit, users.edit_again)
        yield from to.form(f"{one}/delete", users.deleting, users.delete, users.delete_again)

    async def _to_keys(self, _request: Request) -> Response:
        return RedirectResponse(links.KEYS, 303)


def _static(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        headers = {"content-type": asset.content_type, "cache-control": IMMUTABLE}
        return Response(asset.content, headers=headers)

    return endpoint
