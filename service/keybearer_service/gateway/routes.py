"""What gateways and resource servers ask over HTTP: forward-auth, and introspection (RFC 7662).

This module reads what a gateway asks for and renders what `Authorizer` decides. On `/v1/auth` only
200, 401 and 403 are decisions: most gateways take nothing else for one. 503 means that there is no
decision.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_plus

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from keybearer._wire.bearer import token_of
from keybearer.access import AccessRule, Role
from keybearer.models import Presented
from keybearer_service.domain.clock import SECOND, Clock
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import (
    Code,
    CredentialsMissing,
    FieldInvalid,
    Overloaded,
    RoleInsufficient,
    ServiceError,
)
from keybearer_service.domain.token_format import ID_LENGTH
from keybearer_service.domain.verdict import Caller, Match
from keybearer_service.gateway.authorizer import (
    ACCOUNT,
    IDENTITY_HEADERS,
    ROLE,
    SCOPES,
    Authorizer,
    Gateway,
    accounts_in,
    identity_of,
    narrowing_gateway,
    narrowing_gateway_of,
)
from keybearer_service.gateway.status import body_of, challenge_of, http_status_of, status_of
from keybearer_service.telemetry.log_quotas import MinuteQuota
from keybearer_service.telemetry.recorder import EntryPoint, Recorder
from keybearer_service.validation.callers import Callers

log = structlog.get_logger(__name__)

CALLER_HEADER = "x-keybearer-caller"
"""The gateway's own credential; `authorization` is its client's."""
REQUIREMENT_HEADERS = {
    "x-keybearer-required-role": ROLE,
    "x-keybearer-required-scopes": SCOPES,
    "x-keybearer-account": ACCOUNT,
}
_REQUIREMENTS = ("x-keybearer-required", "x-keybearer-account")
"""What all of them begin with. `x-keybearer-account` is a header of the identity too: gateways take
it off what their clients send, or it would be one requirement more."""
IDENTIFIED = "identified"
"""An attribute of `request.state`: set once it is known who has sent the request. The listener
keeps such connections longest when it is full."""
MAX_FORM_BYTES = 8 * 1024
THREADS = 8
"""Each has a database connection of its own. A verdict takes some 20 us, so few are enough."""
MAX_WAITING = 200
"""Requests that are answered or wait for a thread. The next one is refused at once and may be tried
again: these take a fraction of a second together, and nobody waits longer for a verdict."""
RULE = AccessRule(only_roles=(Role.VALIDATOR, Role.ADMIN))
"""Who may ask, as for ValidateToken."""
NO_STORE = {"cache-control": "no-store"}
BASIC = 'Basic realm="keybearer"'

_DENIALS = (401, 403)
_GATEWAY_REFUSED = (
    f"the gateway needs a VALIDATOR key of its own, in {CALLER_HEADER}: Bearer <token>"
)
_GRPC_MESSAGE_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_REFUSALS_LOGGED_A_MINUTE = 10


@dataclass(slots=True)
class _GatewayCall:
    """A gateway that asks, as `Callers` sees it."""

    rule: AccessRule = RULE
    caller: Caller | None = None


@dataclass(frozen=True, slots=True)
class _Reference:
    """Names a request in the log and in its answer."""

    request_id: str


class GatewayRoutes:
    """The routes of the HTTP port."""

    def __init__(
        self,
        authorizer: Authorizer,
        callers: Callers,
        recorder: Recorder,
        error_of: Callable[[Exception, "_Reference"], ServiceError],
        clock: Clock,
        entropy: Entropy,
        *,
        accounts: str = "",
        is_open: bool = False,
    ) -> None:
        """Create the routes.

        Args:
            authorizer: Judges clients.
            callers: Admits gateways.
            recorder: Is told of refusals.
            error_of: Returns the error that a gateway sees for what went wrong, and logs the rest.
            clock: Bounds what is logged.
            entropy: Draws the references of unforeseen errors.
            accounts: The account, or `*` for all, that gateways of the operator account may ask
                about beside their own; on an open port, that everybody may ask about.
            is_open: Whether gateways are asked for no credential.

        Raises:
            ValueError: An open port without accounts.
        """
        self._authorizer = authorizer
        self._callers = callers
        self._recorder = recorder
        self._error_of = error_of
        self._clock = clock
        self._entropy = entropy
        self._accounts = accounts_in(accounts)
        self._is_open = is_open
        if is_open and not self._accounts:
            raise ValueError("an open port needs the accounts that it is open for")
        self._logged_refusals = MinuteQuota(clock, _REFUSALS_LOGGED_A_MINUTE)
        self._waiting = 0
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="http-gateway")

    def routes(self) -> list[Route]:
        """Return the routes for gateways."""
        return [
            _for_all_methods(Route("/v1/auth", self._forward_auth)),
            _for_all_methods(Route("/v1/auth/{rest:path}", self._forward_auth)),
            Route("/oauth2/introspect", self._introspect, methods=["POST"]),
        ]

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def flush_suppressed(self, *, everything: bool = False) -> None:
        """Log how many refusals were not logged one by one; called every minute."""
        for peer, count in self._logged_refusals.collect(everything=everything).items():
            log.warning("gateways_refused", peer=peer, not_logged=count)

    # --- forward-auth -----------------------------------------------------------------------------

    async def _forward_auth(self, request: Request) -> Response:
        return await self._in_thread(self._answer_forward_auth, request)

    def _answer_forward_auth(self, request: Request) -> Response:
        try:
            presented = [token_of([one]) for one in request.headers.getlist(CALLER_HEADER)]
            gateway = self._gateway(request, presented)
        except ServiceError as error:
            if http_status_of(error) not in _DENIALS:
                raise
            # Never 401 nor a challenge: the gateway passes the answer on to a client whose own key
            # may be a good one, and would be thrown away.
            return _refusal(RoleInsufficient(_GATEWAY_REFUSED), is_grpc=_is_grpc(request))
        try:
            match = self._authorizer.authorize(
                EntryPoint.FORWARD_AUTH,
                gateway,
                [*_asked_by_headers(request), *_asked_by_query(request)],
                request.headers.getlist("authorization"),
            )
        except ServiceError as error:
            return _refusal(error, challenge=challenge_of(error), is_grpc=_is_grpc(request))
        setattr(request.state, IDENTIFIED, True)
        identity = zip(IDENTITY_HEADERS, identity_of(match), strict=True)
        return Response(headers={**NO_STORE, **dict(identity)})

    # --- introspection ----------------------------------------------------------------------------

    async def _introspect(self, request: Request) -> Response:
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM_BYTES:
                    break
        except ClientDisconnect:
            return Response()  # for nobody
        return await self._in_thread(
            lambda one: self._answer_introspection(one, bytes(body)), request
        )

    def _answer_introspection(self, request: Request, body: bytes) -> Response:
        form = _pairs(request, body)
        try:
            gateway = self._gateway(request, _presented(request, form))
        except ServiceError as error:
            return _refusal(error, challenge=_introspection_challenge(request, error))
        token, asked = _introspected(request, body, form)
        asked += _asked_by_headers(request)
        try:
            match = self._authorizer.authorize(
                EntryPoint.INTROSPECTION, gateway, asked, [f"Bearer {token}"]
            )
        except ServiceError as error:
            if http_status_of(error) not in _DENIALS:
                raise
            return JSONResponse({"active": False}, headers=NO_STORE)
        setattr(request.state, IDENTIFIED, True)
        return JSONResponse(introspection_of(match), headers=NO_STORE)

    # --- what both need ---------------------------------------------------------------------------

    async def _in_thread(self, answer: Callable[[Request], Response], request: Request) -> Response:
        if self._waiting >= MAX_WAITING:
            self._recorder.refused("http", Overloaded.reason)
            return _refusal(Overloaded(), is_grpc=_is_grpc(request))
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, self._answer, answer, request)
        finally:
            self._waiting -= 1

    def _answer(self, answer: Callable[[Request], Response], request: Request) -> Response:
        try:
            return answer(request)
        except Exception as error:  # noqa: BLE001 - the one place where every error is answered
            known = self._error_of(error, _Reference(self._entropy.base62(ID_LENGTH)))
        return _refusal(known, is_grpc=_is_grpc(request))

    def _gateway(self, request: Request, presented: Sequence[str | None]) -> Gateway:
        """Return who asks, by the credentials in the request; None for one that is ill-formed."""
        if self._is_open:
            # A credential in the request would be the client's, not the gateway's.
            return narrowing_gateway(self._accounts)
        try:
            if len(presented) != 1 or presented[0] is None:
                raise CredentialsMissing
            caller = self._callers.admit(_GatewayCall(), Presented(presented[0], _peer_of(request)))
        except ServiceError as error:
            self._recorder.refused("http", error.reason)
            peer = _peer_of(request)
            if self._logged_refusals.admit(peer):
                log.warning("gateway_refused", reason=error.reason, peer=peer)
            raise
        setattr(request.state, IDENTIFIED, True)
        return narrowing_gateway_of(caller, self._accounts)


def introspection_of(match: Match) -> dict[str, Any]:
    """Write what RFC 7662 section 2.2 tells of a token that is active, and whose it is."""
    record = match.record
    told: dict[str, Any] = {
        "active": True,
        "token_type": "Bearer",
        "client_id": record.key_id,
        "sub": record.owner_id,
        "username": record.owner_email,
        "scope": record.scopes,
        "key_id": record.key_id,
        "key_name": record.key_name,
        "account_id": record.account_id,
        "owner_id": record.owner_id,
        "owner_email": record.owner_email,
        "role": record.effective_role.name,
    }
    if match.valid_until is not None:
        told["exp"] = match.valid_until // SECOND
    return told


def _for_all_methods(route: Route) -> Route:
    # Envoy asks with its client's method, whatever that is.
    route.methods = None
    return route


def _asked_by_headers(request: Request) -> list[tuple[str, str]]:
    # A name that only begins like ours is a typing error: it is handed on, and refused there.
    return [
        (REQUIREMENT_HEADERS.get(name, name), value)
        for name, value in request.headers.items()
        if name.startswith(_REQUIREMENTS)
    ]


def _asked_by_query(request: Request) -> list[tuple[str, str]]:
    # Behind any longer path, path and query are those of the gateway's client.
    if request.scope["path"] != "/v1/auth":
        return []
    return parse_qsl(request.url.query, keep_blank_values=True)


def _is_form(request: Request) -> bool:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return content_type == "application/x-www-form-urlencoded"


def _pairs(request: Request, body: bytes) -> list[tuple[str, str]]:
    """Return the names and values of a form; none for what is no form, or too large a one."""
    if not _is_form(request) or len(body) > MAX_FORM_BYTES:
        return []
    return parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)


def _introspected(
    request: Request, body: bytes, form: list[tuple[str, str]]
) -> tuple[str, list[tuple[str, str]]]:
    """Return the token that is asked about, and the requirements in the form."""
    if not _is_form(request):
        raise FieldInvalid("content-type", "application/x-www-form-urlencoded is needed")
    if request.url.query:
        raise FieldInvalid("query", "must be empty; a token in it would stand in every log")
    if len(body) > MAX_FORM_BYTES:
        raise FieldInvalid("(body)", f"at most {MAX_FORM_BYTES} bytes")
    found = [value for name, value in form if name == "token"]
    if len(found) != 1 or not found[0]:
        raise FieldInvalid("token", "exactly one is needed")
    return found[0], [pair for pair in form if pair[0] in REQUIREMENT_HEADERS.values()]


def _peer_of(request: Request) -> str:
    return request.client.host if request.client else ""


def _presented(request: Request, form: list[tuple[str, str]]) -> list[str | None]:
    """Return the credentials that a resource server presents; None for each that is ill-formed.

    Nobody's client is behind its request, so `authorization` is its own. RFC 6749, section 2.3.1,
    has two ways more, `client_secret_basic` and `client_secret_post`. The secret is the token of a
    key, which names its key: the client's id beside it proves nothing and is not read.
    """
    return [
        *(token_of([value]) for value in request.headers.getlist(CALLER_HEADER)),
        *(
            _basic_secret(value) if _is_basic(value) else token_of([value])
            for value in request.headers.getlist("authorization")
        ),
        *(value or None for name, value in form if name == "client_secret"),
    ]


def _is_basic(authorization: str) -> bool:
    return authorization.partition(" ")[0].lower() == "basic"


def _basic_secret(authorization: str) -> str | None:
    try:
        pair = base64.b64decode(authorization.partition(" ")[2], validate=True).decode()
    except ValueError:
        return None
    _, colon, secret = pair.partition(":")
    return unquote_plus(secret) or None if colon else None


def _introspection_challenge(request: Request, error: ServiceError) -> str:
    # RFC 6749, section 5.2: the scheme that the client has used.
    if error.code is Code.UNAUTHENTICATED and any(
        map(_is_basic, request.headers.getlist("authorization"))
    ):
        return BASIC
    return challenge_of(error)


def _is_grpc(request: Request) -> bool:
    return request.headers.get("content-type", "").startswith("application/grpc")


def _refusal(error: ServiceError, *, challenge: str = "", is_grpc: bool = False) -> Response:
    status = http_status_of(error)
    headers = dict(NO_STORE)
    if challenge:
        headers["www-authenticate"] = challenge
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if not is_grpc:
        headers["content-type"] = "application/json"
        return Response(body_of(error), status, headers)
    # A gateway that passes this answer on to a gRPC client passes a whole gRPC status on.
    wire = status_of(error)
    headers["content-type"] = "application/grpc"
    headers["grpc-status"] = str(wire.code)
    headers["grpc-message"] = quote(wire.message, safe=_GRPC_MESSAGE_SAFE)
    headers["grpc-status-details-bin"] = base64.b64encode(wire.SerializeToString()).decode()
    return Response(status_code=status, headers=headers)
