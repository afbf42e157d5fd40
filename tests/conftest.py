"""Fixtures: a clock that moves when told to, seeded entropy, and a running service."""

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres_server
from fakes import FakeClock, SeededEntropy
from harness import Service, Stubs, running


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed of this run, printed with every failure; KEYBEARER_TEST_SEED repeats a run."""
    return int(os.environ.get("KEYBEARER_TEST_SEED") or random.SystemRandom().randrange(2**32))


@pytest.hookimpl
def pytest_report_header() -> list[str]:
    """Print how to repeat a run, and what it runs on."""
    return [
        f"KEYBEARER_TEST_SEED={os.environ.get('KEYBEARER_TEST_SEED', '(drawn, see failures)')}",
        f"PostgreSQL: {postgres_server.describe()}",
    ]


@pytest.hookimpl
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print that tests were skipped because there was no PostgreSQL."""
    skipped = [
        one
        for one in terminalreporter.stats.get("skipped", [])
        if "no PostgreSQL" in str(one.longrepr)
    ]
    if skipped:
        terminalreporter.section("NOT TESTED: PostgreSQL", red=True)
        terminalreporter.line(f"{len(skipped)} tests were skipped: {postgres_server.describe()}")


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves when told to."""
    return FakeClock()


@pytest.fixture
def entropy(seed: int) -> SeededEntropy:
    """Entropy that the printed seed repeats."""
    sys.stdout.write(f"KEYBEARER_TEST_SEED={seed}\n")
    return SeededEntropy(seed)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the garbage collector would free stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service with nothing in it but its first administrator."""
    with running(tmp_path / "data", clock, entropy) as running_service:
        yield running_service


@pytest.fixture
def admin(service: Service) -> Stubs:
    """The operator's first administrator."""
    return service.admin
