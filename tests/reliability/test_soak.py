"""Everything that strangers can do, all at once and for long, while validations go on: promise P8.

Two servers are attacked, one with plain ports and few descriptors, one with TLS; nobody reads the
log of either. Each has its control, a bare grpcio server that is attacked in the same way at the
same time. A neighbour is a keybearer that nobody attacks: how its callers fare is shown, and
nothing is asserted of it. Validations go over connections that were opened before, to each server
in turn, from this process.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import grpc
import pytest

from certificates import Authority
from harness import Stubs
from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.gateway.routes import THREADS
from keybearer_service.net.bounds import METRICS
from keybearer_service.rpc.executors import MAX_SLOW
from reliability.hostile import VALIDATE
from reliability.processes import END_TIMEOUT_S, ServerProcess, environment, init
from reliability.served import every_method
from reliability.vital_signs import VitalSigns, connections_to, vital_signs, wait_for_rest

SOAK_S = float(os.environ.get("KEYBEARER_SOAK_S") or 1800)
ROUND_S = 600.0
"""Memory after each round is compared with that after the first; and a connection is ended by the
server after half an hour, so that those opened before a longer round would not last."""
PLANTED_S = 5.0
CONNECTIONS = 4
EVERY_S = 0.02
CALL_WITHIN_S = 10.0
P99_FACTOR = 3.0
SILENT = 60
PROBER = "127.0.0.2"
MAX_HELD = METRICS.connections_of_one_peer + 1
"""On the port of metrics: by the attackers, and by the probe."""
SPARE = 8
FRAME = 5
"""Bytes before a message."""
LINES_OF_A_PIPE = 15
SPARE_THREADS = THREADS + 2 * 3
"""Those for requests of gateways start with the first ones, and so does one for each question that
is put on each HTTP port: liveness, readiness, metrics."""
FILES_OF_STAND_INS = 2 * MAX_SLOW + 80
"""A thread that stood in for others leaves a descriptor to SQLite, which uses it again; and every
thread of the service opens two when it first reads."""
MORE_MEMORY_KB = 160 * 1024
GROWTH_KB = 24 * 1024
"""Of a round over the first: 10 MiB were seen, of what the allocator keeps."""
END_WITHIN_S = 15.0
"""Calls in flight have ten seconds of it, and the log two."""


@dataclass
class Place:
    """A server that validations go to."""

    name: str
    grpc: str
    http: list[int]
    ca: Path | None
    token: str = field(repr=False)
    given_away: dict[str, str] = field(default_factory=dict, repr=False)
    """To the attackers: a token of an administrator, and a key that they may do anything to."""
    times: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    channels: list[Any] = field(default_factory=list)

    def open(self) -> None:
        """Open the connections that validations will go over, with a first one on each."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(CONNECTIONS):
            if self.ca is None:
                channel = grpc.insecure_channel(self.grpc, options=options)
            else:
                trusted = grpc.ssl_channel_credentials(self.ca.read_bytes())
                channel = grpc.secure_channel(self.grpc, trusted, options=options)
            self.channels.append(channel)
            self.validate(channel)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.channels.clear()

    def validate(self, channel: Any) -> None:
        """Validate the token; raises unless it is valid."""
        validate: Any = channel.unary_unary(
            VALIDATE, response_deserializer=pb.ValidateTokenResponse.FromString
        )
        asked = pb.ValidateTokenRequest(token=self.token).SerializeToString()
        metadata = (("authorization", f"Bearer {self.token}"),)
        assert validate(asked, metadata=metadata, timeout=CALL_WITHIN_S).valid

    def measure(self, number: int) -> None:
        """Validate once on one of the connections, and keep how long it took."""
        began = time.perf_counter()
        try:
            self.validate(self.channels[number % CONNECTIONS])
        except (grpc.RpcError, AssertionError) as error:
            code = error.code().name if isinstance(error, grpc.RpcError) else "not valid"
            self.failures.append(f"{self.name}: {code}")
        self.times.append(time.perf_counter() - began)

    def quantile(self, share: float) -> float:
        """Return a quantile of the times so far, in milliseconds."""
        return sorted(self.times)[int(len(self.times) * share)] * 1000


