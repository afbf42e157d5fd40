"""The entry points for gateways, each as a function: who asks, about which token, for what."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2

from gateway.support import IDENTITY, Gated
from harness import refusal_of
from keybearer.v1 import token_service_pb2
from keybearer_service.ext_authz.v3 import ext_authz_pb2

Asked = Sequence[tuple[str, str]]
CHECK = "/envoy.service.auth.v3.Authorization/Check"
HEADERS = {
    "required_role": "x-keybearer-required-role",
    "required_scopes": "x-keybearer-required-scopes",
    "account_id": "x-keybearer-account",
}


@dataclass
class Answer:
    """What an entry point answered, in words that all share."""

    kind: str
    """admitted, unauthenticated, forbidden, unavailable."""
    reason: str = ""
    """Of ErrorInfo, or of the body; empty where the entry point does not tell."""
    key_id: str = ""
    identity: dict[str, Any] = field(default_factory=dict)
    challenge: str = ""


DENIALS = {
    "NOT_FOUND": ("unauthenticated", "CREDENTIALS_INVALID"),
    "REVOKED": ("unauthenticated", "CREDENTIALS_INVALID"),
    "DISABLED": ("unauthenticated", "CREDENTIALS_INVALID"),
    "EXPIRED": ("unauthenticated", "CREDENTIALS_EXPIRED"),
    "ROLE_INSUFFICIENT": ("forbidden", "ROLE_INSUFFICIENT"),
    "SCOPE_INSUFFICIENT": ("forbidden", "SCOPE_INSUFFICIENT"),
}
"""How other entry points name the outcomes of ValidateToken: section 6 of the contract."""


def validate_token(world: Gated, gateway: str, token: str, asked: Asked) -> Answer:
    """Ask by ValidateToken, which knows one source and takes enum names."""
    wanted: dict[str, Any] = {}
    for name, value in asked:
        if name == "required_role":
            wanted[name] = f"ROLE_{value}"
        elif name == "required_scopes":
            wanted[name] = value.split(",")
        else:
            wanted[name] = value
    try:
        answer = world.service.as_token(gateway).validate(token, **wanted)
    except grpc.RpcError as error:
        return _of_call(error)
    outcome = token_service_pb2.ValidationOutcome.Name(answer.outcome)
    outcome = outcome.removeprefix("VALIDATION_OUTCOME_")
    if outcome == "VALID":
        return Answer("admitted", key_id=answer.key_id)
    return Answer(*DENIALS[outcome])


def check_request(
    headers: dict[str, str], extensions: dict[str, str]
) -> ext_authz_pb2.CheckRequest:
    """Make what Envoy sends."""
    attributes = ext_authz_pb2.AttributeContext
    return ext_authz_pb2.CheckRequest(
        attributes=attributes(
            request=attributes.Request(http=attributes.HttpRequest(headers=headers)),
            context_extensions=extensions,
        )
    )


def send_check(
    world: Gated, gateway: str | None, request: ext_authz_pb2.CheckRequest
) -> ext_authz_pb2.CheckResponse:
    """Call Check as Envoy does."""
    channel: Any = world.service.channel()
    call = channel.unary_unary(
        CHECK,
        request_serializer=ext_authz_pb2.CheckRequest.SerializeToString,
        response_deserializer=ext_authz_pb2.CheckResponse.FromString,
    )
    metadata = [] if gateway is None else [("authorization", f"Bearer {gateway}")]
    response: ext_authz_pb2.CheckResponse = call(request, metadata=metadata, timeout=10)
    return response


def ext_authz(world: Gated, gateway: str, token: str, asked: Asked) -> Answer:
    """Ask by Envoy's Check, for a gRPC client, whose denials carry an ErrorInfo."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/grpc"}
    try:
        response = send_check(world, gateway, check_request(headers, dict(asked)))
    except grpc.RpcError as error:
        return _of_call(error)
    if not response.status.code:
        options = response.ok_response.headers
        assert {one.append_action for one in options} == {2}
        identity = {one.header.key: one.header.value for one in options}
        return Answer("admitted", key_id=identity["x-keybearer-key-id"], identity=identity)
    denied = {one.header.key: one.header.value for one in response.denied_response.headers}
    return Answer(
        {401: "unauthenticated", 403: "forbidden"}[response.denied_response.status.code],
        reason_in(denied["grpc-status-details-bin"]),
        challenge=denied["www-authenticate"],
    )


def forward_auth_request(
    gateway: str | None, token: str | None, asked: Asked
) -> list[tuple[str, str]]:
    """Make the headers that a gateway sends to /v1/auth."""
    headers = [(HEADERS[name], value) for name, value in asked]
    if gateway is not None:
        headers.append(("x-keybearer-caller", f"Bearer {gateway}"))
    if token is not None:
        headers.append(("authorization", f"Bearer {token}"))
    return headers


def of_response(response: httpx.Response) -> Answer:
    """Read what /v1/auth answered."""
    if response.status_code == 200:
        identity = {name: response.headers[name] for name in IDENTITY}
        return Answer("admitted", key_id=identity["x-keybearer-key-id"], identity=identity)
    return Answer(
        {401: "unauthenticated", 403: "forbidden", 503: "unavailable"}[response.status_code],
        response.json()["error"],
        challenge=response.headers.get("www-authenticate", ""),
    )


def forward_auth(world: Gated, gateway: str, token: str, asked: Asked) -> Answer:
    """Ask by /v1/auth, with headers."""
    return of_response(
        world.http.get("/v1/auth", headers=forward_auth_request(gateway, token, asked))
    )


def forward_auth_by_query(world: Gated, gateway: str, token: str, asked: Asked) -> Answer:
    """Ask by /v1/auth, with a query."""
    return of_response(
        world.http.get(
            "/v1/auth",
            params=list(asked),
            headers=forward_auth_request(gateway, token, ()),
        )
    )


def introspection(world: Gated, gateway: str, token: str, asked: Asked) -> Answer:
    """Ask by RFC 7662, which tells of no reason why a token is not active."""
    response = world.http.post(
        "/oauth2/introspect",
        data={"token": token},
        headers=forward_auth_request(gateway, None, asked),
    )
    if response.status_code != 200:
        return of_response(response)
    answer = response.json()
    if answer == {"active": False}:
        return Answer("inactive")
    assert answer["active"] is True
    return Answer("admitted", key_id=answer["key_id"], identity=answer)


ENTRY_POINTS: dict[str, Callable[[Gated, str, str, Asked], Answer]] = {
    "ValidateToken": validate_token,
    "ext_authz": ext_authz,
    "forward_auth": forward_auth,
    "forward_auth_query": forward_auth_by_query,
    "introspection": introspection,
}


def reason_in(details: str) -> str:
    """Decode the reason of the ErrorInfo in a `grpc-status-details-bin` header."""
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "keybearer.v1"
    return str(info.reason)


def _of_call(error: grpc.RpcError) -> Answer:
    refusal = refusal_of(error)
    kinds = {"UNAUTHENTICATED": "unauthenticated", "PERMISSION_DENIED": "forbidden"}
    return Answer(kinds.get(refusal.code.name, refusal.code.name.lower()), refusal.reason)
