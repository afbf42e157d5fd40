"""What a client may spell otherwise, and what may grow: names, paths, bodies, identities.

Each gateway runs with its shipped files before an application that folds header names as WSGI and
CGI do. Nothing here reads dashes: what counts is what the application understands.
"""

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import grpc
import pytest

from gateway import proxies
from gateway.exact_client import bearer, identities, send, send_lines, values_of
from gateway.expected import NOBODY, Key
from gateway.folding_upstream import folding_upstream, received_from
from gateway.http2_client import http2_client
from gateway.proxies import Proxy, grpc_address, keybearer_of
from gateway.spellings import (
    FOLDED,
    LEGITIMATE,
    OTHER_PATHS,
    OURS,
    PROTECTED,
    areas,
    batches,
    header_spellings,
    path_spellings,
    random_spelling,
)
from gateway.support import Cast, Gated, Upstreams, call_arity
from harness import refusal_of

EVIL = "EVIL"
HEADERS_AT_ONCE = 60
"""HAProxy and Envoy take about 100 in a request."""
LARGE_BODY = 2 * 1024 * 1024
DRAWN = 200
MANY_AT_ONCE = 16
"""Envoy waits for a second before it closes a connection that is not HTTP/2."""
REFUSED = (400, 401, 403)


@pytest.fixture(scope="module", params=proxies.NAMES)
def proxy(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    world: Gated,
    keys: Cast,
    upstreams: Upstreams,
) -> Iterator[Proxy]:
    """A gateway before the folding application; nginx lets bodies of 10 MB pass."""
    keybearer = keybearer_of(world, keys)
    edits = []
    if request.param == "nginx":
        leads = "proxy_pass http://127.0.0.1:9000;"
        edits.append(("nginx.conf", leads, f"client_max_body_size 10m; {leads}"))
    directory = tmp_path_factory.mktemp("proxy") / request.param
    with (
        folding_upstream() as port,
        proxies.running(
            request.param, directory, keybearer, Upstreams(port, upstreams.grpc), edits=edits
        ) as one,
    ):
        yield one


# --- header names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/healthz", "/orders", *PROTECTED])
def test_no_spelling_of_a_header_name_reaches_the_application(
    proxy: Proxy, keys: Cast, usual: Key, path: str
) -> None:
    """Neither beside keybearer's word nor in its place, on open paths too."""
    token = usual.token if path == "/orders" else keys.admin
    for names in batches(header_spellings(), HEADERS_AT_ONCE):
        claims = [(name, EVIL) for name in names]
        # Before the credential and behind it, as some servers keep the last of two.
        answer = send(proxy, path, [*claims[::2], bearer(token), *claims[1::2]])
        assert answer.received is not None, answer.status
        assert EVIL not in values_of(answer.received)
        if path == "/healthz":
            assert identities(answer.received) == [{}, {}]
        elif path == "/orders":
            assert identities(answer.received) == [usual.identity, usual.identity]


@pytest.mark.parametrize("name", OURS)
def test_a_repeated_header_is_not_added_to_the_identity(
    proxy: Proxy, usual: Key, name: str
) -> None:
    """Twice the same name is removed twice."""
    lines = [(name, EVIL), bearer(usual.token), (name.upper(), EVIL), (name, "")]
    answer = send(proxy, "/orders", lines)
    assert answer.received is not None
    assert identities(answer.received) == [usual.identity, usual.identity]


ODD_LINES = {
    "a blank before the colon": "X-Keybearer-Role : EVIL",
    "a tab before the colon": "X-Keybearer-Role\t: EVIL",
    "a blank before the name": " X-Keybearer-Role: EVIL",
    "a continuation": "X-A: b\r\n X-Keybearer-Role: EVIL",
    "a bare line feed": "X-A: b\nX-Keybearer-Role: EVIL",
    "a bare carriage return": "X-A: b\rX-Keybearer-Role: EVIL",
    "a NUL behind the name": "X-Keybearer-Role\0: EVIL",
    "a NUL in the name": "X-Keybearer\0Role: EVIL",
    "a no-break space": "X-Keybearer\xa0Role: EVIL",
    "a soft hyphen": "X\xadKeybearer\xadRole: EVIL",
    "another letter K": "X-\xe2\x84\xaaeybearer-Role: EVIL",
    "a colon in the name": "X:Keybearer-Role: EVIL",
    "a parenthesis": "X(Keybearer)Role: EVIL",
    "no name": ": EVIL",
}


