"""The data directory: made for one user, held by one server."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from fakes import FakeClock, SeededEntropy
from harness import initialise
from keybearer_service.installation.data_directory import DataDir, DataDirError, write_secret_file
from keybearer_service.storage import dbapi
from keybearer_service.storage.files import sharing_hazard

_HOLD = """
import sys
from pathlib import Path
from keybearer_service.installation.data_directory import DataDir
with DataDir(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def directory(tmp_path: Path) -> DataDir:
    """A made and empty directory."""
    made = DataDir(tmp_path / "data")
    made.create()
    return made


def test_a_directory_is_for_its_user_alone(directory: DataDir) -> None:
    """0700, also when it was there before with more."""
    assert directory.path.stat().st_mode & 0o777 == 0o700
    directory.path.chmod(0o755)
    directory.create()
    assert directory.path.stat().st_mode & 0o777 == 0o700


def test_a_directory_without_a_database_says_how_to_make_one(directory: DataDir) -> None:
    """The refusal names the commands."""
    with pytest.raises(DataDirError, match=r"init.*quickstart"):
        directory.assert_initialised()


def test_an_installation_is_never_made_over_another(tmp_path: Path) -> None:
    """The second `init` changes nothing."""
    data_dir, _ = initialise(tmp_path / "data", FakeClock(), SeededEntropy(1))
    before = data_dir.database.read_bytes()
    with pytest.raises(DataDirError, match="already"):
        initialise(tmp_path / "data", FakeClock(), SeededEntropy(2))
    assert data_dir.database.read_bytes() == before


def test_a_beginning_that_was_cut_off_can_be_begun_again(tmp_path: Path) -> None:
    """What an earlier try left behind is cleared away."""
    data_dir = DataDir(tmp_path / "data")
    data_dir.create()
    (data_dir.path / "keybearer.db.new").write_bytes(b"half")
    (data_dir.path / "peppers.new").mkdir()
    (data_dir.path / "peppers.new/audit.key").write_text("half", "ascii")
    initialise(tmp_path / "data", FakeClock(), SeededEntropy(1))
    assert data_dir.is_initialised
    assert not list(data_dir.path.glob("*.new*"))


def test_a_directory_is_held_by_one_process(directory: DataDir) -> None:
    """A second server is refused in one line while the first runs, and no longer."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataDirError, match="in use by another") as caught:
            directory.locked().__enter__()
        assert "\n" not in str(caught.value)
    finally:
        holder.communicate("\n")
    with directory.locked():
        pass


def test_a_holder_that_was_killed_lets_go(directory: DataDir) -> None:
    """No file has to be removed by hand."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    with directory.locked():
        pass


def test_a_lock_in_the_same_process_is_a_lock_too(directory: DataDir) -> None:
    """Two servers in one process exclude each other as well."""
    with directory.locked(), pytest.raises(DataDirError, match="in use"):
        directory.locked().__enter__()


def test_commands_beside_a_server_need_a_sound_sqlite(directory: DataDir) -> None:
    """With the WAL-reset bug two writing processes exclude each other."""
    with directory.locked():
        with directory.shared_with_server():
            pass
        find_hazard = partial(sharing_hazard, (3, 40, 1))
        with pytest.raises(DataDirError, match=r"in use.*SQLite 3\.40\.1"):
            directory.shared_with_server(find_hazard).__enter__()


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 52, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_with_the_bug_are_known(version: tuple[int, ...], *, has_bug: bool) -> None:
    """Fixed in 3.51.3 and in the backports 3.50.7 and 3.44.6."""
    assert dbapi.has_wal_reset_bug(version) == has_bug


def test_a_secret_file_is_for_its_user_alone_and_never_replaced(tmp_path: Path) -> None:
    """0600, and one that is there stays."""
    path = tmp_path / "token"
    write_secret_file(path, "secret")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text("ascii") == "secret\n"
    with pytest.raises(DataDirError, match="token"):
        write_secret_file(path, "other")
    assert path.read_text("ascii") == "secret\n"
