"""Every line of the shipped files that closes a trap: taken out, the trap is open, and it is seen.

These are the planted bugs of `test_gateways.py`: an attack that fails against the shipped file must
succeed against the file without its line, or the tests there would prove nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest

from fakes import FakeClock, SeededEntropy
from gateway import proxies
from gateway.exact_client import Answer, bearer, identities, send, send_lines, values_of
from gateway.expected import Key
from gateway.folding_upstream import folding_upstream
from gateway.proxies import Proxy, keybearer_of
from gateway.spellings import PROTECTED, areas, path_spellings
from gateway.support import IDENTITY, Cast, Gated, Upstreams, call_arity, cast, gated

pytestmark = pytest.mark.slow


class Scene(NamedTuple):
    """What an attack may use."""

    proxy: Proxy
    world: Gated
    keys: Cast
    largest: Key


Attack = Callable[[Scene], bool]
EVIL = "EVIL"


def is_served(answer: Answer) -> bool:
    """Return whether the application was asked."""
    return answer.received is not None


def read_by_application(answer: Answer, variable: str) -> set[str]:
    """Return what the application reads in a variable of the identity, by WSGI and by CGI."""
    assert answer.received is not None
    return {read.get(variable, "") for read in identities(answer.received)}


def removes_identity(scene: Scene) -> bool:
    """Aim hop-by-hop removal at what keybearer said."""
    lines = [f"connection: close, {', '.join(IDENTITY)}", ": ".join(bearer(scene.keys.good))]
    return read_by_application(send_lines(scene.proxy, "/x", lines), "KEY_ID") == {""}


def spoofs_on_open_path(scene: Scene) -> bool:
    """Claim an identity where no key is asked for."""
    return _carries(scene, "x-keybearer-role", "ROLE")


def spoofs_by_underscores(scene: Scene) -> bool:
    """Claim it in the spelling of WSGI."""
    return _carries(scene, "x_keybearer_role", "ROLE")


def spoofs_by_dots(scene: Scene) -> bool:
    """Claim it in a spelling that CGI folds."""
    return _carries(scene, "x.keybearer.role", "ROLE")


def claims_requirement(scene: Scene) -> bool:
    """Send the application a header that only the gateway sends, to keybearer."""
    return _carries(scene, "x-keybearer-required-role", "REQUIRED_ROLE")


def _carries(scene: Scene, name: str, variable: str) -> bool:
    answer = send(scene.proxy, "/healthz", [(name, EVIL)])
    return EVIL in read_by_application(answer, variable)


def passes_folding_name(scene: Scene) -> bool:
    """Name a variable of WSGI that some servers take for the path."""
    answer = send(scene.proxy, "/healthz", [("script_name", EVIL)])
    return answer.received is not None and EVIL in values_of(answer.received)


def names_other_path(scene: Scene) -> bool:
    """Name another path in a header."""
    answer = send(scene.proxy, "/healthz", [("x-original-url", "/admin")])
    return answer.received is not None and "/admin" in values_of(answer.received)


def spells_path_otherwise(scene: Scene) -> bool:
    """Reach what an application may read as a protected path, as a DEVELOPER."""
    for target in path_spellings():
        received = send(scene.proxy, target, [bearer(scene.keys.good)]).received
        if received and areas(received.target, received.wsgi_path).intersection(PROTECTED):
            return True
    return False


def spells_protected_path_in_capitals(scene: Scene) -> bool:
    """Reach it in another case."""
    return is_served(send(scene.proxy, "/ADMIN/x", [bearer(scene.keys.good)]))


def spells_open_path_in_capitals(scene: Scene) -> bool:
    """Pass without a key."""
    return is_served(send(scene.proxy, "/HEALTHZ"))


def changes_protocol(scene: Scene) -> bool:
    """Have the application change to a protocol whose requests nobody judges."""
    lines = ["connection: upgrade", "upgrade: TLS/1.0", ": ".join(bearer(scene.keys.good))]
    received = send_lines(scene.proxy, "/x", lines).received
    return received is not None and "tls/1.0" in values_of(received).lower()


def makes_tunnel(scene: Scene) -> bool:
    """Have the application make a tunnel."""
    answer = send(scene.proxy, "app:80", [bearer(scene.keys.good)], method="CONNECT")
    return answer.status != 400


def sees_token(scene: Scene) -> bool:
    """Read the client's token in the upstream."""
    received = send(scene.proxy, "/x", [bearer(scene.keys.good)]).received
    return received is not None and scene.keys.good in values_of(received)


def sees_token_on_open_path(scene: Scene) -> bool:
    """Read it where no key is asked for."""
    received = send(scene.proxy, "/healthz", [bearer(scene.keys.good)]).received
    return received is not None and scene.keys.good in values_of(received)


