"""Bounds of the HTTP ports: connections, handshakes, headers, bodies, responses, descriptors."""

import asyncio.sslproto
import contextlib
import gc
import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakes import FakeClock, SeededEntropy
from gateway.gateway_clients import forward_auth_request
from gateway.raw_http import (
    connect,
    connections,
    exchange,
    is_open,
    rest_of,
    status_of,
    wait_until_open,
)
from gateway.support import LOOPBACK, Gated, cast, gated, tls_files
from keybearer.models import Presented
from keybearer_service.cli import app
from keybearer_service.domain.errors import CredentialsInvalid
from keybearer_service.domain.verdict import Caller
from keybearer_service.gateway.routes import MAX_WAITING, GatewayRoutes
from keybearer_service.http.listeners import HttpConfig, HttpListeners
from keybearer_service.net.addresses import Address, Listener
from keybearer_service.net.bounds import (
    GRPC,
    HTTP,
    METRICS,
    BoundRow,
    Bounds,
    described,
    peer_of,
    within_descriptors,
)
from keybearer_service.net.tls import TlsFiles
from keybearer_service.validation.callers import Callers
from reliability.processes import END_TIMEOUT_S

FEW = replace(HTTP, connections=20, connections_of_one_peer=15, handshakes=5)
SHORT = replace(HTTP, handshake_s=0.3, header_s=0.3, body_s=0.3, answer_s=0.5)
PUBLIC = ("/healthz", "/readyz", "/metrics")
HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nhost: keybearer\r\n"
HALF_A_FORM = (
    b"POST /oauth2/introspect HTTP/1.1\r\nhost: keybearer\r\ncontent-length: 99\r\n"
    b"content-type: application/x-www-form-urlencoded\r\n\r\ntoken="
)
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303")
"""The first bytes of a TLS handshake whose client then stalls."""


@pytest.fixture
def few(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Gated]:
    """A service that takes few connections."""
    with gated(tmp_path / "data", clock, entropy, bounds=FEW) as world:
        yield world


@pytest.fixture
def short(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Gated]:
    """A service that waits for nobody."""
    with gated(tmp_path / "data", clock, entropy, bounds=SHORT) as world:
        yield world


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", HALF_A_HEAD, HALF_A_FORM], ids=["silent", "head", "body"])
def test_probes_are_answered_beside_more_unfinished_connections_than_there_is_room_for(
    world: Gated, sent: bytes
) -> None:
    """A new connection takes the place of the one that has been silent longest."""
    port = world.service.app.http_port
    with connections(HTTP.connections + 100, port, sent):
        assert [status_of(path, port) for path in PUBLIC] == [200, 200, 200]


def test_no_more_connections_are_held_than_the_bound(few: Gated) -> None:
    """Those that have been silent longest are closed."""
    sources = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    opened = [connect(few.service.app.http_port, source) for source in sources for _ in range(10)]
    states = wait_until_open(FEW.connections, opened)
    assert sum(states) <= FEW.connections
    assert states[-1]
    for one in opened:
        one.close()


def test_one_peer_takes_connections_from_itself_alone(few: Gated) -> None:
    """A peer at its bound pushes nobody else out, however silent."""
    port = few.service.app.http_port
    with connect(port, "127.0.0.2") as other, connections(3 * FEW.connections, port) as opened:
        states = wait_until_open(FEW.connections_of_one_peer, opened)
        assert sum(states) <= FEW.connections_of_one_peer
        assert is_open(other)


