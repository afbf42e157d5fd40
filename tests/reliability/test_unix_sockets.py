"""A server on a unix socket: it takes no other server's place, and leaves none behind."""

import socket
import stat
from pathlib import Path

import grpc
import pytest

from harness import Stubs
from reliability.processes import ServerProcess, command, init


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the socket is; short enough for a socket."""
    return tmp_path / "kb.sock"


@pytest.fixture
def token(tmp_path: Path) -> str:
    """An installation's first token."""
    return init(tmp_path / "first")["token"]


def _start(data: Path, place: Path, *flags: str, wrapper: tuple[str, ...] = ()) -> ServerProcess:
    server = ServerProcess(data, wrapper=wrapper, flags=("--listen", f"unix:{place}", *flags))
    server.wait_until_serving()
    return server


def _answers(place: Path, token: str) -> bool:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix:{place}", options=options) as channel:
        return Stubs(channel, token).who_am_i().valid


def test_a_second_server_is_refused_and_the_first_goes_on(
    tmp_path: Path, place: Path, token: str
) -> None:
    """In one line; the socket stays the first server's, and goes with it."""
    init(tmp_path / "second")
    first = _start(tmp_path / "first", place)
    try:
        second = command(
            "serve", "--data-dir", str(tmp_path / "second"), "--listen", f"unix:{place}"
        )
        assert second.returncode == 1
        assert second.stderr == (
            f"keybearer-server: cannot listen on unix:{place}: another server listens there; stop "
            "that one first\n"
        )
        assert _answers(place, token)
        assert first.stop() == 0
    finally:
        first.close()
    assert (
        list(tmp_path.iterdir()) == [tmp_path / "second", tmp_path / "first"] or not place.exists()
    )


def test_a_socket_that_a_killed_server_left_is_replaced(
    tmp_path: Path, place: Path, token: str
) -> None:
    """Nobody has to remove it by hand."""
    first = _start(tmp_path / "first", place)
    first.kill()
    assert place.exists()
    again = _start(tmp_path / "first", place)
    try:
        assert _answers(place, token)
    finally:
        first.close()
        again.close()


def test_a_server_that_ends_leaves_the_socket_of_another(
    tmp_path: Path, place: Path, token: str
) -> None:
    """Somebody removed the first one's by hand, and a second server took the place."""
    second_token = init(tmp_path / "second")["token"]
    first = _start(tmp_path / "first", place)
    place.unlink()
    second = _start(tmp_path / "second", place)
    try:
        assert first.stop() == 0
        assert _answers(place, second_token)
    finally:
        first.close()
        second.close()


def test_a_socket_that_ends_in_order_is_removed_with_everything(
    tmp_path: Path, place: Path, token: str
) -> None:
    """Nothing stays in its directory."""
    directory = tmp_path / "run"
    directory.mkdir()
    server = _start(tmp_path / "first", directory / "kb.sock")
    try:
        assert list(directory.iterdir()) == [directory / "kb.sock"]
        assert server.stop() == 0
        assert list(directory.iterdir()) == []
    finally:
        server.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path, place: Path, token: str) -> None:
    """A mistyped path must not cost anybody a file."""
    place.write_text("precious")
    done = command("serve", "--data-dir", str(tmp_path / "first"), "--listen", f"unix:{place}")
    assert done.returncode == 1
    assert "a file that is no socket is there" in done.stderr
    assert place.read_text() == "precious"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path, token: str) -> None:
    """One line, and no traceback."""
    place = tmp_path / "nowhere" / "kb.sock"
    done = command("serve", "--data-dir", str(tmp_path / "first"), "--listen", f"unix:{place}")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"cannot listen on unix:{place}" in done.stderr


@pytest.mark.parametrize(("flags", "mode"), [((), 0o600), (("--unix-socket-mode", "660"), 0o660)])
def test_the_mode_of_the_socket_is_set(
    tmp_path: Path, place: Path, token: str, flags: tuple[str, ...], mode: int
) -> None:
    """The server's user alone by default, whatever the umask; a group when that is asked for."""
    server = _start(
        tmp_path / "first", place, *flags, wrapper=("sh", "-c", 'umask 0; exec "$@"', "-")
    )
    try:
        found = place.stat().st_mode
        assert stat.S_ISSOCK(found)
        assert stat.S_IMODE(found) == mode
        assert _answers(place, token)
    finally:
        server.close()


def test_a_server_that_does_not_accept_is_alive(tmp_path: Path, place: Path, token: str) -> None:
    """Its queue is full; it is busy and not gone."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(place))
        busy.listen(0)
        waiting.connect(str(place))
        done = command("serve", "--data-dir", str(tmp_path / "first"), "--listen", f"unix:{place}")
    assert done.returncode == 1
    assert "another server listens there" in done.stderr
