"""What `pip install keybearer` brings."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The files in a wheel that was built just now."""
    directory = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_the_wheel_squats_on_no_name_but_ours(names: list[str]) -> None:
    """Two packages and the facts about them, and nothing at top level beside."""
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "keybearer",
        "keybearer_service",
    }


def test_the_wheel_has_the_proto_that_guarded_services_import(names: list[str]) -> None:
    """`import "keybearer/v1/access.proto"` is found below the directory of site packages."""
    assert "keybearer/v1/access.proto" in names


def test_the_wheel_is_typed(names: list[str]) -> None:
    """Type checkers read both packages."""
    assert {"keybearer/py.typed", "keybearer_service/py.typed"} <= set(names)
