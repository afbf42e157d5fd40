"""The check of documented errors comes after all calls of this directory."""

from pathlib import Path

import pytest

from harness import SEEN_ERRORS

HERE = Path(__file__).parent
LAST = HERE / "test_documented_errors.py"


@pytest.fixture(scope="session", autouse=True)
def _errors_of_this_directory() -> None:
    """Forget the errors that the tests of other directories saw."""
    SEEN_ERRORS.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the check behind the last test of this directory, and leave all else in its order."""
    check = [item for item in items if item.path == LAST]
    others = [item for item in items if item.path != LAST]
    end = max((n for n, item in enumerate(others, 1) if item.path.parent == HERE), default=0)
    items[:] = [*others[:end], *check, *others[end:]]
