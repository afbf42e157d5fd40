"""What keeps an installation small: quotas, pruning, and old peppers, on a real server."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness import refused
from reliability.processes import answer, command, environment, init, serving

CREATE_KEY = ("keys", "create", "k", "--role", "developer", "--ttl", "1d", "--plaintext")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Where the installation lies."""
    return tmp_path / "data"


@pytest.fixture
def ids(data: Path) -> dict[str, str]:
    """The installation's ids and first token."""
    return init(data)


def test_the_quotas_are_those_of_the_settings(data: Path, ids: dict[str, str]) -> None:
    """Lowered below what is there, everything but creating goes on; 0 ends the limit."""
    with serving(data) as server:
        for _ in range(3):
            token = server.stubs(ids["token"]).create_key().token
    flags = ("--max-keys-per-account", "2", "--max-users-per-account", "1")
    with serving(data, flags=flags) as server:
        admin = server.stubs(ids["token"])
        assert refused(admin.create_key).metadata == {"quota": "max_keys_per_account", "limit": "2"}
        refusal = refused(lambda: admin.create_user("second@example.com"))
        assert refusal.metadata == {"quota": "max_users_per_account", "limit": "1"}
        assert admin.outcome(token) == "VALID"
        glass = answer("admin-token", "--data-dir", str(data), "--email", "admin@example.com")
        assert server.stubs(glass["token"]).who_am_i().valid
    flags = ("--max-keys-per-account", "0", "--max-users-per-account", "0")
    with serving(data, flags=flags) as server:
        admin = server.stubs(ids["token"])
        assert admin.create_key().token
        assert admin.create_user("second@example.com").id


@pytest.fixture
def new_pepper(data: Path, ids: dict[str, str]) -> Path:
    """The file of a second pepper."""
    assert ids
    pepper = answer("pepper", "add", "--data-dir", str(data))["id"]
    return data / "peppers" / f"{pepper}.pepper"


def test_a_restart_goes_on_without_a_pepper_that_nothing_needs(
    data: Path, ids: dict[str, str], new_pepper: Path
) -> None:
    """The log names the file and what to do; keys are issued under the pepper before."""
    new_pepper.chmod(0o644)
    with serving(data) as server:
        admin = server.stubs(ids["token"])
        assert admin.outcome(admin.create_key().token) == "VALID"
        (told,) = [one for one in server.events if one["event"] == "pepper_unreadable"]
    assert told["pepper_id"] == new_pepper.stem
    assert f"run: chmod 600 {new_pepper}" in told["cause"]


def test_a_restart_without_a_pepper_that_live_secrets_need_is_refused(
    data: Path, ids: dict[str, str], new_pepper: Path
) -> None:
    """A server that could not judge some of its keys does not begin to serve."""
    with serving(data) as server:
        server.stubs(ids["token"]).create_key()
    new_pepper.chmod(0o644)
    done = command("serve", "--data-dir", str(data), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"run: chmod 600 {new_pepper}; 1 live secrets need it" in done.stderr


def test_the_command_says_that_waiting_does_not_help(data: Path, ids: dict[str, str]) -> None:
    """Exit code 1, not 4: a script that tries again later would try for ever."""
    with serving(data, flags=("--max-keys-per-account", "1")) as server:
        done = subprocess.run(
            [sys.executable, "-m", "keybearer.cli", *CREATE_KEY],
            env=environment(KEYBEARER_ADDRESS=server.address, KEYBEARER_TOKEN=ids["token"]),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("keybearer: QUOTA_EXCEEDED: max_keys_per_account: ")
    assert "try again" not in done.stderr
