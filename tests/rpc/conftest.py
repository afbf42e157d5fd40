"""The check of documented errors comes after all calls of this directory."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from fakes import FakeClock, SeededEntropy
from harness import SEEN_ERRORS, ReplaceableStore, Service, open_replaceable, running, store_of
from keybearer_service.telemetry import logs

HERE = Path(__file__).parent
LAST = HERE / "test_documented_errors.py"


@pytest.fixture(scope="session", autouse=True)
def _errors_of_this_directory() -> None:
    """Forget the errors that the tests of other directories saw."""
    SEEN_ERRORS.clear()


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service over a store whose methods may be replaced."""
    with running(tmp_path / "data", clock, entropy, opener=open_replaceable) as running_service:
        yield running_service


@pytest.fixture
def one_node(service: Service) -> None:
    """Skip where the calls go to several nodes: what is tested counts in each for itself."""
    _ = service.only_node


@pytest.fixture
def store(service: Service) -> ReplaceableStore:
    """The store of the running service."""
    return store_of(service.only_node)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Callable[[], str]]:
    """The log at debug level, as it is written; call it for its text."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (tmp_path / "log").open("wb") as file:
        logs.configure("debug", descriptor=file.fileno())

    def text() -> str:
        root.handlers[0].flush()
        return (tmp_path / "log").read_text("utf-8")

    yield text
    root.handlers[0].close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the check behind the last test of this directory, and leave all else in its order."""
    check = [item for item in items if item.path == LAST]
    others = [item for item in items if item.path != LAST]
    end = max((n for n, item in enumerate(others, 1) if item.path.parent == HERE), default=0)
    items[:] = [*others[:end], *check, *others[end:]]