@dataclass
class Keybearer(Place):
    """A server of ours: an administrator works there, and its probes are asked."""

    server: ServerProcess = field(kw_only=True)
    admin_token: str = field(kw_only=True, repr=False)
    probes: list[int] = field(default_factory=list)
    most_held: int = 0
    """Connections to the port of metrics, at any one time."""

    @property
    def admin(self) -> Stubs:
        return Stubs(self.channels[0], self.admin_token)

    def manage(self) -> None:
        """Create, read and revoke a key."""
        try:
            created = self.admin.create_key(name="made under attack")
            self.admin.key(created.api_key.id)
            self.admin.revoke(created.api_key.id)
            assert self.admin.outcome(created.token) == "REVOKED"
        except (grpc.RpcError, AssertionError) as error:
            code = error.code().name if isinstance(error, grpc.RpcError) else "not revoked"
            self.failures.append(f"{self.name}: {code} of management")

    def probe(self) -> None:
        """Ask whether it is ready, on a new connection to the port of metrics.

        From an address of its own: no peer is served beyond its share, and the attackers are one.
        """
        with closing(
            HTTPConnection("127.0.0.1", self.http[-1], timeout=10, source_address=(PROBER, 0))
        ) as connection:
            try:
                connection.request("GET", "/readyz")
                self.probes.append(connection.getresponse().status)
            except (OSError, HTTPException):
                self.probes.append(0)

    def crowd(self) -> None:
        """Hold more silent connections to the port of metrics than a peer may, and count them."""
        with ExitStack() as stack:
            for _ in range(MAX_HELD + SPARE):
                one = socket.create_connection(("127.0.0.1", self.http[-1]))
                stack.enter_context(one)
            self.probe()  # once it is answered, those before it have been accepted
            self.most_held = max(self.most_held, connections_to(self.http[-1]))

    def fill_the_log(self) -> None:
        """Have more lines written than the pipe of the log holds."""
        for _ in range(2 * LINES_OF_A_PIPE):
            if not self.failures:
                self.manage()

    def vital_signs(self) -> VitalSigns:
        return vital_signs(self.server.pid)

    def wait_for_rest(self, before: VitalSigns) -> VitalSigns:
        """Wait until it holds no more than before, but for what is spared."""
        spared = replace(
            before, sockets=before.sockets + SPARE, threads=before.threads + SPARE_THREADS
        )
        return wait_for_rest(self.server.pid, spared, self._call_all)

    def _call_all(self) -> None:
        """Make a call on every executor: a thread that stood in for others leaves after its own."""
        self.validate(self.channels[0])
        self.admin.list_keys()
        self.admin.revoke_token("garbage")
        check: Any = self.channels[0].unary_unary("/grpc.health.v1.Health/Check")
        check(b"", timeout=CALL_WITHIN_S)
        metadata = (("authorization", f"Bearer {self.token}"),)
        for method in every_method("", ""):
            if method.is_stream:
                call: Any = self.channels[0].stream_stream(method.path)
                stream = call(
                    iter([method.request[FRAME:]]), metadata=metadata, timeout=CALL_WITHIN_S
                )
                with suppress(grpc.RpcError):
                    next(stream)
                stream.cancel()