def test_a_gateways_connection_outlives_a_flood_of_others(few: Gated) -> None:
    """Who has shown a key is kept before those that are silent or ask what anybody may."""
    keys = cast(few)
    headers = dict(forward_auth_request(keys.gateway, keys.good, ()))
    port = few.service.app.http_port
    gateway = http.client.HTTPConnection(LOOPBACK, port)
    gateway.connect()
    gateway.auto_open = 0  # it fails instead of connecting again
    with contextlib.ExitStack() as opened:
        opened.callback(gateway.close)
        for _ in range(2):
            gateway.request("GET", "/v1/auth", headers=headers)
            response = gateway.getresponse()
            response.read()
            assert response.status == 200
            for _ in range(3 * FEW.connections):
                prober = opened.enter_context(connect(port))
                prober.sendall(b"GET /healthz HTTP/1.1\r\nhost: keybearer\r\n\r\n")
                assert prober.recv(4096).startswith(b"HTTP/1.1 200 ")
            opened.enter_context(connections(3 * FEW.connections, port))


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (HALF_A_HEAD, b"HTTP/1.1 408 "),
        (HALF_A_FORM, b"HTTP/1.1 408 "),
        (b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" + HALF_A_HEAD, b"HTTP/1.1 200 "),
        (b"POST /v1/auth HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n", b"HTTP/1.1 403 "),
    ],
    ids=["silent", "half a head", "half a form", "half a second head", "a body nobody reads"],
)
def test_what_does_not_come_in_time_ends_its_connection(
    short: Gated, sent: bytes, answered: bytes
) -> None:
    """With an answer, where something was asked."""
    started = time.monotonic()
    assert exchange(short.service.app.http_port, sent).startswith(answered)
    assert time.monotonic() - started < 10 * SHORT.header_s


def test_a_slow_trickle_does_not_lengthen_the_time(short: Gated) -> None:
    """A byte now and then is no progress."""
    started = time.monotonic()
    with connect(short.service.app.http_port) as one, contextlib.suppress(ConnectionError):
        for byte in HALF_A_HEAD * 100:
            one.sendall(bytes([byte]))
            time.sleep(SHORT.header_s / 10)
            if not is_open(one):
                break
    assert time.monotonic() - started < 10 * SHORT.header_s


def test_who_does_not_read_its_responses_is_cut_off(short: Gated) -> None:
    """Requests that are sent ahead and never read hold neither memory nor a connection."""
    ahead = b"GET /metrics HTTP/1.1\r\nhost: keybearer\r\n\r\n" * 50
    started = time.monotonic()
    with connect(short.service.app.http_port) as one:
        one.settimeout(10 * SHORT.answer_s)
        with contextlib.suppress(ConnectionError):
            while True:
                one.sendall(ahead)  # until it fails; a timeout is no ConnectionError
    assert time.monotonic() - started < 20 * SHORT.answer_s


def test_requests_sent_ahead_are_answered_in_turn(world: Gated) -> None:
    """Each when the one before it was answered, whatever bodies lie between them."""
    post = b"POST /v1/auth HTTP/1.1\r\nhost: a\r\n"
    chunks = b"4;x=y\r\na\n\nb\r\n0\r\nx: y\r\n\r\n"
    requests = (
        post + b"content-length: 4\r\n\r\na\n\nb",
        post + b"transfer-encoding: chunked\r\n\r\n" + chunks,
        b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    )
    received = exchange(world.service.app.http_port, b"".join(requests))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"403", b"403", b"200", b"404"]
    split = [bytes([byte]) for byte in b"".join(requests)]
    received = exchange(world.service.app.http_port, *split)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"403", b"403", b"200", b"404"]


# --- size -----------------------------------------------------------------------------------------


def test_headers_without_an_end_are_refused(world: Gated) -> None:
    """At most 16 KiB, as before a header too many."""
    name = b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-filler: "
    received = exchange(world.service.app.http_port, name + b"a" * HTTP.header_bytes)
    assert received.startswith(b"HTTP/1.1 431 ")
    fits = name + b"a" * (HTTP.header_bytes - len(name) - 24) + b"\r\nconnection: close\r\n\r\n"
    assert exchange(world.service.app.http_port, fits).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("framing", [b"content-length: 99999999", b"transfer-encoding: chunked"])
