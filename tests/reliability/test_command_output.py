"""Commands whose files or output cannot be written: one line that says so, and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reliability.processes import END_TIMEOUT_S, SERVER, command, environment, init


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An installation."""
    init(tmp_path / "data")
    return tmp_path / "data"


def _refusal(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    assert done.returncode == code, done
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("keybearer-server: ")
    return lines[0].removeprefix("keybearer-server: ")


def _into(descriptor: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    # An interpreter of its own: how it ends, with an output that cannot be flushed, matters here.
    return subprocess.run(
        [sys.executable, *SERVER, *arguments],
        env=environment(),
        stdout=descriptor,
        stderr=subprocess.PIPE,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )


COMMANDS = {
    "--version": (),
    "serve --help": (),
    "check": ("--data-dir",),
    "check --output json": ("--data-dir",),
    "audit verify": ("--data-dir",),
    "audit export": ("--data-dir",),
    "pepper add": ("--data-dir",),
    "pepper list": ("--data-dir",),
    "pepper list --output json": ("--data-dir",),
    "admin-token --email root@example.com": ("--data-dir",),
}


@pytest.mark.parametrize("words", COMMANDS)
def test_a_full_disk_behind_the_output_is_said(data: Path, words: str) -> None:
    """What could not be printed is no success."""
    options = [word for option in COMMANDS[words] for word in (option, str(data))]
    with Path("/dev/full").open("w") as full:
        done = _into(full.fileno(), *words.split(), *options)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[-1] == "keybearer-server: standard output: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_had_enough_is_no_error_to_tell(data: Path) -> None:
    """As in `audit export | head`: nothing is printed about it."""
    reader, writer = os.pipe()
    os.close(reader)
    done = _into(writer, "audit", "export", "--data-dir", str(data))
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_no_file(data: Path, closed: str) -> None:
    """Their numbers do not go to the database, which would be written over."""
    line = f'"$@" {closed}'
    subprocess.run(
        ["sh", "-c", line, "-", sys.executable, *SERVER, "pepper", "add", "--data-dir", str(data)],
        env=environment(),
        check=True,
        timeout=END_TIMEOUT_S,
    )
    done = command("check", "--data-dir", str(data))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("All is well.\n")


def _events(data: Path) -> int:
    return len(command("audit", "export", "--data-dir", str(data)).stdout.splitlines())


def test_a_token_that_nobody_could_see_is_not_issued(data: Path) -> None:
    """With standard output closed."""
    before = _events(data)
    issue = ("admin-token", "--email", "root@example.com", "--data-dir", str(data))
    line = '"$@" >&-'
    done = subprocess.run(
        ["sh", "-c", line, "-", sys.executable, *SERVER, *issue],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=END_TIMEOUT_S,
    )
    assert done.returncode == 1
    assert "standard output is closed; give --token-file" in done.stderr
    assert _events(data) == before


def test_a_token_whose_file_cannot_be_made_is_not_issued(data: Path, tmp_path: Path) -> None:
    """The file is made before the token is."""
    before = _events(data)
    issue = ("admin-token", "--email", "root@example.com", "--data-dir", str(data))
    taken = tmp_path / "taken"
    taken.write_text("precious")
    for file, said in (
        (tmp_path / "nowhere/token", "No such file or directory"),
        (taken, "File exists"),
        (tmp_path, "File exists"),
    ):
        done = command(*issue, "--token-file", str(file))
        assert _refusal(done) == f"{file}: {said}"
    assert taken.read_text() == "precious"
    assert _events(data) == before


def test_a_command_that_fails_leaves_no_token_file(data: Path, tmp_path: Path) -> None:
    """Nothing is in it, and the next try may make it."""
    issue = ("admin-token", "--data-dir", str(data), "--token-file", str(tmp_path / "token"))
    assert _refusal(command(*issue, "--email", "nonsense"))
    assert not (tmp_path / "token").exists()
    assert command(*issue, "--email", "root@example.com").returncode == 0


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere/backup", "nowhere is no directory; make it first"),
        ("./", ". is a directory; name a file"),
        ("..", ".. is a directory; name a file"),
        ("/", "/ is a directory; name a file"),
        ("{data}", "{data} exists already"),
        ("{data}/peppers/backup", "{data}/peppers holds the key files; a backup belongs elsewhere"),
    ],
)
def test_a_backup_that_cannot_be_written_is_refused(data: Path, file: str, said: str) -> None:
    """In one line that says what would be right."""
    done = command("backup", file.format(data=data), "--data-dir", str(data))
    assert _refusal(done) == said.format(data=data)


def test_a_backup_without_permission_is_refused_by_its_name(data: Path, tmp_path: Path) -> None:
    """Whatever the system says of the file."""
    done = command("backup", "/proc/backup", "--data-dir", str(data))
    assert _refusal(done).startswith("/proc/backup: ")


@pytest.mark.parametrize("file", ["./", "..", "/"])
def test_a_restore_of_a_directory_is_refused(tmp_path: Path, file: str) -> None:
    """The same."""
    done = command("restore", file, "--data-dir", str(tmp_path / "restored"))
    assert _refusal(done) == f"{Path(file)} is a directory; name a file"


@pytest.mark.parametrize("extra", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_arguments_in_another_encoding_are_no_traceback(extra: dict[str, str]) -> None:
    """They are shown in escapes."""
    done = command("check", "--data-dir", os.fsdecode(b"caf\xe9"), **extra)
    assert "holds no installation" in _refusal(done, 2)  # it could not look
