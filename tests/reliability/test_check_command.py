"""`check` and `audit verify` as processes: exit codes, progress, and being broken off."""

import shutil
import sys
from pathlib import Path

import pytest

from cliharness import Terminal
from keybearer._wire.enums import AuditAction, AuditActorType, AuditTargetType
from keybearer_service.container import open_container
from keybearer_service.domain.audit_event import Actor
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.offline.verification import CHAIN_BATCH
from keybearer_service.storage import dbapi
from keybearer_service.usecases.audit import AuditEntry
from reliability.processes import SERVER, answer, command, environment, init

EVENTS = 2 * CHAIN_BATCH + 2000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh installation."""
    data = tmp_path_factory.mktemp("check") / "data"
    init(data)
    return data


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be altered."""
    return Path(shutil.copytree(original, tmp_path / "data"))


def test_what_is_well_has_the_exit_code_0_and_a_head_to_note(data: Path) -> None:
    """The head of one command is one that the other expects."""
    checked = answer("check", "--data-dir", str(data))
    assert checked["findings"] == []
    assert checked["compared"] == {
        "installation": 1,
        "accounts": 1,
        "users": 1,
        "api_keys": 1,
        "peppers": 1,
    }
    verified = answer("audit", "verify", "--expect", checked["head"], "--data-dir", str(data))
    assert verified["head"] == checked["head"]
    assert answer("check", "--expect", verified["head"], "--data-dir", str(data))["findings"] == []


@pytest.mark.parametrize("arguments", [("check",), ("audit", "verify"), ("check", "--no-keys")])
def test_findings_have_the_exit_code_1(data: Path, arguments: tuple[str, ...]) -> None:
    """They are printed, one a line."""
    connection = dbapi.connect(str(data / "keybearer.db"), isolation_level=None)
    connection.execute("UPDATE audit_events SET peer = 'x' WHERE seq = 1")
    connection.execute("DELETE FROM changes")
    connection.close()
    done = command(*arguments, "--data-dir", str(data))
    assert done.returncode == 1, done
    finding = "the newest change is 0" if "--no-keys" in arguments else "event 1 was altered"
    assert finding in done.stdout


@pytest.mark.parametrize("arguments", [("check",), ("audit", "verify")])
def test_a_check_that_cannot_look_has_the_exit_code_2(
    data: Path, arguments: tuple[str, ...]
) -> None:
    """Without the audit key, without an installation, with something else than a head."""
    (data / "peppers" / "audit.key").unlink()
    for more in (
        ("--data-dir", str(data)),
        ("--data-dir", str(data / "nowhere")),
        ("--data-dir", str(data), "--expect", "5"),
    ):
        done = command(*arguments, *more)
        assert done.returncode == 2, done
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


def test_the_database_alone_can_be_checked(data: Path) -> None:
    """Without any key file, and the answer says what was not compared."""
    shutil.rmtree(data / "peppers")
    done = command("check", "--no-keys", "--data-dir", str(data))
    assert done.returncode == 0, done
    assert "Not compared without the key files: hashes and rows." in done.stdout
    assert (
        command("check", "--no-keys", "--expect", "1:00", "--data-dir", str(data)).returncode == 2
    )


@pytest.fixture(scope="module")
def long_log(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installation with many events."""
    data = Path(shutil.copytree(original, tmp_path_factory.mktemp("long") / "data"))
    container = open_container(DataDir(data), SystemClock(), SystemEntropy())
    entry = AuditEntry(
        time=container.clock.now(),
        account_id=container.installation.operator_account_id,
        actor=Actor(type=AuditActorType.ANONYMOUS),
        action=AuditAction.CALL_REFUSED,
        target_type=AuditTargetType.METHOD,
        target_id="/test",
    )
    with container.store.write() as tx:
        container.audit.write(tx, [entry] * EVENTS)
    container.close()
    return data


def _on_a_terminal(data: Path, *arguments: str) -> Terminal:
    line = [sys.executable, *SERVER, *arguments, "--data-dir", str(data)]
    return Terminal(line, environment(), data, pipe_stdout=True)


def test_progress_is_shown_on_a_terminal_and_nowhere_else(long_log: Path) -> None:
    """On standard error, so that a result in a pipe is the result alone."""
    with _on_a_terminal(long_log, "check", "--output", "json") as terminal:
        terminal.wait_for(f"of {EVENTS + 1:,} audit events")
        assert terminal.end() == 0
        assert "audit events" not in terminal.piped()
    done = command("check", "--data-dir", str(long_log))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [("check",), ("audit", "verify")])
def test_a_check_is_broken_off_without_a_traceback(
    long_log: Path, arguments: tuple[str, ...]
) -> None:
    """Ctrl-C ends it with an exit code that is neither "well" nor "findings"."""
    with _on_a_terminal(long_log, *arguments) as terminal:
        terminal.wait_for(f"of {EVENTS + 1:,} audit events")
        terminal.type("\x03")
        assert terminal.end() not in (0, 1)
        assert "Traceback" not in terminal.shown
        assert terminal.piped() == ""
