"""Metrics: what they count, that their labels are bounded, and that several processes are one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import FakeClock, SeededEntropy
from gateway.gateway_clients import ENTRY_POINTS, forward_auth_request
from gateway.support import Cast, Gated, cast, free_port, gated
from harness import refused
from keybearer._wire.enums import Outcome
from keybearer_service.gauges import live_keys_by_expiry
from keybearer_service.telemetry import metrics
from keybearer_service.telemetry.metrics import LATENCY_BOUNDS, PrometheusMetrics
from keybearer_service.telemetry.recorder import EntryPoint

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values_of(text: str) -> Values:
    """Read Prometheus' text format."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float:
    """Return one value; 0 for one that was never counted."""
    return values.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def counted(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> Iterator[tuple[Gated, Cast]]:
    """A service of its own, whose metrics no other test moves."""
    with gated(tmp_path / "data", clock, entropy, metrics=True) as world:
        yield world, cast(world)


def scrape(world: Gated) -> Values:
    """Ask as Prometheus does."""
    answer = httpx.get(f"http://127.0.0.1:{world.service.app.metrics_port}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return values_of(answer.text)


def test_verdicts_are_counted_by_entry_point_and_outcome(counted: tuple[Gated, Cast]) -> None:
    """Exactly, as soon as they are given."""
    world, keys = counted
    names = {
        "ValidateToken": "validate",
        "ext_authz": "ext_authz",
        "forward_auth": "forward_auth",
        "introspection": "introspection",
    }
    for entry_point in names:
        ENTRY_POINTS[entry_point](world, keys.gateway, keys.good, ())
        for _ in range(2):
            ENTRY_POINTS[entry_point](world, keys.gateway, keys.revoked, ())
    values = scrape(world)
    for name in names.values():
        count = "keybearer_validations_total"
        assert value(values, count, entry_point=name, outcome="VALID") == 1
        assert value(values, count, entry_point=name, outcome="REVOKED") == 2
        assert value(values, "keybearer_validation_duration_seconds_count", entry_point=name) == 3


def test_calls_and_refusals_are_counted(counted: tuple[Gated, Cast]) -> None:
    """Management calls by method and code, refusals by where and why."""
    world, keys = counted
    before = scrape(world)
    world.admin.create_key()
    refused(world.service.as_token(keys.good).create_key)
    world.http.get("/v1/auth", headers=forward_auth_request(None, keys.good, ()))
    world.http.get("/v1/auth", headers=forward_auth_request(keys.gateway, None, ()))
    after = scrape(world)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    calls, refusals = "keybearer_management_calls_total", "keybearer_refusals_total"
    assert grown(calls, method="CreateApiKey", code="OK") == 1
    assert grown(calls, method="CreateApiKey", code="PERMISSION_DENIED") == 1
    assert grown(refusals, where="grpc", reason="ROLE_INSUFFICIENT") == 1
    assert grown(refusals, where="http", reason="CREDENTIALS_MISSING") == 1
    assert grown(refusals, where="forward_auth", reason="CREDENTIALS_MISSING") == 1


def test_live_keys_are_counted_by_days_to_expiry(counted: tuple[Gated, Cast]) -> None:
    """A key stands in one span; dead ones stand in none."""
    world, _ = counted
    before = live_keys_by_expiry(
        world.service.app.container.store, world.service.app.container.clock.now()
    )
    day = 86_400
    for days in (0.5, 1, 3, 7, 20, 400):
        world.admin.create_key(ttl={"seconds": int(days * day)})
    world.clock.advance(1_000_000)  # so that none expires exactly at a bound
    after = live_keys_by_expiry(
        world.service.app.container.store, world.service.app.container.clock.now()
    )
    assert {span: after[span] - count for span, count in before.items()} == {
        "0-1": 2,
        "1-7": 2,
        "7-30": 1,
        "30-90": 0,
        "90-365": 0,
        "365+": 1,
        "never": 0,
    }


def test_the_state_of_store_and_queues_is_shown(counted: tuple[Gated, Cast]) -> None:
    """What an operator looks at first."""
    world, _ = counted
    values = scrape(world)
    assert value(values, "keybearer_store_bytes") > 0
    assert value(values, "keybearer_store_revision") > 0
    for name in ("watch_streams", "watch_lag_revisions", "queued_calls", "queued_uses"):
        assert (f"keybearer_{name}", frozenset()) in values


def test_no_label_holds_what_a_caller_can_choose(counted: tuple[Gated, Cast]) -> None:
    """Neither secrets, nor ids, nor names, nor paths: the metrics of a year fit into memory."""
    world, keys = counted
    headers = forward_auth_request(keys.gateway, keys.good, ())
    for number in range(20):
        world.http.get(f"/v1/auth/{number}?x={number}", headers=headers)
        world.http.get(f"/{number}", headers=headers)
        world.http.get(f"/v1/auth?name{number}=x", headers=headers)
    told = httpx.get(f"http://127.0.0.1:{world.service.app.metrics_port}/metrics").text
    label = re.compile(r'\w+="([^"]*)"')
    allowed = re.compile(r"[A-Z_]+|[a-z_]+|[A-Z][A-Za-z]+|[0-9]+[-+][0-9]*|[0-9.e+-]+|\+Inf")
    values = set(label.findall(told))
    assert len(values) > 10
    assert [one for one in values if not allowed.fullmatch(one)] == []
    for secret in vars(keys).values():
        assert secret not in told


def test_metrics_on_their_own_port_are_not_on_the_gateways(counted: tuple[Gated, Cast]) -> None:
    """--metrics-listen takes them away from --http-listen, and serves no entry point."""
    world, keys = counted
    assert world.http.get("/metrics").status_code == 404
    url = f"http://127.0.0.1:{world.service.app.metrics_port}"
    assert httpx.get(f"{url}/readyz").status_code == 200
    headers = forward_auth_request(keys.gateway, keys.good, ())
    assert httpx.get(f"{url}/v1/auth", headers=headers).status_code == 404


def test_without_a_port_of_their_own_metrics_are_on_the_gateways(world: Gated) -> None:
    """One port is enough to begin with."""
    assert "keybearer_store_bytes" in world.http.get("/metrics").text


def test_every_note_is_folded_once_and_into_its_bucket() -> None:
    """Many threads note, the counts are exact, and the buckets are those of the library."""
    one = PrometheusMetrics()
    samples = [0.0, 0.00001, 0.000011, 0.3, 1.0, 9.0]

    def note() -> None:
        for _ in range(1000):
            for seconds in samples:
                one.judged(EntryPoint.VALIDATE, Outcome.VALID, seconds)

    threads = [threading.Thread(target=note) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        one.render()
    for thread in threads:
        thread.join()
    values = values_of(one.render()[0].decode())

    count = 8 * 1000
    assert value(
        values, "keybearer_validations_total", entry_point="validate", outcome="VALID"
    ) == (count * len(samples))
    name = "keybearer_validation_duration_seconds_bucket"
    for bound in LATENCY_BOUNDS:
        expected = count * sum(seconds <= bound for seconds in samples)
        assert value(values, name, entry_point="validate", le=str(bound)) == expected


def test_latency_is_one_histogram() -> None:
    """What it is put together from is not shown, and its sum and count belong to its buckets."""
    one = PrometheusMetrics()
    for seconds in (0.001, 0.002, 99.0):
        one.judged(EntryPoint.BATCH, Outcome.REVOKED, seconds)
    text = one.render()[0].decode()
    kinds = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert kinds["keybearer_validation_duration_seconds"] == "histogram"
    assert not [name for name in kinds if name.startswith("keybearer_latency")]
    values = values_of(text)
    name = "keybearer_validation_duration_seconds"
    assert value(values, f"{name}_sum", entry_point="batch") == pytest.approx(99.003)
    assert value(values, f"{name}_count", entry_point="batch") == 3
    assert value(values, f"{name}_bucket", entry_point="batch", le="+Inf") == 3
    assert value(values, f"{name}_bucket", entry_point="batch", le="5.0") == 2


def test_a_gauge_that_cannot_be_read_harms_nothing() -> None:
    """A probe that fails costs its values, not the thread."""
    one = PrometheusMetrics()
    failed = threading.Event()

    def probe() -> dict[str, float]:
        failed.set()
        raise OSError

    one.start(probe, dict)
    assert failed.wait(10)
    one.judged(EntryPoint.VALIDATE, Outcome.VALID, 0.1)
    one.stop()
    assert b'outcome="VALID"} 1.0' in one.render()[0]


# --- several processes ----------------------------------------------------------------------------


@contextmanager
def workers(path: Path, http_port: int) -> Iterator[None]:
    """Serve an installation with two workers."""
    command = [sys.executable, "-m", "keybearer_service", "serve", "--workers", "2"]
    command += ["--data-dir", str(path), "--listen", "127.0.0.1:0"]
    command += ["--http-listen", f"127.0.0.1:{http_port}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = iter(process.stderr)
        try:
            for _ in range(2):
                assert any(json.loads(line)["event"] == "serving" for line in log)
            rest = threading.Thread(target=lambda: list(log))
            rest.start()
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            rest.join()
            assert process.wait(30) == 0


def test_two_workers_answer_with_the_values_of_both(tmp_path: Path) -> None:
    """Whichever is scraped: counters are sums, also of a start before this one's are gone."""
    path = tmp_path / "data"
    command = [sys.executable, "-m", "keybearer_service", "init", "--data-dir", str(path)]
    command += ["--account", "a", "--admin-email", "a@example.com", "--output", "json"]
    created = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    headers = forward_auth_request(created["token"], created["token"], ())
    stale = path / "metrics"
    stale.mkdir()
    (stale / "counter_1.db").write_bytes(b"of a process that is gone")

    port = free_port()
    # Connections, not requests, are spread over the workers: each request has its own.
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        workers(path, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", limits=limits) as client,
    ):
        for _ in range(40):
            assert client.get("/v1/auth", headers=headers).status_code == 200
        verdicts = frozenset({("entry_point", "forward_auth"), ("outcome", "VALID")})
        for _ in range(200):
            answers = [values_of(client.get("/metrics").text) for _ in range(4)]
            counts = {one.get(("keybearer_validations_total", verdicts)) for one in answers}
            if counts == {40.0}:
                break
        assert counts == {40.0}  # within a second, which is how often the other one folds
        assert len(list(stale.glob("counter_*.db"))) == 2  # and both have served
        entry_point = frozenset({("entry_point", "forward_auth")})
        taken = {one["keybearer_validation_duration_seconds_count", entry_point] for one in answers}
        assert taken == {40.0}
        never = frozenset({("days", "never")})
        assert {one["keybearer_live_keys", never] for one in answers} == {1}


def test_a_worker_that_has_ended_leaves_the_gauges(tmp_path: Path) -> None:
    """What it counted stays; what it was at the moment does not."""
    environment = metrics.prepare(tmp_path / "metrics")
    program = (
        "import os\n"
        "from keybearer_service.telemetry.metrics import PrometheusMetrics\n"
        "from keybearer_service.domain.verdict import Outcome\n"
        "from keybearer_service.telemetry.recorder import EntryPoint\n"
        "one = PrometheusMetrics()\n"
        "one.judged(EntryPoint.VALIDATE, Outcome.VALID, 0.1)\n"
        "import threading\n"
        "read = threading.Event()\n"
        "def probe():\n"
        "    return {'watch_streams': 3}\n"
        "def expiries():\n"  # read after the gauges
        "    read.set()\n"
        "    return {}\n"
        "one.start(probe, expiries)\n"
        "read.wait(10)\n"
        "one.stop()\n"
        "print(os.getpid())\n"
        "print(one.render()[0].decode())\n"
    )

    def run() -> tuple[int, Values]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        pid, _, text = done.stdout.partition("\n")
        return int(pid), values_of(text)

    first, values = run()
    assert value(values, "keybearer_watch_streams") == 3
    _, values = run()
    assert value(values, "keybearer_watch_streams") == 6
    metrics.forget(tmp_path / "metrics", first)
    _, values = run()
    assert value(values, "keybearer_watch_streams") == 6
    name = "keybearer_validations_total"
    assert value(values, name, entry_point="validate", outcome="VALID") == 3


def test_a_refused_port_is_told_in_one_line(tmp_path: Path) -> None:
    """`serve` ends with a sentence when the HTTP port is taken."""
    command = [sys.executable, "-m", "keybearer_service"]
    init = [*command, "init", "--data-dir", str(tmp_path / "data"), "--account", "a"]
    subprocess.run([*init, "--admin-email", "a@example.com"], capture_output=True, check=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        serve = [*command, "serve", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
        done = subprocess.run(
            [*serve, "--http-listen", address],
            # Variables of the tests would be named as unknown ones.
            env={name: text for name, text in os.environ.items() if "KEYBEARER_" not in name},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        f"keybearer-server: cannot listen on {address}: Address already in use\n"
    )
