"""A service whose people sign in at a certified provider, where npm has one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from console.provider import CLIENT_ID
from harness import ANY_PORT, Service, running
from keybearer_service.domain.clock import Micros, SystemClock, after
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.net.sign_in import ProviderSettings, SignInSettings

HERE = Path(__file__).parent / "oidc-provider"
MODULES = Path(
    os.environ.get("KEYBEARER_TEST_OIDC_PROVIDER")
    or Path(__file__).parents[2] / ".cache/oidc-provider/node_modules"
)
MILLISECOND = 1000
SECRET = "a secret: %/+&"


class Later(SystemClock):
    """The clock of the service and its provider, which can be put forward."""

    def __init__(self) -> None:
        self._ahead = 0
        self._provider: subprocess.Popen[str] | None = None

    def now(self) -> Micros:
        """Return the moment of the machine, and what was added."""
        return after(super().now(), self._ahead)

    def of(self, provider: "subprocess.Popen[str]") -> None:
        """Have a provider go by this clock from now on."""
        self._provider = provider

    def advance(self, span: int) -> None:
        """Put both forward by microseconds."""
        assert self._provider is not None
        self._ahead += span
        _ask(self._provider, str(self._ahead // MILLISECOND))


def _ask(process: "subprocess.Popen[str]", line: str) -> None:
    """Send a line to the provider, and wait until it has done what it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    _line(process.stdout, "ready")


def _line(stream: IO[str], begins: str) -> str:
    for line in stream:
        if line.startswith(begins):
            return line.strip()
    raise AssertionError("the provider has ended")


@contextmanager
def _provider() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not MODULES.joinpath("oidc-provider").is_dir():
        pytest.skip(f"oidc-provider is not installed in {MODULES.name}: .ci/run does it with npm")
    process = subprocess.Popen(
        [node, str(HERE / "provider.mjs"), str(MODULES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        port = _line(process.stdout, "port ").split()[1]
        yield f"http://localhost:{port}", process
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@contextmanager
def certified(tmp_path: Path, clock: Later | None = None) -> Iterator[Service]:
    """Run the provider and a service; for a browser they are two sites."""
    clock = clock or Later()
    (tmp_path / "secret").write_text(SECRET)
    with _provider() as (issuer, process):
        provider = ProviderSettings(
            issuer=issuer, client_id=CLIENT_ID, secret_file=tmp_path / "secret"
        )
        http = HttpConfig(console=ANY_PORT, sign_in=SignInSettings(provider=provider))
        with running(tmp_path / "data", clock, SystemEntropy(), http=http) as started:
            _ask(process, started.app.console_origin)
            clock.of(process)
            yield started
