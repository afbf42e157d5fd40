"""What the client promises: its public names and signatures, against a committed snapshot."""

import difflib
import importlib.metadata
import inspect
import tomllib
from pathlib import Path

import pytest

import keybearer
from keybearer import CachingVerifier
from meta import public_api

ROOT = Path(__file__).parents[2]


def _difference() -> str:
    committed = public_api.SNAPSHOT.read_text("utf-8").splitlines()
    return "\n".join(
        difflib.unified_diff(committed, public_api.describe(), "committed", "now", n=1, lineterm="")
    )


def test_the_public_names_and_signatures_are_those_of_the_snapshot() -> None:
    """A change of the public API is made on purpose: `make public-api` accepts it."""
    difference = _difference()
    assert not difference, f"run `make public-api` if this is meant:\n{difference}"


def test_a_changed_signature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a parameter that is renamed and no longer has a default."""

    def verify(self: CachingVerifier, credential: str) -> None:
        """Do nothing."""

    monkeypatch.setattr(CachingVerifier, "verify", verify)
    difference = _difference()
    assert "-    def verify(self, presented: Presented) -> Verdict" in difference
    assert "+    def verify(self: CachingVerifier, credential: str) -> None" in difference


def test_a_name_that_is_gone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a name that is no longer exported."""
    names = [name for name in keybearer.__all__ if name != "TLSConfig"]
    monkeypatch.setattr(keybearer, "__all__", names)
    assert "-class TLSConfig" in _difference()


@pytest.mark.parametrize("module_name", public_api.MODULES)
def test_a_module_exports_what_it_defines(module_name: str) -> None:
    """Whatever has no underscore is promised, so nothing public is missing from `__all__`."""
    module = importlib.import_module(module_name)
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module_name
    }
    assert defined - {"fake_keybearer"} <= set(module.__all__)


def test_the_version_is_that_of_the_package() -> None:
    """It is written in pyproject.toml and nowhere else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert keybearer.__version__ == importlib.metadata.version("keybearer") == project["version"]
