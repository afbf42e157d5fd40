"""How much a verdict costs at each door: rates beside ValidateToken, in one run."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import generator
from gateway.load import (
    CHECK_PATH,
    check_bodies,
    forward_auth_requests,
    is_admitted,
    run_forward_auth,
)
from keybearer.v1 import token_service_pb2 as pb

pytestmark = pytest.mark.bench
CONNECTIONS = 8
SECONDS = 2.0
ROUNDS = 5


@contextmanager
def serving(path: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """Serve a fresh installation in a process of its own; yields its admin's token and ports."""
    program = [sys.executable, "-m", "keybearer_service"]
    init = [*program, "init", "--data-dir", str(path), "--account", "a", "--output", "json"]
    init += ["--admin-email", "a@example.com"]
    token = json.loads(subprocess.run(init, capture_output=True, check=True).stdout)["token"]
    serve = [*program, "serve", "--data-dir", str(path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*serve, "--http-listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        ports: dict[str, int] = {}
        for line in process.stderr:
            event = json.loads(line)
            if event["event"].startswith("serving"):
                ports[event["event"]] = event["port"]
            if len(ports) == 2:
                break
        yield token, ports
        process.terminate()
        process.stderr.read()


def test_rates_of_the_doors(tmp_path: Path) -> None:
    """Prints calls a second; asserts only that every answer was right."""
    with serving(tmp_path / "data") as (token, ports):
        common: dict[str, Any] = {"seconds": SECONDS, "connections": CONNECTIONS}
        grpc: dict[str, Any] = {
            **common,
            "port": ports["serving"],
            "metadata": [("authorization", f"Bearer {token}")],
            "in_flight": 1,
        }
        validate = pb.ValidateTokenRequest(token=token).SerializeToString()
        runs: dict[str, Callable[[], generator.Report]] = {
            "ValidateToken": lambda: generator.run(
                path="/keybearer.v1.TokenService/ValidateToken",
                bodies=[generator.message(validate)],
                check=lambda reply: pb.ValidateTokenResponse.FromString(reply).valid,
                **grpc,
            ),
            "ext_authz": lambda: generator.run(
                path=CHECK_PATH, bodies=check_bodies([token]), check=is_admitted, **grpc
            ),
            "forward_auth": lambda: run_forward_auth(
                ports["serving_http"], forward_auth_requests(token, [token]), **common
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                report = run()
                assert report.wrong == 0
                rates[name].append(report.rate)
    first = sorted(rates["ValidateToken"])[ROUNDS // 2]
    for name, seen in rates.items():
        middle = sorted(seen)[ROUNDS // 2]
        sys.stdout.write(
            f"{name:14} {middle:7.0f} calls/s, {middle / first:4.2f} of ValidateToken"
            f" ({min(seen):.0f} to {max(seen):.0f})\n"
        )