@pytest.mark.parametrize("case", ODD_LINES)
@pytest.mark.parametrize("path", ["/healthz", "/orders"])
def test_a_line_that_is_no_header_makes_no_identity(
    proxy: Proxy, usual: Key, case: str, path: str
) -> None:
    """It is refused, or it is not read as one of ours."""
    answer = send_lines(proxy, path, [ODD_LINES[case], ": ".join(bearer(usual.token))])
    if answer.received is None:
        assert answer.status == 400
        return
    identity = usual.identity if path == "/orders" else {}
    assert identities(answer.received) == [identity, identity]


@pytest.mark.parametrize("name", OTHER_PATHS)
def test_no_header_names_another_path(proxy: Proxy, usual: Key, name: str) -> None:
    """What was judged is the path; some frameworks would serve the one in such a header."""
    answer = send(proxy, "/x/admin", [(name, "/admin"), bearer(usual.token)])
    assert answer.received is not None
    assert "/admin" not in values_of(answer.received)


@pytest.mark.parametrize("character", FOLDED)
def test_a_name_that_folds_is_not_passed_on(proxy: Proxy, usual: Key, character: str) -> None:
    """Ours or not: it could be any other header."""
    answer = send(proxy, "/orders", [(f"x{character}other", EVIL), bearer(usual.token)])
    assert answer.received is not None
    assert EVIL not in values_of(answer.received)


@pytest.mark.parametrize("path", ["/healthz", "/orders"])
def test_no_token_reaches_the_application(proxy: Proxy, usual: Key, path: str) -> None:
    """On an open path neither."""
    answer = send(proxy, path, [bearer(usual.token)])
    assert answer.received is not None
    assert usual.token not in values_of(answer.received)


def test_other_headers_are_the_applications(proxy: Proxy, usual: Key) -> None:
    """They arrive as they were sent, each once."""
    headers = [("X-Other-1", "a, b"), ("cookie", "x_keybearer_role=c"), bearer(usual.token)]
    answer = send(proxy, "/orders", headers)
    assert answer.received is not None
    for read in answer.received.variables("HTTP_"):
        assert (read["HTTP_X_OTHER_1"], read["HTTP_COOKIE"]) == ("a, b", "x_keybearer_role=c")


@pytest.mark.parametrize("protocol", ["h2c", "H2C", "h2c, websocket", "websocket, h2c", "TLS/1.0"])
def test_no_other_protocol_is_offered_to_the_application(
    proxy: Proxy, usual: Key, protocol: str
) -> None:
    """A connection that became HTTP/2 would carry requests that nobody judges."""
    lines = [
        f"Upgrade: {protocol}",
        "Connection: upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        ": ".join(bearer(usual.token)),
    ]
    answer = send_lines(proxy, "/orders", lines)
    if answer.received is not None:
        assert [read.get("HTTP_UPGRADE", "") for read in answer.received.variables("HTTP_")] == [
            "",
            "",
        ]


# --- paths ----------------------------------------------------------------------------------------


def test_no_spelling_of_a_path_opens_it(proxy: Proxy, usual: Key) -> None:
    """What the application may read as protected is served to nobody without the authority."""
    claims = cycle(batches(header_spellings(), HEADERS_AT_ONCE))
    opened, claimed, refused = [], [], {}
    for target in path_spellings():
        headers = [(name, EVIL) for name in next(claims)]
        for token in ("", usual.token):
            credential = [bearer(token)] if token else []
            answer = send(proxy, target, [*headers, *credential])
            if answer.received is None:
                refused[target] = answer.status
                continue
            may_be = areas(answer.received.target, answer.received.wsgi_path)
            if may_be.intersection(PROTECTED) or (not token and may_be != {"/healthz"}):
                opened.append((target, "a key" if token else "no key", answer.received.target))
            if EVIL in values_of(answer.received):
                claimed.append(target)
    assert opened == []
    assert claimed == []
    # Envoy has no route for a target without a path, and Traefik none for "*". The file of Traefik
    # says why 418.
    right = (*REFUSED, 418) if proxy.name == "traefik" else REFUSED
    wrong = {target: status for target, status in refused.items() if status not in right}
    no_path = ("*",) if proxy.name == "traefik" else ("http://app?/admin", "http://app?/clusters")
    assert wrong in ({}, dict.fromkeys(no_path, 404))


def test_no_drawn_spelling_of_a_path_opens_it(proxy: Proxy, usual: Key, seed: int) -> None:
    """Nor do combinations that nobody wrote down."""
    draw = random.Random(seed)
    opened = []
    for target in [random_spelling(draw) for _ in range(DRAWN)]:
        received = send(proxy, target, [bearer(usual.token)]).received
        if received and areas(received.target, received.wsgi_path).intersection(PROTECTED):
            opened.append((target, received.target))
    assert opened == [], f"seed {seed}"


