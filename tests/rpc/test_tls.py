"""TLS, mutual TLS, and certificates that are replaced while the server runs."""

import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from certificates import Authority
from fakes import FakeClock, SeededEntropy
from harness import Stubs, initialise
from keybearer_service.app import App, AppConfig
from keybearer_service.net.addresses import Address, Listener
from keybearer_service.net.tls import TlsError, TlsFiles


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that everybody in the test knows."""
    return Authority(tmp_path)


@pytest.fixture
def serve_tls(
    tmp_path: Path, clock: FakeClock, entropy: SeededEntropy
) -> Iterator[Callable[[TlsFiles], tuple[int, str]]]:
    """Start a server with the given files; answers its port and the admin token."""
    apps: list[App] = []

    def serve(files: TlsFiles) -> tuple[int, str]:
        data_dir, created = initialise(tmp_path / "data", clock, entropy)
        listener = Listener(address=Address("127.0.0.1", 0), tls=files)
        app = App(
            AppConfig(data_dir=data_dir, listener=listener),
            on_fatal=lambda: None,
            clock=clock,
            entropy=entropy,
        )
        apps.append(app)
        app.start()
        return app.port, created.issued.token

    yield serve
    for app in apps:
        app.stop(grace_s=0)


@contextmanager
def _calling(port: int, token: str, credentials: grpc.ChannelCredentials) -> Iterator[Stubs]:
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        yield Stubs(channel, token)


def _trusting(
    authority: Authority, pair: tuple[Path, Path] | None = None
) -> grpc.ChannelCredentials:
    certificate, key = (None, None) if pair is None else (one.read_bytes() for one in pair)
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, certificate)


def test_a_client_that_knows_the_authority_is_served(
    serve_tls: Callable[[TlsFiles], tuple[int, str]], authority: Authority
) -> None:
    """TLS carries a call."""
    certificate, key = authority.issue("server")
    port, token = serve_tls(TlsFiles(certificate=certificate, key=key))
    with _calling(port, token, _trusting(authority)) as stubs:
        assert stubs.who_am_i().valid


def test_a_client_without_a_certificate_is_turned_away_from_mutual_tls(
    serve_tls: Callable[[TlsFiles], tuple[int, str]], authority: Authority
) -> None:
    """With a client authority, only those who show a certificate of it get through."""
    certificate, key = authority.issue("server")
    port, token = serve_tls(
        TlsFiles(certificate=certificate, key=key, client_ca=authority.certificate)
    )
    with (
        _calling(port, token, _trusting(authority)) as stubs,
        pytest.raises(grpc.RpcError) as refusal,
    ):
        stubs.who_am_i()
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    with _calling(port, token, _trusting(authority, authority.issue("client"))) as stubs:
        assert stubs.who_am_i().valid


def test_new_connections_get_the_replaced_certificate(
    serve_tls: Callable[[TlsFiles], tuple[int, str]], authority: Authority, tmp_path: Path
) -> None:
    """Replacing the files is enough; nobody restarts the server."""
    certificate, key = authority.issue("server")
    port, _ = serve_tls(TlsFiles(certificate=certificate, key=key))
    shown = ssl.get_server_certificate(("127.0.0.1", port))

    for old, new in zip((certificate, key), authority.issue("renewed"), strict=True):
        shutil.copyfile(new, tmp_path / "incoming")
        (tmp_path / "incoming").replace(old)

    assert ssl.get_server_certificate(("127.0.0.1", port)) not in ("", shown)


def test_a_certificate_that_is_none_is_named(
    serve_tls: Callable[[TlsFiles], tuple[int, str]], authority: Authority, tmp_path: Path
) -> None:
    """A wrong file is refused at the start, by its name."""
    _, key = authority.issue("server")
    wrong = tmp_path / "wrong.crt"
    wrong.write_text("nothing")
    with pytest.raises(TlsError, match=r"wrong\.crt"):
        serve_tls(TlsFiles(certificate=wrong, key=key))
