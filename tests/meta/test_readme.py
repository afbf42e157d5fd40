"""What the README and a first start show works when pasted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from harness import Service

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
_BLOCK = re.compile(r"<!-- test: (\w+) -->\n```bash\n(.*?)```", re.DOTALL)
_TIMEOUT_S = 60


def _paste(commands: str, token: str) -> str:
    """Run what was pasted into a shell that has the token; answer what it printed."""
    done = subprocess.run(
        ["bash", "-euc", commands],
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "KEYBEARER_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_commands_work_when_pasted(service: Service) -> None:
    """A new user who pastes the README's first block makes, lists and uses a key."""
    blocks = dict(_BLOCK.findall((ROOT / "README.md").read_text()))
    commands = blocks["story"].replace("127.0.0.1:50051", service.address)

    printed = _paste(commands, service.admin_token)

    assert '"token": "kbear1_' in printed
    assert '"outcome": "VALIDATION_OUTCOME_VALID"' in printed


@pytest.fixture
def first_start(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A first start without a terminal: what it printed, and its data directory."""
    data_dir = tmp_path / "data"
    command = [str(BIN / "keybearer-server"), "quickstart"]
    command += ["--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "ListApiKeys" in line:
                break
        yield "".join(printed), data_dir
        process.send_signal(signal.SIGTERM)
        assert process.wait(_TIMEOUT_S) == 0


def test_a_first_start_keeps_its_token_in_a_file_without_a_terminal(
    first_start: tuple[str, Path],
) -> None:
    """Nothing that reads the output, as a log collector does, gets the token."""
    printed, data_dir = first_start
    token_file = data_dir / "admin-token"
    assert token_file.stat().st_mode & 0o777 == 0o600
    assert token_file.read_text().strip() not in printed
    assert str(token_file) in printed


def test_the_commands_of_a_first_start_work_when_pasted(first_start: tuple[str, Path]) -> None:
    """Who am I, make a key, list the keys: each as shown."""
    printed, _ = first_start
    lines = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    export, grpcurl, create, listing = lines
    if shutil.which("grpcurl") is not None:
        assert "VALIDATION_OUTCOME_VALID" in _paste(f"{export}\n{grpcurl}", "")
    created = json.loads(_paste(f"{export}\n{create}", ""))
    assert created["apiKey"]["id"] in _paste(f"{export}\n{listing}", "")


def test_a_start_prints_the_address_of_the_console(tmp_path: Path) -> None:
    """The first one and every later one, once the port answers there."""
    pytest.importorskip("jinja2", reason="the extra console is not installed")
    command = [str(BIN / "keybearer-server"), "quickstart", "--data-dir", str(tmp_path / "data")]
    command += ["--listen", "127.0.0.1:0", "--console-listen", "127.0.0.1:0"]
    for _ in range(2):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            line = next(one for one in process.stdout if "The console" in one)
            address = line.split()[-1]
            assert "Sign in" in httpx.get(address, follow_redirects=True, timeout=20).text
            process.send_signal(signal.SIGTERM)
            assert process.wait(_TIMEOUT_S) == 0