def test_no_spelling_in_http_2_opens_a_path(proxy: Proxy, usual: Key) -> None:
    """The path stands in a header there, and the host in another one that may hold a path too."""
    if proxy.name == "nginx":
        pytest.skip("its HTTP port does not speak HTTP/2")
    asked = [("app", path) for path in path_spellings()]
    asked += [
        (host, path)
        for host in ("app/admin", "app/admin?", "app/x/../admin#", "app\\admin", "")
        for path in ("/orders", "admin", "")
    ]

    def opened(one: tuple[str, str]) -> bool:
        host, path = one
        status, text = request_http_2(proxy, host, path, [bearer(usual.token)])
        received = received_from(text) if status == 200 and text else None
        return bool(received and areas(received.target, received.wsgi_path).intersection(PROTECTED))

    with ThreadPoolExecutor(MANY_AT_ONCE) as pool:
        found = list(pool.map(opened, asked))
    assert [one for one, is_open in zip(asked, found, strict=True) if is_open] == []


def request_http_2(
    proxy: Proxy, host: str, path: str, headers: list[tuple[str, str]]
) -> tuple[int, bytes]:
    """Send a request on a connection of its own; 0 where the gateway closes it instead."""
    pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", host), (":path", path)]
    try:
        with http2_client(proxy.http) as client:
            return client.request([*pseudo, *headers])
    except ConnectionError:
        return 0, b""


def test_no_spelling_of_a_header_name_in_http_2_reaches_the_application(
    proxy: Proxy, usual: Key
) -> None:
    """HTTP/2 takes the same characters in names, and more bytes in values."""
    if proxy.name == "nginx":
        pytest.skip("its HTTP port does not speak HTTP/2")
    spelled = [name for name in header_spellings() if name == name.lower()]
    claims = [[(name, EVIL) for name in names] for names in batches(spelled, HEADERS_AT_ONCE)]
    broken: list[list[tuple[str, str]]] = [
        [("x-a", "b\r\nx-keybearer-role: EVIL")],
        [("x-a\r\nx-keybearer-role", EVIL)],
        [("x-a: b\r\nx-keybearer-role", EVIL)],
        [("X-Keybearer-Role", EVIL)],
        [("x-keybearer-role ", EVIL)],
        [("connection", "x-keybearer-key-id")],
    ]
    for headers in [*claims, *broken]:
        status, text = request_http_2(proxy, "app", "/orders", [bearer(usual.token), *headers])
        assert status == 200 or headers in broken
        if status == 200:
            assert identities(received_from(text)) == [usual.identity, usual.identity]
            assert EVIL not in values_of(received_from(text))


@pytest.mark.parametrize("target", ["app:80", "/orders"])
def test_no_tunnel_is_made(proxy: Proxy, usual: Key, target: str) -> None:
    """It would carry requests that nobody judges."""
    answer = send(proxy, target, [bearer(usual.token)], method="CONNECT")
    assert answer.received is None
    assert answer.status >= 400


TRAEFIK_WRITES = {
    "/orders?next=//x/../admin%2f;a=%00%zz": "/orders?next=//x/../admin%2f&a=%00%zz",
    "/orders/M%C3%BCller%20%26%20S%c3%b6hne": "/orders/M%C3%BCller%20%26%20S%C3%B6hne",
    "/orders/%5Bx%5D%7Cy%3F%23": None,
}
"""What it writes otherwise, or refuses: it lets each character be read in one way or in none."""


@pytest.mark.parametrize("path", LEGITIMATE)
def test_a_path_with_one_reading_reaches_the_application_unchanged(
    proxy: Proxy, usual: Key, path: str
) -> None:
    """The query is the application's, whatever is in it."""
    arrives = TRAEFIK_WRITES.get(path, path) if proxy.name == "traefik" else path
    answer = send(proxy, path, [bearer(usual.token)])
    if arrives is None:
        assert answer.status == 400
        return
    assert answer.received is not None, answer.status
    assert answer.received.target.removeprefix("http://app") == arrives.removeprefix("http://app")


@pytest.mark.parametrize("path", [*PROTECTED, *(f"{path}/x?y=//" for path in PROTECTED)])
def test_a_protected_path_is_open_to_those_who_have_the_authority(
    proxy: Proxy, keys: Cast, path: str
) -> None:
    """It is no wall."""
    assert send(proxy, path, [bearer(keys.admin)]).status == 200