def test_a_body_nobody_reads_is_not_taken_for_ever(world: Gated, framing: bytes) -> None:
    """The answer comes at once, and the connection ends after 64 KiB more."""
    with connect(world.service.app.http_port) as one:
        one.sendall(b"POST /v1/auth HTTP/1.1\r\nhost: a\r\n" + framing + b"\r\n\r\n")
        assert one.recv(4096).startswith(b"HTTP/1.1 403 ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 50 * HTTP.body_bytes:
                one.sendall(b"1000\r\n" + b"a" * 4096 + b"\r\n")
                sent += 4096
        assert sent < 50 * HTTP.body_bytes


# --- TLS ------------------------------------------------------------------------------------------


def test_stalled_handshakes_keep_nobody_out(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> None:
    """A few at once; a new one takes the place of the oldest."""
    files = tls_files(tmp_path / "tls", "localhost")
    with gated(tmp_path / "data", clock, entropy, tls=files, bounds=FEW) as world:
        port = world.service.app.http_port
        with connections(3 * FEW.connections, port, CLIENT_HELLO) as stalled:
            assert status_of("/healthz", port, tls=trusting(files)) == 200
            assert sum(wait_until_open(FEW.handshakes, stalled)) <= FEW.handshakes


@pytest.mark.parametrize("sent", [b"", CLIENT_HELLO, b"GET / HTTP/1.1\r\n\r\n"])
def test_a_handshake_that_does_not_end_is_ended(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy, sent: bytes
) -> None:
    """Whether or not the client has begun it."""
    files = tls_files(tmp_path / "tls", "localhost")
    with gated(tmp_path / "data", clock, entropy, tls=files, bounds=SHORT) as world:
        started = time.monotonic()
        exchange(world.service.app.http_port, sent)
        assert time.monotonic() - started < 10 * SHORT.handshake_s
        assert status_of("/healthz", world.service.app.http_port, tls=trusting(files)) == 200


@pytest.mark.parametrize("sent", [CLIENT_HELLO, b"GET / HTTP/1.1\r\n\r\n"])
def test_a_handshake_that_fails_leaves_nothing_in_memory(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy, sent: bytes
) -> None:
    """Its TLS buffers, 300 KB, are let go at once and not when the collector runs."""
    files = tls_files(tmp_path / "tls", "localhost")
    with gated(tmp_path / "data", clock, entropy, tls=files, bounds=SHORT) as world:
        port = world.service.app.http_port
        before = count_of_tls()
        gc.disable()
        try:
            for _ in range(10):
                exchange(port, sent)
            # The last one may still be on its way out.
            assert status_of("/healthz", port, tls=trusting(files)) == 200
            assert count_of_tls() <= before + 2
        finally:
            gc.enable()


def count_of_tls() -> int:
    """Return how many TLS connections of asyncio there are in memory."""
    return sum(isinstance(one, asyncio.sslproto.SSLProtocol) for one in gc.get_objects())


def trusting(files: TlsFiles) -> ssl.SSLContext:
    """Trust one certificate and no other."""
    return ssl.create_default_context(cafile=files.certificate)


# --- health beside everything else ----------------------------------------------------------------


def test_slow_questions_for_readiness_do_not_delay_liveness() -> None:
    """However many ask, they share one thread and one answer."""
    released, asked = threading.Event(), []

    def is_ready() -> bool:
        asked.append(1)
        return released.wait(30)

    ports = HttpListeners(
        HttpConfig(metrics=Listener(address=Address("127.0.0.1", 0))),
        gateway_routes=(),
        is_live=lambda: True,
        is_ready=is_ready,
        render_metrics=None,
    )
    ports.bind()
    ports.start()
    port = ports.metrics_port
    request = b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    try:
        with connections(METRICS.connections_of_one_peer - 1, port, request) as waiting:
            assert status_of("/healthz", port) == 200
            released.set()
            assert {rest_of(one)[:12] for one in waiting} == {b"HTTP/1.1 200"}
    finally:
        released.set()
        ports.end(0)
        ports.wait(END_TIMEOUT_S)
    assert len(asked) <= 2  # those who came after the first answer share another


class SlowAuthenticator:
    """Knows nobody, and takes its time to find out."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def authenticate(self, _presented: Presented) -> Caller:
        self.released.wait(30)
        raise CredentialsInvalid


def test_more_requests_than_can_be_answered_soon_are_refused_at_once(world: Gated) -> None:
    """With 503, which every gateway takes for no decision; and health is answered beside them."""
    slow, container = SlowAuthenticator(), world.service.app.container
    routes = GatewayRoutes(
        container.authorizer,
        Callers(slow),
        container.recorder,
        partial(container.failures.error_of, on_outcome_unknown=lambda: None),
        container.clock,
        container.entropy,
    )
    ports = HttpListeners(
        HttpConfig(gateway=Listener(address=Address("127.0.0.1", 0))),
        gateway_routes=routes.routes(),
        is_live=lambda: True,
        is_ready=lambda: True,
        render_metrics=None,
    )
    ports.bind()
    ports.start()
    request = b"GET /v1/auth HTTP/1.1\r\nhost: a\r\nx-keybearer-caller: Bearer x\r\n"
    request += b"connection: close\r\n\r\n"
    try:
        with connections(MAX_WAITING, ports.port, request) as waiting:
            assert status_of("/healthz", ports.port) == 200
            refusal = exchange(ports.port, request)
            assert refusal.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in refusal
            assert b"OVERLOADED" in refusal
            slow.released.set()
            assert {rest_of(one)[:12] for one in waiting} == {b"HTTP/1.1 403"}
            assert exchange(ports.port, request).startswith(b"HTTP/1.1 403 ")
    finally:
        slow.released.set()
        ports.end(0)
        ports.wait(END_TIMEOUT_S)
        routes.close()


# --- processes ------------------------------------------------------------------------------------


@dataclass
class Served:
    """A server in a process of its own."""

    port: int
    http_port: int
    pid: int
    log: Path

    @property
    def resident_mib(self) -> float:
        """Memory in use."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    @property
    def cpu_s(self) -> float:
        """Processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(directory: Path, *flags: str, descriptors: int = 4096) -> Iterator[Served]:
    """Serve a fresh installation with so many descriptors."""
    data, log = directory / "data", directory / "log"
    command = [sys.executable, "-m", "keybearer_service"]
    init = [*command, "init", "--data-dir", str(data), "--account", "a"]
    subprocess.run([*init, "--admin-email", "a@example.com"], capture_output=True, check=True)
    serve = [*command, "serve", "--data-dir", str(data), "--listen", f"{LOOPBACK}:0"]
    serve += ["--http-listen", f"{LOOPBACK}:0", *flags]
    limited = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *serve]
    with log.open("wb") as out, subprocess.Popen(limited, stderr=out) as process:
        try:
            while b'"serving"' not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            events = {line["event"]: line for line in map(json.loads, log.read_text().splitlines())}
            ports = events["serving"]["port"], events["serving_http"]["port"]
            yield Served(*ports, process.pid, log)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.mark.parametrize("which", ["http_port", "port"])
def test_probes_are_answered_when_descriptors_run_out(tmp_path: Path, which: str) -> None:
    """Used up on either port, they cost neither a storm in the log nor a core."""
    with served(tmp_path, descriptors=256) as server:
        assert [status_of(path, server.http_port) for path in PUBLIC] == [200, 200, 200]
        with connections(400, getattr(server, which)):
            before = server.cpu_s
            for _ in range(6):
                assert [status_of(path, server.http_port) for path in PUBLIC] == [200, 200, 200]
                time.sleep(0.5)
            assert server.cpu_s - before < 1.5
        lines = server.log.read_text().splitlines()
    assert sum("http_" in line for line in lines) < 12
    assert not [line for line in lines if "Traceback" in line or "exception" in line]


def test_stalled_handshakes_cost_little_memory(tmp_path: Path) -> None:
    """Each that has begun takes some 300 KB of asyncio, and is given back when it is ended."""
    files = tls_files(tmp_path / "tls", "localhost")
    flags = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    with served(tmp_path, *flags) as server:
        before = server.resident_mib
        with connections(3000, server.http_port, CLIENT_HELLO):
            assert status_of("/healthz", server.http_port, tls=trusting(files)) == 200
            assert server.resident_mib - before < 100


def test_connections_that_are_reset_leave_no_memory_behind(tmp_path: Path) -> None:
    """After a reset uvicorn kept each for the time that an idle connection may last."""
    files = tls_files(tmp_path / "tls", "localhost")
    flags = ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    context = trusting(files)
    with served(tmp_path, *flags) as server:
        before = server.resident_mib
        for _ in range(400):
            with context.wrap_socket(connect(server.http_port), server_hostname="localhost") as one:
                one.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert one.recv(4096).startswith(b"HTTP/1.1 200 ")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert server.resident_mib - before < 60


# --- the table ------------------------------------------------------------------------------------


def test_the_page_shows_the_bounds() -> None:
    """Every number of the table in docs/gateways.md is the one that holds."""
    page = (Path(__file__).parents[2] / "docs" / "gateways.md").read_text("utf-8")
    rows = {
        name: cells
        for name, *cells in re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    }

    def shown(write: Callable[[Bounds], str]) -> list[str]:
        return [write(HTTP), write(METRICS)]

    assert rows["connections"] == shown(lambda one: f"{one.connections}")
    assert rows["of them from one address (IPv6: one /64)"] == shown(
        lambda one: f"{one.connections_of_one_peer}"
    )
    assert rows["TLS handshakes at once"] == shown(lambda one: f"{one.handshakes}")
    assert rows["TLS handshake"] == shown(lambda one: f"{one.handshake_s:.0f} s")
    assert rows["request line and headers"] == shown(
        lambda one: f"{one.header_s:.0f} s, {one.header_bytes // 1024} KiB"
    )
    assert rows["body"] == shown(lambda one: f"{one.body_s:.0f} s")
    assert rows["body that nobody reads, as behind `/v1/auth`"] == shown(
        lambda one: f"{one.body_bytes // 1024} KiB"
    )
    assert rows["response, until the client has taken it"] == shown(
        lambda one: f"{one.answer_s:.0f} s"
    )
    assert rows["idle between two requests"] == shown(lambda one: f"{one.idle_s:.0f} s")
    waiting = rows["requests for a verdict that are answered or wait"][0]
    assert waiting.startswith(f"{MAX_WAITING}, ")


@pytest.mark.parametrize("row", described(), ids=lambda one: one.name)
def test_the_help_of_serve_shows_each_bound(row: BoundRow) -> None:
    """For every port, as the one who types `--help` sees it."""
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "100"}).output
    assert list(row) in [re.split(r" {2,}", line.strip()) for line in shown.splitlines()]


def test_the_example_file_names_the_bounds_that_no_setting_changes() -> None:
    """Every number in its paragraph is one that holds."""
    text = " ".join(
        (Path(__file__).parents[2] / "deploy/keybearer.toml").read_text("utf-8").split("\n# ")
    )
    for said in (
        f"a TLS handshake ends within {HTTP.handshake_s:.0f} s",
        f"headers within {HTTP.header_s:.0f} s and {HTTP.header_bytes // 1024} KiB",
        f"(metadata of gRPC: {GRPC.header_bytes // 1024} KiB)",
        f"a body within {HTTP.body_s:.0f} s (a message of gRPC: {GRPC.body_bytes // 1024} KiB)",
        f"closed after {HTTP.idle_s:.0f} s (gRPC: {GRPC.idle_s:.0f} s)",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("flags", "port"),
    [
        (("--max-connections", "3"), "grpc"),
        (("--http-max-connections", "3", "--http-max-connections-per-peer", "3"), "http"),
    ],
    ids=["grpc", "http"],
)
def test_a_port_holds_as_many_connections_as_it_is_told_to(
    flags: tuple[str, str], port: str, tmp_path: Path
) -> None:
    """Of ten that come, no more than three stay."""
    with served(tmp_path, *flags) as server:
        number = server.port if port == "grpc" else server.http_port
        opened = [connect(number) for _ in range(10)]
        assert sum(wait_until_open(3, opened)) <= 3
        for one in opened:
            one.close()


def test_few_descriptors_lower_the_bounds() -> None:
    """A listener takes a quarter of them, and never more connections than it wants."""
    few = within_descriptors(HTTP, 256)
    assert (few.connections, few.connections_of_one_peer, few.handshakes) == (64, 32, 32)
    assert within_descriptors(HTTP, 1_048_576) == HTTP
    assert within_descriptors(HTTP, 1).connections == 1


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8::5%eth0", "2001:db8::/64"),
        ("a-name", "a-name"),
    ],
)
def test_a_peer_is_an_address_or_a_network(host: str, peer: str) -> None:
    """Whoever has one IPv6 address has a whole /64 of them."""
    assert peer_of(host) == peer
