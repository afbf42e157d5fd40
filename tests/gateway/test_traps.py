"""Every line of the shipped files that closes a trap: taken out, the trap is open, and it is seen.

These are the planted bugs of `test_gateways.py`: an attack that fails against the shipped file must
succeed against the file without its line, or the tests there would prove nothing.
"""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest

from fakes import FakeClock, SeededEntropy
from gateway import proxies
from gateway.proxies import Keybearer, Proxy
from gateway.support import IDENTITY, Cast, Gated, Upstreams, call_arity, cast, gated

pytestmark = pytest.mark.slow
Attack = Callable[[Proxy, Gated, Cast], bool]


def headers_seen(answer: bytes) -> dict[str, str]:
    """Answer what the upstream was sent; nothing when it was not asked."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ", 2)[1] != b"200":
        return {}
    return dict(json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["headers"])


def raw(proxy: Proxy, path: str, *lines: str) -> bytes:
    """Send a request exactly as it is written."""
    request = "\r\n".join([f"GET {path} HTTP/1.1", "host: app", *lines, "", ""])
    with socket.create_connection(("127.0.0.1", proxy.http), timeout=10) as connection:
        connection.sendall(request.encode())
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def bearer(token: str) -> str:
    """Make a client's header."""
    return f"authorization: Bearer {token}"


def removes_identity(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """Aim hop-by-hop removal at what keybearer said."""
    names = ", ".join(IDENTITY)
    seen = headers_seen(raw(proxy, "/x", f"connection: close, {names}", bearer(keys.good)))
    return bool(seen) and "x-keybearer-key-id" not in seen


def spoofs_on_open_path(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """Claim an identity where no key is asked for."""
    seen = headers_seen(raw(proxy, "/healthz", "connection: close", "x-keybearer-role: ADMIN"))
    return seen.get("x-keybearer-role") == "ADMIN"


def crosses_accounts(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """Ask for any account in a header of one's own, behind an operator's gateway."""
    lines = ("connection: close", "x-keybearer-account: -", bearer(keys.tenant))
    return bool(headers_seen(raw(proxy, "/x", *lines)))


def crosses_accounts_by_query(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """The same in a query."""
    return bool(
        headers_seen(raw(proxy, "/x?account_id=-", "connection: close", bearer(keys.tenant)))
    )


def spells_path_otherwise(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """Reach /admin as a DEVELOPER under another spelling."""
    return any(
        headers_seen(raw(proxy, path, "connection: close", bearer(keys.good)))
        for path in ("//admin/users", "/x/../admin", "/%61dmin")
    )


def sees_token(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """Read the client's token in the upstream."""
    seen = headers_seen(raw(proxy, "/x", "connection: close", bearer(keys.good)))
    return "authorization" in seen


def passes_http_in_outage(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """Pass while keybearer is down."""
    world.service.app.stop(grace_s=0)
    return httpx.get(f"{proxy.url}/x", timeout=15).status_code == 200


def passes_grpc_in_outage(proxy: Proxy, world: Gated, keys: Cast) -> bool:
    """The same for gRPC."""
    world.service.app.stop(grace_s=0)
    with grpc.insecure_channel(f"127.0.0.1:{proxy.grpc}") as channel:
        try:
            return bool(call_arity(channel, "/demo.v1.EchoService/UnaryUnary", []))
        except grpc.RpcError:
            return False


class Trap(NamedTuple):
    """A line of a shipped file, what stands there without it, and what then succeeds."""

    gateway: str
    file: str
    line: str
    without: str
    attack: Attack


TRAPS = {
    "envoy believes an outage": Trap(
        "envoy",
        "envoy.yaml",
        "failure_mode_allow: false",
        "failure_mode_allow: true",
        passes_http_in_outage,
    ),
    "envoy does not strip open paths": Trap(
        "envoy", "envoy.yaml", "- { remove: x-keybearer-role }", "", spoofs_on_open_path
    ),
    "envoy merges no slashes": Trap(
        "envoy", "envoy.yaml", "merge_slashes: true", "merge_slashes: false", spells_path_otherwise
    ),
    "envoy normalizes no path": Trap(
        "envoy",
        "envoy.yaml",
        "normalize_path: true",
        "normalize_path: false",
        spells_path_otherwise,
    ),
    "nginx leads its own question to an error page": Trap(
        "nginx",
        "nginx.conf",
        "        # Where keybearer-errors.conf leads: a gRPC client",
        "        include keybearer-errors.conf; # a gRPC client",
        passes_grpc_in_outage,
    ),
    "nginx passes a client's account on": Trap(
        "nginx",
        "keybearer-check.conf",
        'proxy_set_header X-Keybearer-Account "";',
        "",
        crosses_accounts,
    ),
    "nginx passes the token on": Trap(
        "nginx", "keybearer-identity.conf", 'proxy_set_header Authorization "";', "", sees_token
    ),
    "nginx strips no open path": Trap(
        "nginx",
        "keybearer-identity.conf",
        "proxy_set_header X-Keybearer-Role $keybearer_role;",
        "",
        spoofs_on_open_path,
    ),
    "caddy keeps Connection": Trap(
        "caddy", "Caddyfile", "request_header @hop -Connection", "", removes_identity
    ),
    "caddy passes a client's account on": Trap(
        "caddy", "Caddyfile", "request_header -X-Keybearer-*", "", crosses_accounts
    ),
    "caddy asks where the query is read": Trap(
        "caddy", "Caddyfile", "uri /v1/auth/check", "uri /v1/auth", crosses_accounts_by_query
    ),
    "caddy passes the token on": Trap(
        "caddy", "Caddyfile", "request_header -Authorization", "", sees_token
    ),
    "haproxy keeps claims on open paths": Trap(
        "haproxy",
        "haproxy.cfg",
        "http-request del-header x-keybearer- -m beg",
        "",
        spoofs_on_open_path,
    ),
    "haproxy normalizes no path": Trap(
        "haproxy",
        "haproxy.cfg",
        "http-request normalize-uri path-merge-slashes",
        "",
        spells_path_otherwise,
    ),
    "haproxy believes an outage": Trap(
        "haproxy",
        "haproxy.cfg",
        "http-request return status 503 hdr Retry-After 1 unless is_probe"
        " || { var(txn.keybearer) -m str 200 }",
        "",
        passes_http_in_outage,
    ),
}


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "shipped"])
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_open_without_its_line_and_closed_with_it(
    name: str,
    tmp_path: Path,
    clock: FakeClock,
    entropy: SeededEntropy,
    upstreams: Upstreams,
    *,
    is_open: bool,
) -> None:
    """The attack succeeds against the doctored file and fails against the shipped one."""
    trap = TRAPS[name]
    edits = {trap.file: (trap.line, trap.without)} if is_open else {}
    with gated(tmp_path / "data", clock, entropy) as world:
        keys = cast(world)
        keybearer = Keybearer(world.service.app.port, world.service.app.http_port, keys.gateway)
        with proxies.running(
            trap.gateway, tmp_path / "proxy", keybearer, upstreams, edits=edits
        ) as proxy:
            assert trap.attack(proxy, world, keys) is is_open
