"""Real gateways with the shipped configurations, before a real HTTP and a real gRPC upstream."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from fakes import FakeClock, SeededEntropy
from gateway import proxies
from gateway.proxies import Keybearer, Proxy, grpc_address, keybearer_of
from gateway.support import (
    ARITIES,
    IDENTITY,
    KEY_NAME_OUT,
    Cast,
    Gated,
    Upstreams,
    call_arity,
    cast,
    gated,
)
from harness import Refusal, refusal_of

ECHO = "/demo.v1.EchoService"
ADMIN = "/demo.v1.AdminService"
RICH = {"envoy", "caddy"}
"""Gateways that pass keybearer's own denial on to a gRPC client."""
SPOOFED = [(name, "evil") for name in IDENTITY]


@pytest.fixture(scope="module", params=proxies.NAMES)
def proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    world: Gated,
    keys: Cast,
    upstreams: Upstreams,
) -> Iterator[Proxy]:
    """A gateway that is running before `world`."""
    directory = tmp_path_factory.mktemp("proxy") / request.param
    with proxies.running(request.param, directory, keybearer_of(world, keys), upstreams) as one:
        yield one


@pytest.fixture(scope="module")
def http(proxy: Proxy) -> Iterator[httpx.Client]:
    """A client of the gateway."""
    with httpx.Client(base_url=proxy.url, timeout=10) as client:
        yield client


@pytest.fixture(scope="module")
def channel(proxy: Proxy) -> Iterator[grpc.Channel]:
    """A gRPC client of the gateway."""
    with grpc.insecure_channel(grpc_address(proxy)) as one:
        yield one


def bearer(token: str) -> tuple[str, str]:
    """Make the one header of a client."""
    return ("authorization", f"Bearer {token}")


def seen_by_upstream(answer: httpx.Response) -> list[tuple[str, str]]:
    """Return what the application was sent."""
    assert answer.status_code == 200, answer.text
    return [(name, value) for name, value in answer.json()["headers"]]


