"""Commands that root runs beside a server of another user, and the other way round."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from harness import Stubs
from keybearer.v1 import api_key_service_pb2
from reliability.processes import ServerProcess, answer, command, init

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for two users")

USER = 10001
COULD_NOT_LOOK = 2
"""The exit code of `check` where it found out nothing."""
AS_USER = ("-m", "reliability.as_user", str(USER))


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may pass through, as pytest's own are not."""
    path = Path(mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data(place: Path) -> Path:
    """An empty data directory of the other user."""
    path = place / "data"
    path.mkdir(mode=0o700)
    os.chown(path, USER, USER)
    return path


@pytest.fixture
def ids(data: Path) -> dict[str, str]:
    """An installation of the other user."""
    made = init(data)
    _give(data)
    return made


@pytest.fixture
def server(data: Path, ids: dict[str, str]) -> Iterator[ServerProcess]:
    """A server that runs as the other user."""
    process = ServerProcess(data, entry=AS_USER)
    try:
        process.wait_until_serving()
        yield process
    finally:
        process.close()


def _give(data: Path) -> None:
    for path in (data, *data.rglob("*")):
        os.chown(path, USER, USER)


def _owners(data: Path) -> dict[str, int]:
    return {str(path.relative_to(data)): path.stat().st_uid for path in data.rglob("*")}


def _serves(data: Path, token: str) -> bool:
    process = ServerProcess(data, entry=AS_USER)
    try:
        return process.stubs(token).who_am_i().valid
    finally:
        process.close()


def _rotate(admin: Stubs, key_id: str) -> str:
    return admin.keys.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(id=key_id)).token


def test_a_pepper_that_root_adds_is_used_by_the_server(
    data: Path, ids: dict[str, str], server: ServerProcess
) -> None:
    """Creating and rotating go on, and so does a restart."""
    admin = server.stubs(ids["token"])
    before = admin.create_key()
    pepper = answer("pepper", "add", "--data-dir", str(data))["id"]
    assert set(_owners(data).values()) == {USER}
    assert admin.outcome(admin.create_key().token) == "VALID"
    assert admin.outcome(_rotate(admin, before.api_key.id)) == "VALID"
    live = answer("pepper", "list", "--data-dir", str(data))["peppers"]
    assert {one["id"]: one["live_secrets"] for one in live}[pepper] == 2
    assert server.stop() == 0
    assert _serves(data, ids["token"])


def test_every_command_of_root_leaves_the_directory_to_its_owner(
    data: Path, ids: dict[str, str], place: Path
) -> None:
    """Without a server too, when the command makes the files beside the database."""
    where = ("--data-dir", str(data))
    answer("admin-token", *where, "--email", "glass@example.com")
    answer("check", *where)
    answer("backup", str(place / "backup"), *where)
    answer("pepper", "add", *where)
    assert command("audit", "export", *where).returncode == 0
    assert set(_owners(data).values()) == {USER}


@pytest.mark.parametrize("flags", [(), ("--workers", "2", "--http-listen", "127.0.0.1:0")])
def test_a_server_that_root_ran_once_leaves_the_directory_to_its_owner(
    data: Path, ids: dict[str, str], flags: tuple[str, ...]
) -> None:
    """The locks and the directory of metrics too."""
    process = ServerProcess(data, flags=flags)
    try:
        process.wait_until_serving()
        assert process.stop() == 0
    finally:
        process.close()
    foreign = {name for name, uid in _owners(data).items() if uid != USER}
    assert {name for name in foreign if not name.startswith("metrics/")} == set()
    assert answer("check", "--data-dir", str(data))["findings"] == []
    assert _serves(data, ids["token"])


def test_an_installation_that_root_makes_belongs_to_the_owner_of_the_directory(data: Path) -> None:
    """`init` into a directory that was prepared for the server's user."""
    made = answer(
        "init", "--data-dir", str(data), "--account", "a", "--admin-email", "root@example.com"
    )
    assert set(_owners(data).values()) == {USER}
    assert _serves(data, made["token"])


def test_a_backup_that_root_restores_belongs_to_the_owner_of_the_directory(
    data: Path, ids: dict[str, str], place: Path
) -> None:
    """The key files and the database alike."""
    answer("backup", str(place / "backup"), "--data-dir", str(data))
    restored = place / "restored"
    restored.mkdir(mode=0o700)
    os.chown(restored, USER, USER)
    answer("restore", str(place / "backup"), "--data-dir", str(restored))
    assert set(_owners(restored).values()) == {USER}
    assert _serves(restored, ids["token"])


