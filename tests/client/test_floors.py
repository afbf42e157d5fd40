"""The oldest libraries that pyproject.toml allows."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("floor_program.py")


def _floors() -> dict[str, str]:
    """Read the lower bounds of the client's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = [re.fullmatch(r"([a-z-]+)>=([0-9.]+),.*", one) for one in project["dependencies"]]
    return {match[1]: match[2] for match in found if match is not None}


def test_the_client_needs_three_libraries_and_nothing_else() -> None:
    """grpcio, protobuf and grpcio-status."""
    assert set(_floors()) == {"grpcio", "grpcio-status", "protobuf"}


def test_the_client_works_with_the_oldest_libraries(tmp_path: Path) -> None:
    """Everything that services use, with the lower bounds installed and no pytest."""
    floors = _floors()
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pins = [f"{name}=={version}" for name, version in floors.items()]
    options = ["--retries", "1", "--timeout", "10", "--only-binary", ":all:"]
    installed = subprocess.run([*install, *options, *pins], capture_output=True, text=True)  # noqa: PLW1510
    if installed.returncode != 0:
        pytest.skip(f"the package index cannot be used: {installed.stderr.strip()[-200:]}")
    used = subprocess.run(  # noqa: PLW1510
        [str(python), "-W", "error", str(PROGRAM)],
        env={"PYTHONPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout == f"grpcio {floors['grpcio']} protobuf {floors['protobuf']}\n"
