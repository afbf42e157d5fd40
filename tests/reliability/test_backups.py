"""Backups and restores that are broken off: what has its name is whole, the rest is known."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from keybearer_service.storage import dbapi
from reliability.processes import SERVER, answer, command, environment, init
from reliability.tracing import require_strace

STEPS = ("mkdir", "fsync", "fdatasync", "rename", "rmdir", "unlink")
"""The system calls around which what is on the disk changes its meaning."""
MOST = 100
Step = tuple[str, int]
ON_SMALL_DISK = """
mount -t tmpfs -o size=1m tmpfs "$0" && "$@"; code=$?; find "$0" -type f; exit $code
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An installation."""
    init(tmp_path / "data")
    return tmp_path / "data"


def killed_at(step: Step, signal_name: str = "KILL") -> tuple[str, ...]:
    """The words that run a command which gets a signal at the n-th call of one kind."""
    call, number = step
    inject = f"inject={call}:signal={signal_name}:when={number}"
    # What started the tests may ignore some signals, and its programs would too.
    heard = ("env", f"--default-signal={signal_name}") if signal_name != "KILL" else ()
    return (*heard, "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)


def every_step() -> Iterator[Step]:
    """Return every call of every kind; whoever goes through them leaves a kind out at its end."""
    return ((call, number) for call in STEPS for number in range(1, MOST))


def pair(file: Path) -> tuple[bool, bool]:
    """Return whether a backup and its key files have their names."""
    return file.exists(), file.with_name(f"{file.name}.peppers").exists()


def assert_whole(file: Path, target: Path) -> None:
    """Restore a backup, and check what comes of it."""
    answer("restore", str(file), "--data-dir", str(target))
    assert answer("check", "--data-dir", str(target))["findings"] == []
    shutil.rmtree(target)


def break_off_backups(data: Path, tmp_path: Path, steps: Iterable[Step]) -> Counter[str]:
    """Kill a backup at each of some steps; return how often each state was left behind."""
    seen: Counter[str] = Counter()
    ended: set[str] = set()
    for step in steps:
        if step[0] in ended:
            continue
        file = tmp_path / f"backup-{step[0]}-{step[1]}"
        done = command("backup", str(file), "--data-dir", str(data), wrapper=killed_at(step))
        state = pair(file)
        seen[f"file {state[0]}, keys {state[1]}"] += 1
        if state[0]:
            assert state[1], f"a backup without its key files at {step}"
            assert_whole(file, tmp_path / "restored")
        if done.returncode == 0:
            ended.add(step[0])  # there is no such call any more
            continue
        if state == (False, True):
            refusal = command("backup", str(file), "--data-dir", str(data))
            assert refusal.returncode == 1
            assert "remove it if a backup was broken off" in refusal.stderr
            shutil.rmtree(file.with_name(f"{file.name}.peppers"))
        if not state[0]:
            answer("backup", str(file), "--data-dir", str(data))
            assert_whole(file, tmp_path / "restored")
            assert not file.with_name(f"{file.name}.unfinished").exists()
    return seen


@pytest.mark.slow
def test_a_backup_that_is_killed_at_any_step_is_absent_or_whole(data: Path, tmp_path: Path) -> None:
    """The next one to the same file removes what is left, or says what to remove."""
    require_strace()
    seen = break_off_backups(data, tmp_path, every_step())
    sys.stdout.write(f"{sum(seen.values())} kills: {dict(seen)}\n")
    assert seen["file False, keys False"]
    assert seen["file True, keys True"]


def test_a_backup_that_is_killed_is_absent(data: Path, tmp_path: Path) -> None:
    """A few of its steps."""
    require_strace()
    seen = break_off_backups(data, tmp_path, [("fsync", 2), ("rename", 1)])
    assert seen == {"file False, keys False": 2}


def break_off_restores(data: Path, tmp_path: Path, steps: Iterable[Step]) -> Counter[str]:
    """Kill a restore at each of some steps; return how often each way to go on was seen."""
    seen: Counter[str] = Counter()
    ended: set[str] = set()
    file = tmp_path / "backup"
    answer("backup", str(file), "--data-dir", str(data))
    for step in steps:
        if step[0] in ended:
            continue
        target = tmp_path / f"target-{step[0]}-{step[1]}"
        where = ("--data-dir", str(target))
        done = command("restore", str(file), *where, wrapper=killed_at(step))
        if (target / "keybearer.db").exists():
            assert answer("check", *where)["findings"] == []
            seen["restored"] += 1
        else:
            serving = command("serve", *where, "--listen", "127.0.0.1:0")
            assert serving.returncode == 1
            assert "holds no installation" in serving.stderr
            if (target / "peppers").exists():
                refusal = command("restore", str(file), *where)
                assert "remove it if a restore was broken off" in refusal.stderr
                shutil.rmtree(target / "peppers")
                seen["said what to remove"] += 1
            answer("restore", str(file), *where)
            assert answer("check", *where)["findings"] == []
            seen["run again"] += 1
        if done.returncode == 0:
            ended.add(step[0])
    return seen


@pytest.mark.slow
def test_a_restore_that_is_killed_at_any_step_can_be_run_again(data: Path, tmp_path: Path) -> None:
    """What it leaves is no installation, and nobody can serve it."""
    require_strace()
    seen = break_off_restores(data, tmp_path, every_step())
    sys.stdout.write(f"{sum(seen.values())} kills: {dict(seen)}\n")
    assert seen["run again"]
    assert seen["restored"]


def test_a_restore_that_is_killed_can_be_run_again(data: Path, tmp_path: Path) -> None:
    """A few of its steps."""
    require_strace()
    assert break_off_restores(data, tmp_path, [("rename", 1), ("rename", 2)])["run again"] == 2


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
@pytest.mark.parametrize("what", ["backup", "restore"])
def test_a_signal_breaks_off_in_order(data: Path, tmp_path: Path, what: str, name: str) -> None:
    """One line that names it, exit code 1, and nothing is left behind."""
    require_strace()
    file, target = tmp_path / "backup", tmp_path / "target"
    if what == "restore":
        answer("backup", str(file), "--data-dir", str(data))
        words = ("restore", str(file), "--data-dir", str(target))
    else:
        words = ("backup", str(file), "--data-dir", str(data))
    before = sorted(tmp_path.iterdir())
    done = command(*words, wrapper=killed_at(("fsync", 2), name))
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"broken off by SIG{name}" in done.stderr
    assert [one for one in sorted(tmp_path.iterdir()) if one != target] == before
    assert not target.exists() or list(target.iterdir()) == []


def test_a_full_disk_leaves_nothing(data: Path, tmp_path: Path) -> None:
    """A backup and a restore that meet one end with one line, exit code 1, and no files."""
    tried = subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=False
    )
    if tried.returncode:
        pytest.skip("no mount namespace of one's own")
    connection = dbapi.connect(str(data / "keybearer.db"))
    with connection:
        connection.execute("CREATE TABLE ballast (bytes BLOB)")
        connection.execute("INSERT INTO ballast VALUES (randomblob(2000000))")
    connection.close()
    file = tmp_path / "whole"
    answer("backup", str(file), "--data-dir", str(data))
    small = tmp_path / "small"
    small.mkdir()
    for words in (
        ("backup", str(small / "backup"), "--data-dir", str(data)),
        ("restore", str(file), "--data-dir", str(small / "data")),
    ):
        done = command(*words, wrapper=("unshare", "-m", "bash", "-c", ON_SMALL_DISK, str(small)))
        assert done.returncode == 1, done
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "no room left" in done.stderr or "No space left" in done.stderr
        assert done.stdout == ""  # no file is left


def test_progress_is_shown_on_a_terminal(data: Path, tmp_path: Path) -> None:
    """On standard error, which is a terminal; what a timer reads has none of it."""
    ours, theirs = pty.openpty()
    words = ("backup", str(tmp_path / "backup"), "--data-dir", str(data), "--output", "json")
    done = subprocess.run(
        [sys.executable, *SERVER, *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "pages copied" in shown
    assert json.loads(done.stdout)["file"] == str(tmp_path / "backup")
    quiet = command("backup", str(tmp_path / "another"), "--data-dir", str(data))
    assert quiet.stderr == ""


def test_two_backups_to_one_file_do_not_meet(data: Path, tmp_path: Path) -> None:
    """The second one is refused while the first is at work."""
    place = tmp_path / "backup.unfinished"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as the first one does
        refusal = command("backup", str(tmp_path / "backup"), "--data-dir", str(data))
    finally:
        os.close(descriptor)
    assert refusal.returncode == 1
    assert "another command is at work" in refusal.stderr
    answer("backup", str(tmp_path / "backup"), "--data-dir", str(data))


def test_what_no_backup_made_is_not_removed(data: Path, tmp_path: Path) -> None:
    """A directory of somebody else under the name that a backup works in stays as it is."""
    notes = tmp_path / "backup.unfinished" / "notes"
    notes.parent.mkdir()
    notes.touch()
    refusal = command("backup", str(tmp_path / "backup"), "--data-dir", str(data))
    assert refusal.returncode == 1
    assert "holds notes, which no backup made" in refusal.stderr
    assert notes.exists()