def loses_large_body(scene: Scene) -> bool:
    """Be refused for a body that the location of the application takes."""
    body = b"x" * (2 * 1024 * 1024)
    return not is_served(send(scene.proxy, "/x", [bearer(scene.keys.good)], body))


def loses_large_message(scene: Scene) -> bool:
    """Be refused for a large message of gRPC."""
    message = b"x" * (2 * 1024 * 1024)
    metadata = (bearer(scene.keys.good),)
    with grpc.insecure_channel(f"127.0.0.1:{scene.proxy.grpc}") as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/demo.v1.EchoService/UnaryUnary"
        )
        try:
            method(message, metadata=metadata, timeout=10)
        except grpc.RpcError:
            return True
    return False


def loses_large_identity(scene: Scene) -> bool:
    """Be refused for one's own identity."""
    return not is_served(send(scene.proxy, "/x", [bearer(scene.largest.token)]))


def loses_part_of_identity(scene: Scene) -> bool:
    """Pass with a part of the identity where a body leaves no room for all of it."""
    body = b"x" * (2 * 1024 * 1024)
    received = send(scene.proxy, "/x", [bearer(scene.largest.token)], body).received
    return received is not None and scene.largest.identity not in identities(received)


def loses_large_identity_beside_body(scene: Scene) -> bool:
    """Be refused where a body leaves no room for the identity."""
    body = b"x" * (2 * 1024 * 1024)
    return not is_served(send(scene.proxy, "/x", [bearer(scene.largest.token)], body))


def passes_http_in_outage(scene: Scene) -> bool:
    """Pass while keybearer is down."""
    scene.world.service.app.stop(grace_s=0)
    return httpx.get(f"{scene.proxy.url}/x", timeout=15).status_code == 200


def passes_grpc_in_outage(scene: Scene) -> bool:
    """Call while keybearer is down."""
    scene.world.service.app.stop(grace_s=0)
    with grpc.insecure_channel(f"127.0.0.1:{scene.proxy.grpc}") as channel:
        try:
            return bool(call_arity(channel, "/demo.v1.EchoService/UnaryUnary", []))
        except grpc.RpcError:
            return False


ENDS_SERVICE = (passes_http_in_outage, passes_grpc_in_outage)
"""Attacks that need a service of their own."""


class Trap(NamedTuple):
    """A line of a shipped file, what stands there without it, and what then succeeds."""

    gateway: str
    file: str
    line: str
    without: str
    attack: Attack
    beside: Mapping[str, tuple[str, str]] = {}
    """What is changed in other files in either case."""


def _line_of(gateway: str, file: str, start: str) -> str:
    """Return the one line of a shipped file that begins so."""
    text = (proxies.SHIPPED / gateway / file).read_text()
    [line] = {line for line in text.splitlines() if line.strip().startswith(start)}
    return line


_LEADS = "proxy_pass http://127.0.0.1:9000;"
TAKES_LARGE_BODIES = {"nginx.conf": (_LEADS, f"client_max_body_size 10m; {_LEADS}")}

