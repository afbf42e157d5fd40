"""The check of documented errors comes after all calls of this directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import FakeClock, SeededEntropy
from harness import SEEN_ERRORS, ReplaceableStore, Service, running, store_of

HERE = Path(__file__).parent
LAST = HERE / "test_documented_errors.py"


@pytest.fixture(scope="session", autouse=True)
def _errors_of_this_directory() -> None:
    """Forget the errors that the tests of other directories saw."""
    SEEN_ERRORS.clear()


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service over a store whose methods may be replaced."""
    with running(tmp_path / "data", clock, entropy, opener=ReplaceableStore) as running_service:
        yield running_service


@pytest.fixture
def store(service: Service) -> ReplaceableStore:
    """The store of the running service."""
    return store_of(service.app)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the check behind the last test of this directory, and leave all else in its order."""
    check = [item for item in items if item.path == LAST]
    others = [item for item in items if item.path != LAST]
    end = max((n for n, item in enumerate(others, 1) if item.path.parent == HERE), default=0)
    items[:] = [*others[:end], *check, *others[end:]]
