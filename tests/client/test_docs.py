"""docs/client.md: its quick start runs, and what it names exists."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import keybearer
from cliharness import command_line
from keybearer import errors

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/client.md").read_text("utf-8")

GENERATORS = [directory / ".venv-generate" for directory in (ROOT, Path(sys.prefix).parent)]
FILES = dict(re.findall(r"<!-- test: quick-start (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"<!-- test: quick-start -->\n```sh\n(.*?)```", TEXT, re.DOTALL)


def test_the_quick_start_works_when_pasted(tmp_path: Path) -> None:
    """What the reader sees, and nothing else, makes a guarded service and calls it."""
    generator = next((one for one in GENERATORS if (one / ".installed").exists()), None)
    if generator is None:
        pytest.skip("needs .venv-generate; `make check-generated` makes it")
    with command_line(tmp_path) as cli:
        environment = _as_installed(tmp_path, generator) | {
            "KEYBEARER_ADDRESS": cli.service.address,
            "KEYBEARER_TOKEN": cli.service.admin_token,
        }
        directory = tmp_path / "empty"
        directory.mkdir()
        for name, content in FILES.items():
            (directory / name).write_text(content)
        for command in COMMANDS:
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=directory,
                env=environment,
                check=True,
            )
        with subprocess.Popen(
            ["python", "service.py", "127.0.0.1:0"],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as service:
            assert service.stdout is not None
            try:
                address = service.stdout.readline().split()[-1]
                called = subprocess.run(
                    ["python", "caller.py", address],
                    cwd=directory,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
            finally:
                service.kill()
    shown = re.search(r"\$ python caller.py .*?\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    assert called.stdout.strip() == shown[1].strip()


def _as_installed(directory: Path, generator: Path) -> dict[str, str]:
    """Return the environment of a reader who has installed the package and grpcio-tools."""
    packages, programs = directory / "site-packages", directory / "bin"
    shutil.copytree(ROOT / "client/keybearer", packages / "keybearer")
    # The wheel has it there.
    shutil.copy(ROOT / "protos/keybearer/v1/access.proto", packages / "keybearer/v1")
    programs.mkdir()
    python = programs / "python"
    # One interpreter has grpcio-tools and another one the package; a reader has both in one.
    python.write_text(
        f'#!/bin/sh\n[ "$2" = grpc_tools.protoc ] && exec {generator}/bin/python "$@"\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(packages), "HOME": str(directory)}


def test_every_error_it_names_exists_and_every_error_is_named() -> None:
    """The table of errors names exactly the error classes."""
    named = {one for one in re.findall(r"\b\w+Error\b", TEXT) if one.lower() != one}
    classes = {name for name in vars(errors) if name.endswith("Error") and name[0].isupper()}
    classes -= {"DecodeError"}
    families = {family.__name__ for family in errors.KeybearerError.__subclasses__()}
    elsewhere = {"RuleError", "NoIdentityError", "RpcError", "TypeError", "ValueError"}
    assert named - elsewhere <= classes
    assert classes - families <= named


def test_every_argument_it_names_exists() -> None:
    """Every `keybearer.x` name in the page and its examples is importable."""
    for module, name in re.findall(r"`keybearer\.(\w+)\.(\w+)`", TEXT):
        assert hasattr(__import__(f"keybearer.{module}", fromlist=[name]), name)
    for name in re.findall(r"\b([A-Z]\w+(?:Client|Verifier|Interceptor))\b", TEXT):
        assert hasattr(keybearer, name), name
