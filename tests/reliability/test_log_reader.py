"""Whoever reads the server's output may stand still: the server serves on, and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from certificates import Authority
from harness import Stubs
from reliability.processes import END_TIMEOUT_S, SERVER, environment, init, serving

CALLS = 1_500
"""Each is one line; a pipe holds some 270."""


@contextmanager
def serving_into_a_pipe(
    data: Path, flags: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run a server whose log nobody reads from the moment on that it serves; yield its port."""
    serve = ("serve", "--data-dir", str(data), "--listen", "127.0.0.1:0", *flags)
    with subprocess.Popen(
        [sys.executable, *SERVER, *serve], env=environment(), stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stderr is not None
        try:
            events = (json.loads(line) for line in process.stderr)
            yield process, next(one["port"] for one in events if one["event"] == "serving")
        finally:
            process.kill()


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_log_that_nobody_reads_stops_neither_calls_nor_the_end(
    tmp_path: Path, flags: Sequence[str]
) -> None:
    """Every management call is answered, revoking too, and SIGTERM ends the server in time."""
    installation = init(tmp_path / "data")
    with (
        serving_into_a_pipe(tmp_path / "data", flags) as (process, port),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        admin = Stubs(channel, installation["token"])
        key = admin.create_key()
        for _ in range(CALLS):
            admin.list_keys()
        admin.revoke(key.api_key.id)
        assert admin.outcome(key.token) == "REVOKED"
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_TIMEOUT_S) == 0


def test_garbage_on_a_tls_port_writes_no_line(tmp_path: Path) -> None:
    """Anybody can send it, and a line each would fill a log, or stop a server whose log is full."""
    init(tmp_path / "data")
    certificate, key = Authority(tmp_path).issue("server")
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with serving(tmp_path / "data", flags=flags) as server:
        host, _, port = server.address.partition(":")
        for _ in range(20):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(b"\x16\x03\x01" + b"garbage" * 5)
                while connection.recv(4096):
                    pass  # until the server has refused it
        assert server.stop() == 0
        events = {one["event"] for one in server.events}
        assert len(server.text.splitlines()) == len(server.events)
        assert events == {"serving", "draining", "audit_head", "stopped"}


def test_output_that_nobody_reads_does_not_stop_the_end_of_quickstart(tmp_path: Path) -> None:
    """The commands that a first start prints wait for a full pipe; the server does not."""
    reader, writer = os.pipe()
    quickstart = ("quickstart", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        [sys.executable, *SERVER, *quickstart],
        env=environment(),
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        # What is printed before the server starts is read; then the pipe is filled up.
        text = b""
        while b"export KEYBEARER_TOKEN" not in text:
            text += os.read(reader, 4096)
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"x" * 65536)
        except BlockingIOError:
            os.set_blocking(writer, True)
        assert any(b'"serving"' in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(END_TIMEOUT_S) == 0
        finally:
            process.kill()
    os.close(reader)
    os.close(writer)