def of_keybearer(seen: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what an application could take for keybearer's word."""
    return sorted((name, value) for name, value in seen if name.startswith("x-keybearer") and value)


# --- HTTP -----------------------------------------------------------------------------------------


def test_an_allowed_request_carries_the_whole_identity(
    world: Gated, keys: Cast, http: httpx.Client
) -> None:
    """The upstream is told who came, and not with which token."""
    seen = seen_by_upstream(http.get("/orders?page=2", headers=[bearer(keys.good)]))
    assert of_keybearer(seen) == [
        ("x-keybearer-account", world.service.account_id),
        ("x-keybearer-key-id", keys.good_key_id),
        ("x-keybearer-key-name", KEY_NAME_OUT),
        ("x-keybearer-owner", world.service.admin_user_id),
        ("x-keybearer-owner-email", "admin@example.com"),
        ("x-keybearer-role", "DEVELOPER"),
        ("x-keybearer-scopes", "clusters.read,logs.*"),
    ]
    assert "authorization" not in dict(seen)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_methods_paths_and_bodies_reach_the_upstream(
    keys: Cast, http: httpx.Client, method: str
) -> None:
    """Asking keybearer changes nothing else of a request."""
    answer = http.request(
        method, "/orders/7?page=2", headers=[bearer(keys.good)], content=b"x" * 99
    )
    assert answer.json()["path"] == "/orders/7?page=2"
    assert ["content-length", "99"] in answer.json()["headers"]


@pytest.mark.parametrize(
    "token", ["revoked", "expired", "disabled", "unknown", "malformed", "tenant"]
)
def test_a_bad_key_is_401_with_the_challenge(keys: Cast, http: httpx.Client, token: str) -> None:
    """Never 429, never 5xx; and the challenge comes once."""
    answer = http.get("/orders", headers=[bearer(getattr(keys, token))])
    assert answer.status_code == 401
    [challenge] = answer.headers.get_list("www-authenticate")
    assert challenge.startswith('Bearer realm="keybearer", error="invalid_token"')


def test_no_key_is_401(http: httpx.Client) -> None:
    """Whoever shows nothing gets nothing."""
    answer = http.get("/orders")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="keybearer"'


@pytest.mark.parametrize("path", ["/admin", "/admin/users", "/clusters/7"])
def test_too_little_authority_is_403(keys: Cast, http: httpx.Client, path: str) -> None:
    """A route's requirement is asked for, role and scopes alike."""
    answer = http.get(path, headers=[bearer(keys.good)])
    assert answer.status_code == 403
    assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
    assert http.get(path, headers=[bearer(keys.admin)]).status_code == 200


@pytest.mark.parametrize("path", ["//admin/users", "/x/../admin", "/%61dmin", "/./admin/users"])
def test_another_spelling_of_a_path_relaxes_nothing(proxy: Proxy, keys: Cast, path: str) -> None:
    """What needs an ADMIN needs one however it is written."""
    request = f"GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n"
    request += f"authorization: Bearer {keys.good}\r\n\r\n"
    status = _raw_status(proxy, request)
    assert status in (400, 403)


def _raw_status(proxy: Proxy, request: str) -> int:
    return int(_raw(proxy, request).split(b" ", 2)[1])


def _raw(proxy: Proxy, request: str) -> bytes:
    # Clients tidy up what they send; this one does not.
    with socket.create_connection(("127.0.0.1", proxy.http), timeout=10) as connection:
        connection.sendall(request.encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_spoofed_identity_headers_do_not_survive(keys: Cast, http: httpx.Client) -> None:
    """Each header the upstream sees is keybearer's, also where keybearer has nothing to say."""
    seen = seen_by_upstream(http.get("/orders", headers=[bearer(keys.admin), *SPOOFED]))
    assert "evil" not in [value for _, value in seen]
    assert dict(seen).get("x-keybearer-scopes", "") == ""
    assert dict(seen)["x-keybearer-role"] == "ADMIN"
    assert len(of_keybearer(seen)) == len(dict(of_keybearer(seen)))


def test_spoofed_identity_headers_do_not_survive_where_no_key_is_asked_for(
    http: httpx.Client,
) -> None:
    """An open path carries no identity at all."""
    seen = seen_by_upstream(http.get("/healthz", headers=SPOOFED))
    assert of_keybearer(seen) == []


def test_a_connection_header_takes_no_identity_away(proxy: Proxy, keys: Cast) -> None:
    """Hop-by-hop removal cannot be aimed at what keybearer said."""
    names = ", ".join(IDENTITY)
    request = f"GET /orders HTTP/1.1\r\nhost: app\r\nconnection: close, {names}\r\n"
    received = _raw(proxy, request + f"authorization: Bearer {keys.good}\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split(b" ", 2)[1] == b"200", received
    text = body[body.index(b"{") : body.rindex(b"}") + 1]
    assert dict(json.loads(text)["headers"])["x-keybearer-key-id"] == keys.good_key_id


def test_a_client_cannot_choose_the_requirement(keys: Cast, http: httpx.Client) -> None:
    """Neither another account nor a lower role can be asked for by the client itself."""
    for name, value in (
        ("x-keybearer-account", "-"),
        ("x-keybearer-account", keys.tenant_account),
        ("x-keybearer-caller", f"Bearer {keys.admin}"),
    ):
        headers = [bearer(keys.tenant), (name, value)]
        for path in ("/orders", "/orders?account_id=-", "/?account_id=-"):
            assert http.get(path, headers=headers).status_code == 401
    lower = [bearer(keys.good), ("x-keybearer-required-role", "DEVELOPER")]
    assert http.get("/admin?required_role=DEVELOPER", headers=lower).status_code == 403


def test_a_client_cannot_break_its_own_request(keys: Cast, http: httpx.Client) -> None:
    """Parameters and headers of an application that look like ours are the application's."""
    answer = http.get("/orders?required_role=ADMIN&x=%zz", headers=[bearer(keys.good), *SPOOFED])
    assert answer.status_code == 200


def test_two_credentials_are_none(proxy: Proxy, keys: Cast) -> None:
    """A gateway and keybearer must not believe in different ones."""
    one = f"authorization: Bearer {keys.good}\r\n"
    request = f"GET /orders HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{one}{one}\r\n"
    assert _raw_status(proxy, request) in (400, 401)


# --- gRPC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arity", ARITIES)
def test_an_allowed_call_carries_the_identity(
    keys: Cast, channel: grpc.Channel, arity: str
) -> None:
    """In all four arities, with the client's own claims gone."""
    seen = call_arity(channel, f"{ECHO}/{arity}", [bearer(keys.good), *SPOOFED])
    assert seen["x-keybearer-key-id"] == keys.good_key_id
    assert seen["x-keybearer-role"] == "DEVELOPER"
    assert "authorization" not in seen
    assert "evil" not in seen.values()


def call_refused(channel: grpc.Channel, method: str, token: str) -> Refusal:
    """Make a call of the gRPC upstream that must be refused."""
    try:
        call_arity(channel, method, [bearer(token)])
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError("the call was not refused")


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("case", ["denied", "insufficient"])
def test_a_denied_call_has_the_status_of_its_reason(
    proxy: Proxy, keys: Cast, channel: grpc.Channel, case: str, arity: str
) -> None:
    """In all four arities; where the gateway can, with the ErrorInfo of keybearer."""
    if case == "denied":
        refusal = call_refused(channel, f"{ECHO}/{arity}", keys.expired)
        code, reason = grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED"
    else:
        refusal = call_refused(channel, f"{ADMIN}/{arity}", keys.good)
        code, reason = grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT"
        assert call_arity(channel, f"{ADMIN}/{arity}", [bearer(keys.admin)])
    if proxy.name == "haproxy" and refusal.code is grpc.StatusCode.CANCELLED:
        assert arity.startswith("Stream")  # it resets a stream whose client is still sending
        return
    assert refusal.code is code
    assert "{" not in refusal.message
    if proxy.name in RICH:
        assert refusal.reason == reason


# --- keybearer gone -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", proxies.NAMES)
def test_with_keybearer_stopped_nobody_passes_and_nobody_is_called_bad(
    name: str,
    tmp_path: Path,
    clock: FakeClock,
    entropy: SeededEntropy,
    upstreams: Upstreams,
) -> None:
    """It fails closed: 503 (Traefik: 500 too) and UNAVAILABLE, for good keys and bad ones."""
    with gated(tmp_path / "data", clock, entropy) as world:
        keys = cast(world)
        with proxies.running(name, tmp_path / name, keybearer_of(world, keys), upstreams) as proxy:
            assert status_of(proxy, keys.good) == 200
            with world.outage():
                _assert_unavailable(proxy, keys)
            assert status_of(proxy, keys.good) == 200
            world.service.app.stop(grace_s=0)
            _assert_unavailable(proxy, keys)


def status_of(proxy: Proxy, token: str) -> int:
    """Send a request; no assertion that fails shows the token."""
    return httpx.get(f"{proxy.url}/x", headers=[bearer(token)], timeout=15).status_code


def _assert_unavailable(proxy: Proxy, keys: Cast) -> None:
    def refusal() -> Refusal:
        with grpc.insecure_channel(grpc_address(proxy)) as channel:
            return call_refused(channel, f"{ECHO}/UnaryUnary", keys.good)

    # At once: one of the gateways tries for seconds before it gives up.
    with ThreadPoolExecutor(3) as pool:
        good, bad = (pool.submit(status_of, proxy, one) for one in (keys.good, keys.unknown))
        call = None if proxy.grpc is None else pool.submit(refusal)
        statuses = {good.result(), bad.result()}
        assert len(statuses) == 1
        assert statuses <= ({500, 503} if proxy.name == "traefik" else {503})
        assert call is None or call.result().code is grpc.StatusCode.UNAVAILABLE


def test_a_gateway_whose_own_key_died_lets_nobody_pass_and_calls_nobody_bad(
    proxy: Proxy, world: Gated, tmp_path: Path, keys: Cast, upstreams: Upstreams
) -> None:
    """Its clients hear 403 or 503, never that their key is no good."""
    known = keybearer_of(world, keys)
    lapsed: Any = Keybearer(known.grpc, known.http, keys.revoked)
    with proxies.running(proxy.name, tmp_path / "proxy", lapsed, upstreams) as other:
        answer = httpx.get(f"{other.url}/x", headers=[bearer(keys.good)])
        assert answer.status_code in (403, 503)
