"""`healthcheck`, as a container runs it: with the server's own settings and nothing else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from certificates import Authority
from reliability.processes import ServerProcess, command, init

NAME = "keys.example.com"
"""In the certificates, and nowhere in the name service."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An installation."""
    init(tmp_path / "data")
    return tmp_path / "data"


@contextmanager
def _serving(data: Path, *flags: str) -> Iterator[ServerProcess]:
    server = ServerProcess(data, flags=flags)
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.close()


def _tls(authority: Authority, *, mutual: bool = False) -> dict[str, str]:
    certificate, key = authority.issue("server", NAME)
    files = {"KEYBEARER_TLS_CERT": str(certificate), "KEYBEARER_TLS_KEY": str(key)}
    return files | ({"KEYBEARER_TLS_CLIENT_CA": str(authority.certificate)} if mutual else {})


def _flags(variables: dict[str, str]) -> list[str]:
    return [
        word
        for name, value in variables.items()
        for word in (f"--{name.removeprefix('KEYBEARER_').lower().replace('_', '-')}", value)
    ]


def _check(address: str, *words: str, **variables: str) -> tuple[int, str]:
    done = command("healthcheck", *words, KEYBEARER_LISTEN=address, **variables)
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("mutual", [False, True])
def test_a_server_with_tls_is_found_serving_by_its_own_settings(
    data: Path, tmp_path: Path, *, mutual: bool
) -> None:
    """Its certificate is the one to expect, whatever name is in it, and the one to show."""
    variables = _tls(Authority(tmp_path), mutual=mutual)
    with _serving(data, *_flags(variables)) as server:
        assert _check(server.address, **variables) == (0, "SERVING")


def test_the_servers_file_of_settings_is_enough(data: Path, tmp_path: Path) -> None:
    """The same in a TOML file."""
    variables = _tls(Authority(tmp_path))
    with _serving(data, *_flags(variables)) as server:
        file = tmp_path / "keybearer.toml"
        settings = {name.removeprefix("KEYBEARER_").lower(): one for name, one in variables.items()}
        settings["listen"] = server.address
        file.write_text("".join(f"{name} = '{value}'\n" for name, value in settings.items()))
        done = command("healthcheck", KEYBEARER_CONFIG=str(file))
        assert (done.returncode, done.stdout) == (0, "SERVING\n")


def test_an_authority_may_be_named_by_its_variable(data: Path, tmp_path: Path) -> None:
    """It names the server then, and another one's does not."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    variables = _tls(authority)
    with _serving(data, *_flags(variables)) as server:
        trusted = {"KEYBEARER_TLS_CA": str(authority.certificate), "KEYBEARER_TLS_NAME": NAME}
        assert _check(server.address, **trusted) == (0, "SERVING")
        trusted["KEYBEARER_TLS_CA"] = str(stranger.certificate)
        assert _check(server.address, **trusted) == (1, "UNAVAILABLE")


def test_a_certificate_to_show_may_be_given(data: Path, tmp_path: Path) -> None:
    """Where the server's own is not one of a client."""
    authority, clients = Authority(tmp_path), Authority(tmp_path, "clients")
    variables = _tls(authority) | {"KEYBEARER_TLS_CLIENT_CA": str(clients.certificate)}
    certificate, key = clients.issue("client")
    with _serving(data, *_flags(variables)) as server:
        assert _check(server.address, **variables) == (1, "UNAVAILABLE")
        shown = ("--tls-cert", str(certificate), "--tls-key", str(key))
        assert _check(server.address, *shown, **variables) == (0, "SERVING")


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy", "all_proxy"])
def test_no_proxy_stands_in_between(data: Path, variable: str) -> None:
    """The environment of a container may name one for everybody."""
    with _serving(data) as server:
        proxies = {variable: "http://127.0.0.1:9", "no_proxy": ""}
        assert _check(server.address, **proxies) == (0, "SERVING")


def test_a_server_on_every_interface_is_asked_on_loopback(data: Path) -> None:
    """As the image's settings say."""
    port = "0.0.0.0:0"
    server = ServerProcess(data, flags=("--insecure", "--listen", port))
    try:
        taken = server.address.rpartition(":")[2]
        assert _check(f"0.0.0.0:{taken}") == (0, "SERVING")
    finally:
        server.close()


def test_a_server_on_a_socket_is_asked_there(data: Path, tmp_path: Path) -> None:
    """The same address as the server's."""
    place = f"unix:{os.path.relpath(tmp_path)}/kb.sock"
    with _serving(data, "--listen", place):
        assert _check(place) == (0, "SERVING")


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("127.0.0.1:1", "UNAVAILABLE", "127.0.0.1:1: "),
        ("127.0.0.1:0", "", "listen: port 0 is any free one"),
        ("::1:50051", "", "without brackets"),
    ],
)
def test_a_server_that_cannot_be_asked_is_not_well(address: str, status: str, said: str) -> None:
    """Exit code 1, and the reason on standard error in one line."""
    done = command("healthcheck", KEYBEARER_LISTEN=address)
    assert done.returncode == 1
    assert done.stdout.strip() == status
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """One line, and no traceback."""
    done = command("healthcheck", KEYBEARER_TLS_CA=str(tmp_path / "nothing.pem"))
    assert done.returncode == 1
    assert done.stderr == (
        f"keybearer-server: {tmp_path / 'nothing.pem'}: No such file or directory\n"
    )
