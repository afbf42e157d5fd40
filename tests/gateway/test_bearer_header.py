"""One table of `authorization` headers at every entry point of the service."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import httpx
import pytest

from bearer_cases import BEARER_CASES, TOKEN, BearerCase
from gateway.gateway_clients import CHECK, of_response
from gateway.support import Cast, Gated
from harness import refusal_of
from keybearer_service.ext_authz.v3 import ext_authz_pb2

WHO = "/keybearer.v1.TokenService/WhoAmI"
MISSING = "CREDENTIALS_MISSING"


def grpc_method(world: Gated, keys: Cast, values: Sequence[str]) -> str:
    """Call a method of ours with these headers."""
    call: Any = world.service.channel().unary_unary(WHO)
    try:
        call(b"", metadata=[("authorization", value) for value in values], timeout=10)
    except grpc.RpcError as error:
        return refusal_of(error).reason
    return ""


def envoy(world: Gated, keys: Cast, values: Sequence[str]) -> str:
    """Have Envoy's Check judge a client with these headers."""
    headers = [ext_authz_pb2.HeaderValue(key="authorization", value=value) for value in values]
    request = ext_authz_pb2.CheckRequest()
    request.attributes.request.http.header_map.headers.extend(headers)
    call: Any = world.service.channel().unary_unary(
        CHECK, response_deserializer=ext_authz_pb2.CheckResponse.FromString
    )
    metadata = [("authorization", f"Bearer {keys.gateway}")]
    response = call(request.SerializeToString(), metadata=metadata, timeout=10)
    if response.status.code == 0:
        return ""
    return MISSING if MISSING in response.denied_response.body else "CREDENTIALS_INVALID"


def forward_auth(world: Gated, keys: Cast, values: Sequence[str]) -> str:
    """Have a gateway ask about a client with these headers."""
    headers: Any = [(b"authorization", value.encode("latin-1")) for value in values]
    caller = (b"x-keybearer-caller", f"Bearer {keys.gateway}".encode())
    response: httpx.Response = world.http.get("/v1/auth", headers=[*headers, caller])
    return "" if response.status_code == 200 else of_response(response).reason


Ask = Callable[[Gated, Cast, Sequence[str]], str]
ENTRY_POINTS: dict[str, Ask] = {
    "grpc": grpc_method,
    "ext_authz": envoy,
    "forward_auth": forward_auth,
}


# Clients and servers of HTTP change or refuse some values on the way.
ASKED = {
    f"{entry_point}: {name}": (case, ask)
    for name, case in BEARER_CASES.items()
    for entry_point, ask in ENTRY_POINTS.items()
    if case.survives_http or entry_point == "ext_authz"
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=list(ASKED))
def test_every_entry_point_reads_the_header_alike(
    world: Gated, keys: Cast, asked: tuple[BearerCase, Ask]
) -> None:
    """What is no single bearer token is CREDENTIALS_MISSING; anything else is looked up."""
    case, ask = asked
    values = [value.replace(TOKEN, keys.good) for value in case.values]
    expected = MISSING
    if case.token is not None:
        expected = "" if TOKEN in case.token else "CREDENTIALS_INVALID"
    assert ask(world, keys, values) == expected
