"""Descriptors: as many as there may be, and no flood of lines where they are used up."""

import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from reliability.processes import ServerProcess, environment, init

CONNECTIONS = 400


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An installation."""
    init(tmp_path / "data")
    return tmp_path / "data"


def _limited(*limits: str) -> tuple[str, ...]:
    return ("sh", "-c", "; ".join([*(f"ulimit {one}" for one in limits), 'exec "$@"']), "-")


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_the_soft_limit_is_raised_as_far_as_it_may(data: Path, flags: tuple[str, ...]) -> None:
    """Systems start processes with 1,024, which is few for a server."""
    server = ServerProcess(data, wrapper=_limited("-Sn 256", "-Hn 5000"), flags=flags)
    try:
        server.wait_until_serving()
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        for pid in (server.pid, *children):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert re.search(r"Max open files +5000 +5000", limits)
        assert "few_descriptors" not in server.text
    finally:
        server.close()


def test_a_limit_that_cannot_be_raised_is_said_at_the_start(data: Path) -> None:
    """With the number that is left for connections."""
    server = ServerProcess(data, wrapper=_limited("-n 256"))
    try:
        server.wait_until_serving()
        [told] = [one for one in server.events if one["event"] == "few_descriptors"]
        assert (told["limit"], told["for_connections"]) == (256, 128)
    finally:
        server.close()


def test_a_limit_is_never_lowered() -> None:
    """Whoever gave more meant it."""
    code = (
        "import resource; from keybearer_service.net import descriptors;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2_000, 3_000));"
        "assert descriptors.raise_limit(1_000) == 2_000;"
        "assert descriptors.for_connections() == 2_000 - descriptors.RESERVED"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


def test_descriptors_that_are_used_up_do_not_fill_the_log(data: Path) -> None:
    """Far more connections than the limit are opened; the listener closes them and counts them."""
    server = ServerProcess(data, wrapper=_limited("-n 256"), flags=("--http-listen", "127.0.0.1:0"))
    try:
        server.wait_for(lambda events: "serving_http" in {one["event"] for one in events})
        port = next(one["port"] for one in server.events if one["event"] == "serving_http")
        with ExitStack() as connections:
            for _ in range(CONNECTIONS):
                connections.enter_context(socket.create_connection(("127.0.0.1", port)))
            server.wait_for(
                lambda events: "http_connections_closed" in {one["event"] for one in events}
            )
        assert len(server.text) < 200_000
        assert server.stop() == 0
    finally:
        server.close()
