"""The tests of the store on PostgreSQL find the bugs that they are there for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import postgres_server

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from storage.postgres_bugs import BUGS, VARIABLE

TESTS = Path(__file__).parents[1]
FAILED = 1
"""What pytest ends with when a test has failed."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_found(name: str) -> None:
    """In a process of its own, in which the test that is named beside the bug fails."""
    postgres_server.server()  # skips where there is none
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "storage.postgres_bugs")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / BUGS[name].test)],
        env={**os.environ, VARIABLE: name, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == FAILED, done.stdout
    assert "failed" in done.stdout.splitlines()[-1], done.stdout
