"""A process that no longer answers: seen by its probes, and ended by itself."""

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reliability.processes import ServerProcess, init, serving

HTTP = ("--http-listen", "127.0.0.1:0")
NO_HEADERS: Mapping[str, str] = {}


def wait_for(server: ServerProcess, event: str) -> None:
    """Wait until the log names an event."""
    server.wait_for(lambda events: any(one["event"] == event for one in events))


def http_status(server: ServerProcess, path: str, headers: Mapping[str, str] = NO_HEADERS) -> int:
    """Ask the HTTP port."""
    port = next(event["port"] for event in server.events if event["event"] == "serving_http")
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=15) as response:  # noqa: S310 - our own port
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_hung_serving_thread_is_seen_and_ends_the_process(tmp_path: Path) -> None:
    """/healthz says no, and the process ends itself with the stack of every thread in its log."""
    init(tmp_path / "data")
    with serving(tmp_path / "data", bugs=["hold-serving-thread"], flags=HTTP) as server:
        wait_for(server, "serving")
        assert http_status(server, "/healthz") == 200
        hold: Any = server.channel().unary_unary("/planted/Hold")
        held = hold.future(b"")  # a call that nobody refers to is cancelled
        wait_for(server, "holding")
        assert http_status(server, "/healthz") == 503
        assert http_status(server, "/readyz") == 503
        assert server.wait() == 4
        stacks = next(one["stacks"] for one in server.events if one["event"] == "unresponsive")
        assert any("hold_the_serving_thread" in line for stack in stacks.values() for line in stack)
        assert held.exception() is not None


def test_a_process_that_was_suspended_goes_on_when_it_wakes(tmp_path: Path) -> None:
    """Time that went by while it was stopped counts for nothing."""
    init(tmp_path / "data")
    with serving(tmp_path / "data", bugs=["short-watchdog"], flags=HTTP) as server:
        wait_for(server, "serving")
        for _ in range(2):
            os.kill(server.pid, signal.SIGSTOP)
            signal.sigtimedwait([], 6)  # SIGSTOP has no event to wait for
            os.kill(server.pid, signal.SIGCONT)
            assert http_status(server, "/healthz") == 200
        assert server.stop() == 0
