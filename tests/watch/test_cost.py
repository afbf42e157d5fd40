"""What checks cost: the client, the guarded service, and the server with its streams."""

import json
import math
import statistics
import subprocess
import sys
import timeit
from collections.abc import Iterator
from concurrent import futures

import pytest

from bench import generator
from harness import Stubs
from keybearer import CachingVerifier, KeybearerClient, Presented
from keybearer.v1 import token_service_pb2 as pb
from reliability.processes import ServerProcess, environment, init, serving
from watch import echo
from watch.load import warm
from watch.measurements import note

pytestmark = pytest.mark.alone

CHECK_US = 5.0
GUARDED_SHARE = 0.93
IDLE_STREAMS = 200
IDLE_STREAM_COST = 1.20


class Program:
    """A helper program in a process of its own, used line by line."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str, *, answered: bool = True) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip() if answered else ""

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Stubs]]:
    """A service in a process of its own."""
    data_dir = tmp_path_factory.mktemp("cost") / "data"
    token = init(data_dir)["token"]
    with serving(data_dir) as server:
        yield server, server.stubs(token)


def _check_us(served: tuple[ServerProcess, Stubs]) -> float:
    server, admin = served
    token = admin.create_key(scopes=["clusters.read"]).token
    client = KeybearerClient(server.address, token=admin.token, tls=False)
    with CachingVerifier(client) as verifier:
        assert warm(verifier, token)
        runs = timeit.repeat(lambda: verifier.verify(Presented(token)), number=1000, repeat=200)
        assert verifier.stats().misses < 100
    return statistics.median(runs) / 1000 * 1e6


def test_a_check_costs_microseconds(served: tuple[ServerProcess, Stubs]) -> None:
    """A check takes at most ten times its target, on any machine."""
    assert _check_us(served) < 10 * CHECK_US


@pytest.mark.slow
def test_a_check_costs_five_microseconds(served: tuple[ServerProcess, Stubs]) -> None:
    """A check takes at most 5 microseconds, as the median of 200 runs."""
    cost = _check_us(served)
    note(f"cached check: median {cost:.2f} us, 200 runs of 1,000")
    assert cost <= CHECK_US


def _guarded_shares(
    served: tuple[ServerProcess, Stubs], blocks: int, seconds: float, *guards: str
) -> dict[str, list[float]]:
    """Return the processor time of an unguarded call over that of a call behind each guard."""
    server, admin = served
    token = admin.create_key(scopes=["clusters.*"]).token
    turns = ("unguarded", *guards)
    program = Program("watch.echo", server.address)
    port = int(program.ask(admin.token))
    with futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(program.ask, f"{blocks} {seconds} {' '.join(turns)}")
        report = generator.run(
            port=port,
            path=echo.PATH,
            metadata=[("authorization", f"Bearer {token}")],
            bodies=[generator.message(b"hello")],
            check=lambda reply: reply == b"hello",
            # Longer than the turns last, whose sleeps are late when threads contend.
            seconds=(blocks + 1) * len(turns) * seconds * 1.1 + 3,
            connections=4,
            in_flight=4,
        )
        assert asked.done()
    assert report.wrong == 0
    program.close()
    found: dict[str, list[float]] = json.loads(asked.result())
    unguarded = found.pop("unguarded")
    return {
        name: [base / cost for cost, base in zip(measured, unguarded, strict=True)]
        for name, measured in found.items()
    }


def test_a_guarded_call_costs_little_more(
    served: tuple[ServerProcess, Stubs],
) -> None:
    """A guard keeps more than 0.6 of the calls for the same processor time; a planted one less."""
    shares = _guarded_shares(served, 10, 0.2, "guarded", "planted")
    assert statistics.median(shares["guarded"]) > 0.6
    assert statistics.median(shares["planted"]) < 0.6


@pytest.mark.slow
def test_a_guarded_call_costs_hardly_more(served: tuple[ServerProcess, Stubs]) -> None:
    """A guard keeps 0.93 of the calls for the same processor time; median of interleaved pairs.

    The share of the twin, which is not guarded either, shows the error of the measurement. The
    share of the least possible guard is the upper limit.
    """
    shares = _guarded_shares(served, 300, 0.1, "twin", "least", "guarded")
    for name, found in shares.items():
        lower, median, upper = statistics.quantiles(found, n=4)
        error = statistics.stdev(map(math.log, found)) / len(found) ** 0.5
        note(
            f"processor time, unguarded echo over {name}: median {median:.3f}, half of them from "
            f"{lower:.3f} to {upper:.3f}, geometric mean {statistics.geometric_mean(found):.3f}, "
            f"its standard error {error:.1%}, {len(found)} pairs of turns of 0.1 s"
        )
    assert statistics.median(shares["guarded"]) >= GUARDED_SHARE


def _idle_stream_costs(
    served: tuple[ServerProcess, Stubs], pairs: int, seconds: float
) -> list[float]:
    """Measure ValidateToken with and without idle watchers, and return the ratios of p95."""
    server, admin = served
    token = admin.create_key().token
    program = Program("watch.idle_streams", server.address, str(IDLE_STREAMS))
    program.ask(admin.token, answered=False)
    body = generator.message(pb.ValidateTokenRequest(token=token).SerializeToString())

    def p95() -> float:
        report = generator.run(
            port=int(server.address.rpartition(":")[2]),
            path="/keybearer.v1.TokenService/ValidateToken",
            metadata=[("authorization", f"Bearer {admin.token}")],
            bodies=[body],
            check=lambda reply: pb.ValidateTokenResponse.FromString(reply).valid,
            seconds=seconds,
            connections=2,
            in_flight=1,
        )
        assert report.wrong == 0
        return report.percentile(0.95)

    p95()
    ratios = []
    for _ in range(pairs):
        alone = p95()
        assert program.ask("on") == "on"
        ratios.append(p95() / alone)
        assert program.ask("off") == "off"
    program.close()
    return ratios


def test_idle_watchers_do_not_stop_validation(served: tuple[ServerProcess, Stubs]) -> None:
    """Idle watchers make ValidateToken at most ten times slower, on any machine."""
    assert statistics.median(_idle_stream_costs(served, 1, 1.0)) < 10


@pytest.mark.slow
def test_idle_watchers_hardly_move_validation(served: tuple[ServerProcess, Stubs]) -> None:
    """200 idle watchers raise the p95 of ValidateToken by at most 20 %; median of 10 pairs."""
    ratios = _idle_stream_costs(served, 10, 4.0)
    median = statistics.median(ratios)
    note(
        f"p95 of ValidateToken with {IDLE_STREAMS} streams over none: median {median:.3f}, from "
        f"{min(ratios):.3f} to {max(ratios):.3f}, 10 interleaved pairs of 4 s"
    )
    assert median <= IDLE_STREAM_COST
