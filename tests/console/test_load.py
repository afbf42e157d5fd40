"""What the console costs those who ask about tokens, and what a long list costs the console."""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.seed import installation
from console.site import Site
from harness import Stubs
from reliability.processes import ServerProcess, environment

pytestmark = pytest.mark.slow

KEYS = 100_000
CALLS = 1000
ROUNDS = 7
BROWSERS = 2
WITHIN = 1.5
"""Times what validations take while the same browsers use a second server beside."""
PAGE_S = 0.3
PAGES = 40


@contextmanager
def serving(data: Path) -> Iterator[tuple[ServerProcess, str]]:
    """Serve a directory in a process of its own; yield that and where its console is."""
    process = ServerProcess(data, flags=("--console-listen", "127.0.0.1:0"))
    try:
        process.wait_until_serving()
        port = next(event["port"] for event in process.events if event["event"] == "serving_http")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.close()


@contextmanager
def paging(origin: str, session: str) -> Iterator[None]:
    """Have browsers of one session page through the list of a console."""
    with ExitStack() as running:
        for _ in range(BROWSERS):
            browser: Any = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "console.paging", origin],
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            running.callback(browser.kill)
            browser.stdin.write(f"{session}\n")
            browser.stdin.flush()
            assert browser.stdout.readline() == "paging\n"
        yield


def signed_in(origin: str, token: str) -> str:
    """Sign in; return the token of the session."""
    with httpx.Client(base_url=origin, timeout=60) as client:
        site = Site(origin, client)
        assert site.sign_in(token).status == 200
        return site.session


def p99(stubs: Stubs, tokens: Sequence[str]) -> float:
    """Return what one validation in a hundred takes longer than, in seconds."""
    taken = []
    for number in range(CALLS):
        began = time.perf_counter()
        stubs.validate(tokens[number % len(tokens)])
        taken.append(time.perf_counter() - began)
    return statistics.quantiles(taken, n=100)[98]


def test_a_console_that_is_used_delays_no_validation(tmp_path: Path) -> None:
    """Two browsers page through 100,000 keys, at this server or at another one beside it."""
    data, token, tokens = installation(tmp_path, KEYS)
    shutil.copytree(data, tmp_path / "beside")
    with (
        serving(data) as (process, here),
        serving(tmp_path / "beside") as (_, beside),
    ):
        stubs = process.stubs(token)
        p99(stubs, tokens)
        alone = p99(stubs, tokens)
        measured: dict[str, list[float]] = {here: [], beside: []}
        sessions = {origin: signed_in(origin, token) for origin in measured}
        for _ in range(ROUNDS):
            for origin, found in measured.items():
                with paging(origin, sessions[origin]):
                    found.append(p99(stubs, tokens))
    ours, control = (statistics.median(found) for found in measured.values())
    sys.stdout.write(
        f"p99: {ours * 1000:.2f} ms here, {control * 1000:.2f} ms beside,"
        f" {alone * 1000:.2f} ms alone\n"
    )
    assert ours <= WITHIN * control


@pytest.mark.parametrize("query", ["", "?order=name", "?view=active", "?view=unused", "?q=99"])
def test_a_page_of_a_long_list_comes_soon(tmp_path: Path, query: str) -> None:
    """Of 100,000 keys, with the counts of the views."""
    data, token, _ = installation(tmp_path, KEYS)
    with serving(data) as (_, origin), httpx.Client(base_url=origin, timeout=60) as client:
        site = Site(origin, client)
        site.sign_in(token)
        path, taken = f"/console/keys{query}", []
        for _ in range(PAGES):
            began = time.perf_counter()
            response = client.get(path, headers={"cookie": f"__Host-keybearer={site.session}"})
            taken.append(time.perf_counter() - began)
            assert response.status_code == 200
            path = next((one for one in site.get(path).links if "page=" in one), path)
    sys.stdout.write(f"{query or 'all'}: {statistics.median(taken) * 1000:.0f} ms a page\n")
    assert statistics.median(taken) <= PAGE_S