TRAPS = {
    # --- Envoy
    "envoy believes an outage": Trap(
        "envoy",
        "envoy.yaml",
        "failure_mode_allow: false",
        "failure_mode_allow: true",
        passes_http_in_outage,
    ),
    "envoy passes our names on": Trap(
        "envoy",
        "envoy.yaml",
        "- remove_on_match: { key_matcher: { contains: keybearer } }",
        "",
        spoofs_on_open_path,
    ),
    "envoy passes folding names on": Trap(
        "envoy", "envoy.yaml", '"[^:a-z0-9-].*|[^:].*[^a-z0-9-].*"', '"x"', passes_folding_name
    ),
    "envoy passes other paths on": Trap(
        "envoy", "envoy.yaml", 'regex: "x-(original-ur', 'regex: "y-(original-ur', names_other_path
    ),
    "envoy takes paths with two readings": Trap(
        "envoy", "envoy.yaml", "regex: '(?is)^", "regex: '(?is)^y", spells_path_otherwise
    ),
    "envoy looks at the case": Trap(
        "envoy",
        "envoy.yaml",
        "{ prefix: /admin, case_sensitive: false }",
        "{ prefix: /admin }",
        spells_protected_path_in_capitals,
    ),
    "envoy takes a prefix for a path": Trap(
        "envoy",
        "envoy.yaml",
        "{ prefix: /admin, case_sensitive: false }",
        "{ path_separated_prefix: /admin, case_sensitive: false }",
        spells_path_otherwise,
    ),
    "envoy passes the token on where no key is asked for": Trap(
        "envoy",
        "envoy.yaml",
        "request_headers_to_remove: [authorization]",
        "",
        sees_token_on_open_path,
    ),
    # --- nginx
    "nginx leads its own question to an error page": Trap(
        "nginx",
        "nginx.conf",
        "        # Where keybearer-errors.conf leads: a gRPC client",
        "        include keybearer-errors.conf; # a gRPC client",
        passes_grpc_in_outage,
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
    "nginx passes a client's requirement on": Trap(
        "nginx",
        "keybearer-identity.conf",
        'proxy_set_header X-Keybearer-Required-Role "";',
        "",
        claims_requirement,
    ),
    "nginx passes underscores on": Trap(
        "nginx",
        "nginx.conf",
        "underscores_in_headers off;",
        "underscores_in_headers on;",
        spoofs_by_underscores,
    ),
    "nginx passes dots on": Trap(
        "nginx",
        "nginx.conf",
        "ignore_invalid_headers on;",
        "ignore_invalid_headers off;",
        spoofs_by_dots,
    ),
    "nginx passes other paths on": Trap(
        "nginx",
        "keybearer-identity.conf",
        'proxy_set_header X-Original-URL "";',
        "",
        names_other_path,
    ),
    "nginx takes paths with two readings": Trap(
        "nginx", "nginx.conf", "include keybearer-path.conf;", "", spells_path_otherwise
    ),
    "nginx looks at the case": Trap(
        "nginx",
        "nginx.conf",
        "location ~* ^/admin {",
        "location /admin {",
        spells_protected_path_in_capitals,
    ),
    "nginx asks with the limit of another location": Trap(
        "nginx",
        "keybearer-check.conf",
        "client_max_body_size 0;",
        "",
        loses_large_body,
        TAKES_LARGE_BODIES,
    ),
    "nginx limits what a stream may carry": Trap(
        "nginx", "nginx.conf", "client_max_body_size 0;", "", loses_large_message
    ),
    "nginx has no room for a large identity": Trap(
        "nginx", "keybearer-check.conf", "proxy_buffer_size 16k;", "", loses_large_identity
    ),
    # --- Caddy
    "caddy keeps Connection": Trap(
        "caddy", "Caddyfile", "request_header @hop -Connection", "", removes_identity
    ),
    "caddy passes the token on": Trap(
        "caddy", "Caddyfile", "request_header -Authorization", "", sees_token
    ),
    "caddy passes the token on where no key is asked for": Trap(
        "caddy", "Caddyfile", "request_header -Authorization", "", sees_token_on_open_path
    ),
    "caddy removes our dashes alone": Trap(
        "caddy",
        "Caddyfile",
        "request_header -*keybearer*",
        "request_header -X-Keybearer-*",
        spoofs_by_underscores,
        # The general rule would close it too.
        {"Caddyfile": ("request_header -*_*", "")},
    ),
    "caddy passes folding names on": Trap(
        "caddy", "Caddyfile", "request_header -*_*", "", passes_folding_name
    ),
    "caddy passes other paths on": Trap(
        "caddy", "Caddyfile", "request_header -X-Original-URL", "", names_other_path
    ),
    "caddy takes paths with two readings": Trap(
        "caddy", "Caddyfile", "respond @ambiguous 400", "", spells_path_otherwise
    ),
    "caddy takes a prefix for a path": Trap(
        "caddy", "Caddyfile", "path /admin*", "path /admin /admin/*", spells_path_otherwise
    ),
    "caddy opens every case of an open path": Trap(
        "caddy",
        "Caddyfile",
        "path_regexp ^/healthz$",
        "path /healthz",
        spells_open_path_in_capitals,
    ),
    "caddy changes protocols": Trap(
        "caddy", "Caddyfile", "request_header @protocol -Upgrade", "", changes_protocol
    ),
    "caddy makes tunnels": Trap("caddy", "Caddyfile", "respond @tunnel 400", "", makes_tunnel),
    # --- HAProxy
    "haproxy keeps claims on open paths": Trap(
        "haproxy",
        "haproxy.cfg",
        "http-request del-header keybearer -m sub",
        "",
        spoofs_on_open_path,
    ),
    "haproxy passes folding names on": Trap(
        "haproxy",
        "haproxy.cfg",
        "option http-restrict-req-hdr-names delete",
        "",
        passes_folding_name,
    ),
    "haproxy passes other paths on": Trap(
        "haproxy",
        "haproxy.cfg",
        _line_of("haproxy", "haproxy.cfg", "http-request del-header ^x-"),
        "",
        names_other_path,
    ),
    "haproxy takes paths with two readings": Trap(
        "haproxy",
        "haproxy.cfg",
        _line_of("haproxy", "haproxy.cfg", "http-request return status 400 if { path -m reg"),
        "",
        spells_path_otherwise,
    ),
    "haproxy looks at the case": Trap(
        "haproxy",
        "haproxy.cfg",
        "path,url_dec -m beg -i /admin",
        "path,url_dec -m beg /admin",
        spells_protected_path_in_capitals,
    ),
    "haproxy takes a prefix for a path": Trap(
        "haproxy",
        "haproxy.cfg",
        "path,url_dec -m beg -i /admin",
        "path,url_dec -i /admin /admin/x",
        spells_path_otherwise,
    ),
    "haproxy changes protocols": Trap(
        "haproxy",
        "haproxy.cfg",
        "http-request del-header upgrade unless { req.hdr(upgrade) -i websocket }",
        "",
        changes_protocol,
    ),
    "haproxy believes an outage": Trap(
        "haproxy",
        "haproxy.cfg",
        "http-request return status 503 hdr Retry-After 1 unless is_probe"
        " || { var(txn.keybearer) -m str 200 }",
        "",
        passes_http_in_outage,
    ),
    "haproxy has no room for a large identity beside a body": Trap(
        "haproxy", "haproxy.cfg", "tune.maxrewrite 16384", "", loses_large_identity_beside_body
    ),
    "haproxy passes a part of an identity on": Trap(
        "haproxy",
        "keybearer.lua",
        "if values(txn.http:req_get_headers(), name)[1] ~= value then return end",
        "",
        loses_part_of_identity,
        {"haproxy.cfg": ("tune.maxrewrite 16384", "")},
    ),
    # --- Traefik
    "traefik keeps claims on open paths": Trap(
        "traefik",
        "keybearer.yaml",
        'X-Keybearer-Role: ""',
        'X-Nothing: ""',
        spoofs_on_open_path,
    ),
    "traefik passes a client's requirement on": Trap(
        "traefik",
        "keybearer.yaml",
        'X-Keybearer-Required-Role: ""',
        'X-Nothing: ""',
        claims_requirement,
    ),
    "traefik passes folding names on": Trap(
        "traefik",
        "traefik.yaml",
        "aliasHeadersStrategy: delete",
        "aliasHeadersStrategy: keep",
        spoofs_by_underscores,
    ),
    "traefik passes other paths on": Trap(
        "traefik", "keybearer.yaml", 'X-Original-Url: ""', 'X-Nothing: ""', names_other_path
    ),
    "traefik passes the token on": Trap(
        "traefik", "keybearer.yaml", 'Authorization: ""', 'X-Nothing: ""', sees_token
    ),
    "traefik takes paths with two readings": Trap(
        "traefik", "keybearer.yaml", "priority: 1000", "priority: 1", spells_path_otherwise
    ),
    "traefik cleans no path up": Trap(
        "traefik",
        "traefik.yaml",
        "sanitizePath: true",
        "sanitizePath: false",
        spells_path_otherwise,
    ),
    "traefik takes encoded slashes": Trap(
        "traefik",
        "traefik.yaml",
        "allowEncodedSlash: false",
        "allowEncodedSlash: true",
        spells_path_otherwise,
    ),
    "traefik takes what is encoded twice": Trap(
        "traefik",
        "traefik.yaml",
        "allowEncodedPercent: false",
        "allowEncodedPercent: true",
        spells_path_otherwise,
    ),
    "traefik looks at the case": Trap(
        "traefik",
        "keybearer.yaml",
        "(?i)^/admin",
        "^/admin",
        spells_protected_path_in_capitals,
    ),
    "traefik takes a prefix for a path": Trap(
        "traefik", "keybearer.yaml", "(?i)^/admin", "(?i)^/admin(/|$)", spells_path_otherwise
    ),
    "traefik changes protocols": Trap(
        "traefik", "keybearer.yaml", 'Upgrade: ""', 'X-Nothing: ""', changes_protocol
    ),
}


@pytest.fixture(scope="module")
def folding(upstreams: Upstreams) -> Iterator[Upstreams]:
    """The application that folds header names, beside the gRPC service."""
    with folding_upstream() as port:
        yield Upstreams(port, upstreams.grpc)


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "shipped"])
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_open_without_its_line_and_closed_with_it(
    name: str,
    tmp_path: Path,
    clock: FakeClock,
    entropy: SeededEntropy,
    folding: Upstreams,
    world: Gated,
    keys: Cast,
    largest: Key,
    *,
    is_open: bool,
) -> None:
    """The attack succeeds against the file without the line and fails against the shipped one."""
    trap = TRAPS[name]
    edits = [(file, *edit) for file, edit in trap.beside.items()]
    if is_open:
        edits.append((trap.file, trap.line, trap.without))
    with ExitStack() as stack:
        if trap.attack in ENDS_SERVICE:
            world = stack.enter_context(gated(tmp_path / "data", clock, entropy))
            keys = cast(world)
        keybearer = keybearer_of(world, keys)
        proxy = stack.enter_context(
            proxies.running(trap.gateway, tmp_path / "proxy", keybearer, folding, edits=edits)
        )
        succeeded = trap.attack(Scene(proxy, world, keys, largest))
    assert succeeded is is_open
