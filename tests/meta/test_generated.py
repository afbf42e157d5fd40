"""The generated code is what the protos say, and runs where the package says it runs."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = sorted((ROOT / "client/keybearer/v1").glob("*_pb2*.py"))
_GRPC_FLOOR = re.compile(r"^GRPC_GENERATED_VERSION = '([0-9.]+)'", re.MULTILINE)
_PROTOBUF_FLOOR = re.compile(
    r"ValidateProtobufRuntimeVersion\(\s*\S+\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+),", re.MULTILINE
)


def _lower_bounds() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = {}
    for requirement in project["dependencies"]:
        match = re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)", requirement)
        assert match is not None, requirement
        bounds[match[1]] = match[2]
    return bounds


def test_the_committed_stubs_are_what_the_protos_generate() -> None:
    """Regenerating makes no difference."""
    if shutil.which("make") is None or not (ROOT / ".venv-generate/.installed").exists():
        pytest.skip("needs make and .venv-generate; `make check-generated` makes it")
    done = subprocess.run(
        ["make", "--no-print-directory", "check-generated"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_stubs_ask_for_the_grpcio_that_the_package_asks_for() -> None:
    """A stub refuses an older grpcio at import, so the lower bound is the stubs' own."""
    floors = {
        floor for path in STUBS for floor in _GRPC_FLOOR.findall(path.read_text(encoding="utf-8"))
    }
    assert floors == {_lower_bounds()["grpcio"]}


def test_the_message_stubs_ask_for_the_protobuf_that_the_package_asks_for() -> None:
    """A message module refuses an older protobuf at import, so the lower bound is its own."""
    floors = {
        ".".join(floor)
        for path in STUBS
        for floor in _PROTOBUF_FLOOR.findall(path.read_text(encoding="utf-8"))
    }
    assert floors == {_lower_bounds()["protobuf"]}