def test_a_server_goes_on_with_its_pepper_when_it_cannot_read_a_new_one(
    data: Path, ids: dict[str, str], server: ServerProcess
) -> None:
    """It says so once, after a restart too, and `check` finds the file."""
    pepper = answer("pepper", "add", "--data-dir", str(data))["id"]
    file = data / "peppers" / f"{pepper}.pepper"
    os.chown(file, 0, 0)
    admin = server.stubs(ids["token"])
    for _ in range(3):
        assert admin.outcome(admin.create_key().token) == "VALID"
    told = [one for one in server.events if one["event"] == "pepper_unreadable"]
    assert [one["pepper_id"] for one in told] == [pepper]
    checked = command("check", "--data-dir", str(data), "--output", "json")
    assert checked.returncode == 1
    [finding] = json.loads(checked.stdout)["findings"]
    assert finding.startswith(f"peppers/{pepper}.pepper: belongs to root (uid 0)")
    assert finding.endswith(f"run: chown {USER}:{USER} {file}")
    assert server.stop() == 0
    assert _serves(data, ids["token"])


@pytest.mark.parametrize(
    "words",
    [
        ("pepper", "add"),
        ("check",),
        ("admin-token", "--email", "root@example.com"),
        ("serve", "--listen", "127.0.0.1:0"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_of_a_user_who_does_not_own_the_directory_is_refused(
    place: Path, words: tuple[str, ...]
) -> None:
    """In one line that names the owner, before anything is written."""
    init(place / "roots")
    (place / "roots").chmod(0o777)  # what protects the files is their own mode
    before = _owners(place / "roots")
    done = command(*words, "--data-dir", str(place / "roots"), entry=AS_USER)
    assert done.returncode == (COULD_NOT_LOOK if words == ("check",) else 1)
    assert len(done.stderr.splitlines()) == 1
    assert "which belongs to root (uid 0); run the command as that user" in done.stderr
    assert _owners(place / "roots") == before


def test_a_directory_that_cannot_be_looked_into_is_refused_by_its_name(place: Path) -> None:
    """In one line too."""
    init(place / "roots")
    done = command("check", "--data-dir", str(place / "roots"), entry=AS_USER)
    assert done.returncode == COULD_NOT_LOOK
    assert done.stderr.startswith(f"keybearer-server: this user may not write {place / 'roots'},")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["", "keybearer.db"])
def test_a_directory_that_is_read_only_is_said_to_be_that(
    data: Path, ids: dict[str, str], name: str
) -> None:
    """It is not locked by another process."""
    (data / name).chmod(0o500)
    for code, words in (
        (COULD_NOT_LOOK, ("check",)),
        (1, ("serve", "--listen", "127.0.0.1:0")),
    ):
        done = command(*words, "--data-dir", str(data), entry=AS_USER)
        assert done.returncode == code
        assert done.stderr == (
            f"keybearer-server: {data / name} is read-only; run: chmod u+w {data / name}\n"
        )


@pytest.mark.parametrize("name", ["keybearer.db", "admin-token"])
def test_files_that_are_open_to_everybody_are_found(
    data: Path, ids: dict[str, str], name: str
) -> None:
    """Key files stop the start; the others are for `check` to find."""
    (data / name).touch()
    _give(data)
    (data / name).chmod(0o644)
    done = command("check", "--data-dir", str(data))
    assert done.returncode == 1
    assert f"{name}: is open to everybody; run: chmod o-rwx {data / name}" in done.stdout


def test_links_in_the_directory_lead_root_nowhere(data: Path, place: Path) -> None:
    """The owner of the directory cannot have a file of root's given to it through a link."""
    treasure = place / "treasure"
    treasure.mkdir(mode=0o700)
    (treasure / "secret").touch(mode=0o600)
    (data / "peppers.new").symlink_to(treasure)
    (data / "lock").symlink_to(treasure / "secret")
    done = command(
        "init", "--data-dir", str(data), "--account", "a", "--admin-email", "root@example.com"
    )
    assert "Traceback" not in done.stderr
    assert {path.lstat().st_uid for path in (treasure, treasure / "secret")} == {0}