@pytest.mark.parametrize("path", PROTECTED)
def test_the_content_type_does_not_choose_the_requirement(
    proxy: Proxy, usual: Key, path: str
) -> None:
    """One server may be both the application and the gRPC service."""
    headers = [bearer(usual.token), ("content-type", "application/grpc")]
    answer = send(proxy, path, headers, b"")
    assert (answer.status, answer.grpc_status) in {(403, ""), (403, "7"), (200, "7")}


# --- bodies and identities ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 0, 1, LARGE_BODY], ids=str)
@pytest.mark.parametrize("holder", ["nobody", "usual", "largest"])
def test_bodies_and_identities_of_every_size_arrive_whole(
    proxy: Proxy, usual: Key, largest: Key, holder: str, size: int | None
) -> None:
    """With headers of every spelling beside them."""
    key = {"nobody": NOBODY, "usual": usual, "largest": largest}[holder]
    body = None if size is None else b"x" * size
    for names in batches(header_spellings(), HEADERS_AT_ONCE):
        headers = [(name, EVIL) for name in names]
        if key.token:
            headers.append(bearer(key.token))
        answer = send(proxy, "/orders" if key.token else "/healthz", headers, body)
        assert answer.received is not None, answer.status
        assert identities(answer.received) == [key.identity, key.identity]
        content = body or b""
        assert answer.received.body == (len(content), hashlib.sha256(content).hexdigest())
        if size == LARGE_BODY:
            break


@pytest.mark.parametrize("size", [8, 12, 20])
def test_a_request_with_large_headers_arrives_with_its_identity_or_not_at_all(
    proxy: Proxy, largest: Key, size: int
) -> None:
    """A gateway without room for the identity refuses: it never passes a part of it on."""
    cookies = [("x-large-1", "a" * (size * 512)), ("x-large-2", "b" * (size * 512))]
    answer = send(proxy, "/orders", [*cookies, bearer(largest.token)])
    if answer.received is None:
        assert answer.status in (400, 431, 503)
    else:
        assert identities(answer.received) == [largest.identity, largest.identity]


# --- gRPC -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def channel(proxy: Proxy) -> Iterator[Any]:
    """A gRPC client of the gateway."""
    with grpc.insecure_channel(grpc_address(proxy)) as one:
        yield one


def test_no_spelling_of_a_metadata_key_reaches_the_grpc_service(channel: Any, usual: Key) -> None:
    """Dots and underscores may stand in them."""
    spelled = [
        name for name in header_spellings() if set(name) <= set("abcdefghiklmnopqrstuvwxyz-._")
    ]
    for names in batches(spelled, HEADERS_AT_ONCE):
        claims = [(name, EVIL) for name in names]
        seen = call_arity(
            channel, "/demo.v1.EchoService/UnaryUnary", [bearer(usual.token), *claims]
        )
        assert EVIL not in seen.values()
        assert seen["x-keybearer-role"] == "DEVELOPER"


def test_the_largest_identity_reaches_the_grpc_service(channel: Any, largest: Key) -> None:
    """About 9 KiB of metadata."""
    seen = call_arity(channel, "/demo.v1.EchoService/UnaryUnary", [bearer(largest.token)])
    names = {name: "x-keybearer-" + name.lower().replace("_", "-") for name in largest.identity}
    assert {name: seen[header] for name, header in names.items()} == largest.identity


def test_a_large_message_reaches_the_grpc_service(channel: Any, usual: Key) -> None:
    """A stream has no end that could be limited beforehand."""
    method = channel.unary_unary("/demo.v1.EchoService/UnaryUnary")
    assert method(b"x" * LARGE_BODY, metadata=[bearer(usual.token)], timeout=10)


@pytest.mark.parametrize(
    "method",
    [
        "/demo.v1.AdminService/UnaryUnary",
        "/DEMO.V1.ADMINSERVICE/UnaryUnary",
        "/demo.v1.AdminService%2fUnaryUnary",
        "/%64emo.v1.AdminService/UnaryUnary",
        "/demo.v1.EchoService/../demo.v1.AdminService/UnaryUnary",
        "//demo.v1.AdminService/UnaryUnary",
    ],
)
def test_no_spelling_of_a_method_opens_it(channel: Any, usual: Key, method: str) -> None:
    """Some servers find gRPC methods as they find other paths."""
    with pytest.raises(grpc.RpcError) as refused:
        call_arity(channel, method, [bearer(usual.token)])
    # UNIMPLEMENTED would be the answer of the service.
    assert refusal_of(refused.value).code is not grpc.StatusCode.UNIMPLEMENTED
