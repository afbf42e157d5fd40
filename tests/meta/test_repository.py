"""Nothing in the repository opens anything or names somebody's machine."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from keybearer_service.domain import token_format

ROOT = Path(__file__).parents[2]
_TOKEN_LIKE = re.compile(r"[a-z][a-z0-9]{1,15}_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}")
_MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:[h]ome|[r]oot|[U]sers|[w]ork)/\w")


def _tracked_texts() -> Iterator[tuple[str, str]]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue


def _real_tokens(text: str) -> list[str]:
    found = _TOKEN_LIKE.findall(text)
    return [one for one in found if token_format.checksum(one[:-6]) == one[-6:]]


def test_no_file_holds_a_token() -> None:
    """Nothing that would parse as a token is committed, not even a dead one."""
    assert [name for name, text in _tracked_texts() if _real_tokens(text)] == []


def test_the_search_for_tokens_finds_one() -> None:
    """A token that is put together here is seen, and a sentence after it does not hide it."""
    assert _real_tokens("the token " + token_format.write("kbear1", "A" * 16, "b" * 43) + "y")


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    """Paths are relative to the repository or made up for examples."""
    assert [
        f"{name}: {found[0]}"
        for name, text in _tracked_texts()
        if (found := _MACHINE_PATH.findall(text))
    ] == []
