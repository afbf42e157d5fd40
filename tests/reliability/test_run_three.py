"""`make run-three`: three nodes over one database, and nothing left of them."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

import postgres_server
from harness import Stubs
from reliability.processes import environment

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

SCRIPT = Path(__file__).parents[2] / "tools" / "run_three.py"
PATIENCE_S = 60


def test_three_nodes_serve_one_installation_and_end_together() -> None:
    """With the token that is in the file; at the end its directory is gone too."""
    postgres_server.server()  # skips where there is none
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--listen", "127.0.0.1:0"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        told = ""
        for line in process.stdout:
            told += line
            if "KEYBEARER_TOKEN" in line:
                break
        [file] = re.findall(r"cat ([^)]+)\)", told)
        token = Path(file).read_text("utf-8").strip()
        channels = [grpc.insecure_channel(one) for one in re.findall(r"127\.0\.0\.1:\d+", told)]
        callers = {Stubs(channel, token).who_am_i().key_id for channel in channels}
        for channel in channels:
            channel.close()
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
        process.stdout.close()
    assert code == 0
    assert len(channels) == 3
    assert len(callers) == 1
    assert not Path(file).parent.exists()
