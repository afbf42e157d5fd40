"""envoy.service.auth.v3.Authorization, as Envoy's gRPC ext_authz filter calls it.

Denials are answers. Only when there is no verdict, as in an outage, does the call itself fail: then
Envoy's own policy decides, which by default denies with `status_on_error`.
"""

import base64
from collections.abc import Iterable

from google.protobuf.struct_pb2 import Struct

from keybearer._wire.bearer import AUTHORIZATION, token_of
from keybearer.access import AccessRule, Role
from keybearer_service.domain.errors import Code, ServiceError
from keybearer_service.domain.verdict import Match
from keybearer_service.ext_authz.v3 import ext_authz_pb2 as pb
from keybearer_service.gateway.authorizer import (
    IDENTITY_HEADERS,
    Authorizer,
    gateway_of,
    identity_of,
)
from keybearer_service.gateway.status import body_of, challenge_of, http_status_of, status_of
from keybearer_service.telemetry.recorder import EntryPoint
from keybearer_service.usecases.call_context import CallContext

SERVICE = "envoy.service.auth.v3.Authorization"
CHECK_METHOD = f"/{SERVICE}/Check"
RULE = AccessRule(only_roles=(Role.VALIDATOR, Role.ADMIN))
"""Who may ask, as for ValidateToken. Envoy's proto cannot carry it."""
REQUEST, RESPONSE = pb.CheckRequest, pb.CheckResponse
KEEP_AUTHORIZATION = "keep_authorization"
"""A context extension, `true` or `false`: whether the upstream sees the client's token."""

_DENIALS = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
_OVERWRITE = pb.HeaderValueOption.HEADER_APPEND_ACTION_OVERWRITE_IF_EXISTS_OR_ADD


class AuthorizationServicer:
    """Judges the clients of an Envoy."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def Check(self, request: pb.CheckRequest, call: CallContext) -> pb.CheckResponse:
        """Let a request pass or deny it."""
        attributes = request.attributes
        asked = dict(attributes.context_extensions)
        keep = asked.pop(KEEP_AUTHORIZATION, "false")
        headers = list(_headers(attributes.request.http))
        try:
            match = self._authorizer.authorize(
                EntryPoint.EXT_AUTHZ,
                gateway_of(call.identity),
                asked.items() if keep in ("true", "false") else [(KEEP_AUTHORIZATION, keep)],
                [value for name, value in headers if name == AUTHORIZATION],
            )
        except ServiceError as error:
            if error.code not in _DENIALS:
                raise
            return _denied(error, is_grpc=_is_grpc(headers))
        return _admitted(match, keep=keep == "true")


def tokens_in(request: pb.CheckRequest) -> list[str]:
    """Return the tokens of the clients that a request asks about."""
    headers = _headers(request.attributes.request.http)
    token = token_of(value for name, value in headers if name == AUTHORIZATION)
    return [] if token is None else [token]


def _headers(http: pb.AttributeContext.HttpRequest) -> Iterable[tuple[str, str]]:
    yield from http.headers.items()
    for header in http.header_map.headers:
        value = header.raw_value.decode("latin-1") if header.raw_value else header.value
        yield header.key, value


def _is_grpc(headers: Iterable[tuple[str, str]]) -> bool:
    return any(
        name == "content-type" and value.startswith("application/grpc") for name, value in headers
    )


def _header(name: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(
        header=pb.HeaderValue(key=name, value=value), append_action=_OVERWRITE
    )


def _admitted(match: Match, *, keep: bool) -> pb.CheckResponse:
    identity = dict(zip(IDENTITY_HEADERS, identity_of(match), strict=True))
    facts = Struct()
    for name, value in identity.items():
        facts.fields[name.removeprefix("x-keybearer-").replace("-", "_")].string_value = value
    return pb.CheckResponse(
        status=pb.Status(code=0),
        ok_response=pb.OkHttpResponse(
            headers=[_header(name, value) for name, value in identity.items()],
            headers_to_remove=() if keep else ("authorization",),
        ),
        dynamic_metadata=facts,
    )


def _denied(error: ServiceError, *, is_grpc: bool) -> pb.CheckResponse:
    status = status_of(error)
    headers = [_header("www-authenticate", challenge_of(error))]
    if is_grpc:
        # Envoy makes the body the message of the status, and passes headers on as trailers.
        details = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
        headers.append(_header("grpc-status-details-bin", details))
    else:
        headers += [
            _header("content-type", "application/json"),
            _header("cache-control", "no-store"),
        ]
    return pb.CheckResponse(
        status=pb.Status(code=status.code, message=error.message),
        denied_response=pb.DeniedHttpResponse(
            status=pb.HttpStatus(code=http_status_of(error)),
            headers=headers,
            body=error.message if is_grpc else body_of(error),
        ),
    )