class Scene:
    """The servers, and what attacks them."""

    def __init__(
        self, stack: ExitStack, directory: Path, seed: int, *, bugs: Sequence[str] = ()
    ) -> None:
        self._stack = stack
        self._directory = directory
        self._seed = seed
        authority = Authority(directory)
        certificate, key = map(str, authority.issue("server"))
        plain: dict[str, Any] = {"ca": None, "flags": ()}
        with_tls: dict[str, Any] = {
            "ca": authority.certificate,
            "flags": ("--tls-cert", certificate, "--tls-key", key, "--metrics-tls", "off"),
        }
        few = ("bash", "-c", 'ulimit -n 512; exec "$@"', "--")
        plain_subject = self._keybearer("plain", **plain, wrapper=few, bugs=bugs)
        tls_subject = self._keybearer("TLS", **with_tls, bugs=bugs)
        self.pairs = [
            (plain_subject, self._control("control of plain", plain_subject)),
            (tls_subject, self._control("control of TLS", tls_subject, certificate, key)),
        ]
        self.keybearers = [plain_subject, tls_subject, self._keybearer("neighbour", **plain)]
        self.attacked: list[Place] = [place for pair in self.pairs for place in pair]
        self.places = [*self.attacked, self.keybearers[2]]

    @contextmanager
    def attacks(self, *, silent: int) -> Iterator[dict[str, dict[str, int]]]:
        """Attack for a block; the mapping gets what was done to whom."""
        done: dict[str, dict[str, int]] = {}
        with ExitStack() as stack:
            attackers = [
                stack.enter_context(_started("reliability.attackers")) for _ in self.attacked
            ]
            for number, (place, attacker) in enumerate(zip(self.attacked, attackers, strict=True)):
                order = {
                    "grpc": place.grpc,
                    "http": place.http,
                    "ca": str(place.ca or ""),
                    "silent": silent,
                    "seed": self._seed + 100 * (number // 2),
                    **place.given_away,
                }
                assert attacker.stdin is not None
                attacker.stdin.write(json.dumps(order).encode() + b"\n")
                attacker.stdin.flush()
            yield done
            for place, attacker in zip(self.attacked, attackers, strict=True):
                answer, _ = attacker.communicate(timeout=END_TIMEOUT_S)
                done[place.name] = json.loads(answer)

    def _keybearer(
        self, name: str, *, ca: Path | None, flags: Sequence[str], **options: Any
    ) -> Keybearer:
        data = self._directory / name
        admin_token = init(data)["token"]
        http = ("--http-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        server = ServerProcess(data, read_until="serving", flags=(*flags, *http), **options)
        self._stack.callback(server.close)
        server.wait_until_serving()
        ports = {one["name"]: one["port"] for one in server.events if "name" in one}
        place = Keybearer(
            name=name,
            server=server,
            grpc=server.address.replace("127.0.0.1", "localhost" if ca else "127.0.0.1"),
            http=[ports["http"], ports["metrics-http"]],
            ca=ca,
            admin_token=admin_token,
            token=admin_token,
        )
        self._stack.callback(place.close)
        place.open()
        victim = place.admin.create_key()
        place.given_away = {
            "token": place.admin.create_key(role="ROLE_ADMIN").token,
            "victim": victim.token,
            "victim_id": victim.api_key.id,
        }
        place.token = place.admin.create_key(role="ROLE_VALIDATOR").token
        return place

    def _control(self, name: str, of: Keybearer, *tls: str) -> Place:
        process = self._stack.enter_context(_started("reliability.bare_service", *tls))
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        host = "localhost" if tls else "127.0.0.1"
        address = told["grpc"].replace("127.0.0.1", host)
        place = Place(name, address, told["http"], of.ca, of.token, of.given_away)
        self._stack.callback(place.close)
        place.open()
        return place


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # uvicorn writes a line for each bad request, and grpc for each handshake that fails.
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def validate_for(scene: Scene, seconds: float) -> None:
    """Validate everywhere in turn for a while; once a second manage keys, and probe."""
    ends = time.monotonic() + seconds
    stopping = threading.Event()

    def manage() -> None:
        while not stopping.wait(1.0):
            for keybearer in scene.keybearers:
                keybearer.manage()
                keybearer.probe()

    managing = threading.Thread(target=manage)
    managing.start()
    number = 0
    while time.monotonic() < ends:
        for place in scene.places:
            place.measure(number)
        number += 1
        time.sleep(EVERY_S)
    stopping.set()
    managing.join()


def press(scene: Scene) -> None:
    """Go beyond a share of connections and the pipe of a log, however slow the machine is."""
    for subject, _ in scene.pairs:
        subject.crowd()
        subject.fill_the_log()


def soak(scene: Scene, seconds: float, *, silent: int = SILENT) -> None:
    """Attack in rounds, and assert all that is promised.

    Args:
        scene: The servers.
        seconds: How long to attack.
        silent: How many connections of each kind of silence to hold on each port.
    """
    rounds = max(1, round(seconds / ROUND_S))
    before = {one.name: one.vital_signs() for one in scene.keybearers}
    _say("at rest", before)
    after: list[dict[str, VitalSigns]] = []
    for number in range(rounds):
        with scene.attacks(silent=silent) as done:
            validate_for(scene, seconds / rounds)
            press(scene)
        _report(scene, done)
        assert_nobody_was_harmed(scene)
        after.append({one.name: one.wait_for_rest(before[one.name]) for one in scene.keybearers})
        _say(f"after round {number + 1}", after[-1])
        for place in scene.places:
            place.close()
            place.open()
    for subject, control in scene.pairs:
        assert subject.quantile(0.99) <= P99_FACTOR * control.quantile(0.99)
        for signs in after:
            _assert_is_back(before[subject.name], after[0][subject.name], signs[subject.name])
    with scene.attacks(silent=silent):
        validate_for(scene, 5)
        for subject, _ in scene.pairs:
            began = time.monotonic()
            assert subject.server.stop() == 0
            took = time.monotonic() - began
            sys.stdout.write(f"{subject.name}: ended {took:.1f} s after SIGTERM\n")
            assert took < END_WITHIN_S


def assert_nobody_was_harmed(scene: Scene) -> None:
    """Assert that everybody was answered so far, and that no peer held more than its share."""
    for subject, _ in scene.pairs:
        assert not subject.server.has_ended, f"{subject.name}: exit code {subject.server.wait()}"
        assert subject.most_held <= MAX_HELD
    for subject, _ in scene.pairs:
        assert not subject.failures
        assert subject.probes.count(200) >= 0.99 * len(subject.probes)


def _assert_is_back(before: VitalSigns, after_first: VitalSigns, after: VitalSigns) -> None:
    assert after.sockets <= before.sockets + SPARE
    assert after.threads <= before.threads + SPARE_THREADS
    assert after.files <= before.files + FILES_OF_STAND_INS
    assert after.memory_kb <= before.memory_kb + MORE_MEMORY_KB
    assert after.memory_kb <= after_first.memory_kb + GROWTH_KB


def _say(when: str, signs: dict[str, VitalSigns]) -> None:
    for name, one in signs.items():
        sys.stdout.write(f"{when}: {name}: {one}\n")
    sys.stdout.flush()


def _report(scene: Scene, done: dict[str, dict[str, int]]) -> None:
    for name, what in done.items():
        sys.stdout.write(f"done to {name}: {what}\n")
    for place in scene.places:
        quantiles = ", ".join(
            f"p{100 * share:g} {place.quantile(share):.1f} ms" for share in (0.5, 0.99, 0.999)
        )
        sys.stdout.write(
            f"{place.name}: {len(place.times)} validations, {quantiles}, longest "
            f"{max(place.times) * 1000:.0f} ms; failed: {dict(Counter(place.failures))}\n"
        )
    for one in scene.keybearers:
        sys.stdout.write(f"{one.name}: probes: {dict(Counter(one.probes))}\n")
    sys.stdout.flush()


@pytest.mark.slow
def test_everything_at_once_for_long_harms_nobody_who_is_connected(
    tmp_path: Path, seed: int
) -> None:
    """For half an hour p99 is within 3 times of the control's; what was held is back afterwards."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    with ExitStack() as stack:
        soak(Scene(stack, tmp_path, seed), SOAK_S)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "noticed"),
    [("no-http-bounds", "most_held"), ("log-in-the-call", "of management")],
)
def test_a_planted_bug_is_found_for_what_it_is(
    tmp_path: Path, seed: int, bug: str, noticed: str
) -> None:
    """Ports without bounds hold too many connections; calls that wait for their log time out."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    with ExitStack() as stack:
        scene = Scene(stack, tmp_path, seed, bugs=[bug])
        with scene.attacks(silent=SILENT) as done:
            validate_for(scene, PLANTED_S)
            press(scene)
        _report(scene, done)
        with pytest.raises(AssertionError, match=noticed):
            assert_nobody_was_harmed(scene)
