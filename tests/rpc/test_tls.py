"""TLS, mutual TLS, and certificates that are replaced while the server runs."""

import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from certificates import Authority
from fakes import FakeClock, SeededEntropy
from harness import Stubs, initialise, make_app
from keybearer_service.app import App
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
        app = make_app(data_dir, clock, entropy, listener=listener)
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


def test_a_renewal_that_is_half_done_changes_nothing(
    serve_tls: Callable[[TlsFiles], tuple[int, str]],
    authority: Authority,
) -> None:
    """A certificate without its key is logged once, however many handshakes meet it."""
    certificate, key = authority.issue("server")
    port, _ = serve_tls(TlsFiles(certificate=certificate, key=key))
    shown = ssl.get_server_certificate(("127.0.0.1", port))
    new_certificate, new_key = authority.issue("renewed")
    new_certificate.replace(certificate)
    with capture_logs() as logged:
        seen = {ssl.get_server_certificate(("127.0.0.1", port)) for _ in range(3)}
        assert seen == {shown}
        new_key.replace(key)
        assert ssl.get_server_certificate(("127.0.0.1", port)) != shown
    assert [one["event"] for one in logged] == ["tls_files_unusable", "tls_files_reloaded"]
    assert "is not the key of" in logged[0]["cause"]


WRONG_FILES: dict[str, Callable[[Path, Path, Path], str]] = {
    "no certificate in its file": lambda certificate, _key, _ca: _write(
        certificate, "nothing", "holds no PEM certificate"
    ),
    "a certificate that is cut off": lambda certificate, _key, _ca: _write(
        certificate, certificate.read_text()[:200], "holds no PEM certificate"
    ),
    "no key in its file": lambda _certificate, key, _ca: _write(
        key, "nothing", "holds no PEM private key"
    ),
    "a key that is cut off": lambda _certificate, key, _ca: _write(
        key, key.read_text()[:60], "holds no PEM private key"
    ),
    "a key of another certificate": lambda _certificate, key, _ca: _write(
        key, Authority(key.parent, "other").issue("other")[1].read_text(), "is not the key of"
    ),
    "a key with a passphrase": lambda _certificate, key, _ca: _write(
        key, _encrypted(key), "is encrypted; give a key without a passphrase"
    ),
    "no authority in its file": lambda _certificate, _key, ca: _write(
        ca, "nothing", "holds no PEM certificate"
    ),
    "an authority that is a key": lambda _certificate, key, ca: _write(
        ca, key.read_text(), "holds no PEM certificate"
    ),
    "a certificate that is not there": lambda certificate, _key, _ca: _remove(certificate),
    "a key that is not there": lambda _certificate, key, _ca: _remove(key),
    "an authority that is not there": lambda _certificate, _key, ca: _remove(ca),
}
"""Each spoils one of the files and returns what must be said."""


def _write(path: Path, text: str, said: str) -> str:
    path.write_text(text)
    return f"{path} {said}"


def _remove(path: Path) -> str:
    path.unlink()
    return f"{path}: No such file or directory"


def _encrypted(key: Path) -> str:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_refused_by_name_with_what_is_wrong(
    serve_tls: Callable[[TlsFiles], tuple[int, str]], authority: Authority, name: str
) -> None:
    """At the start, and not as a port in use or with a question on the terminal."""
    certificate, key = authority.issue("server")
    said = WRONG_FILES[name](certificate, key, authority.certificate)
    with pytest.raises(TlsError) as refusal:
        serve_tls(TlsFiles(certificate=certificate, key=key, client_ca=authority.certificate))
    assert str(refusal.value).startswith(said)
