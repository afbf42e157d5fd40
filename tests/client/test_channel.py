"""Channels: TLS by default, whatever the environment says."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keybearer import AsyncKeybearerClient, KeybearerClient, TLSConfig, errors
from keybearer.testing import FakeKeybearer


@dataclass(frozen=True)
class Pair:
    """A self-signed certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


def _pair(name: str) -> Pair:
    """Return a self-signed certificate for a name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Pair(pem, private)


@pytest.fixture(scope="module")
def server_pair() -> Pair:
    """The certificate of the server."""
    return _pair("keybearer.example.com")


@pytest.fixture
def secure_keybearer(server_pair: Pair) -> Iterator[FakeKeybearer]:
    """A fake keybearer with TLS."""
    credentials = grpc.ssl_server_credentials([(server_pair.key, server_pair.certificate)])
    with FakeKeybearer(credentials) as keybearer:
        yield keybearer


def _who_am_i(keybearer: FakeKeybearer, tls: Any) -> str:
    with KeybearerClient(
        keybearer.address, token=keybearer.validator_token, tls=tls, timeout=3
    ) as client:
        return client.who_am_i().identity.key_name


def test_the_server_must_be_who_it_says(secure_keybearer: FakeKeybearer, server_pair: Pair) -> None:
    """A connection needs a trusted authority and the right name."""
    right = TLSConfig(ca=server_pair.certificate, server_name="keybearer.example.com")
    assert _who_am_i(secure_keybearer, right) == "validator"
    wrong = [
        True,
        False,
        TLSConfig(ca=server_pair.certificate),
        TLSConfig(ca=server_pair.certificate, server_name="other.example.com"),
        TLSConfig(server_name="keybearer.example.com"),
    ]
    for tls in wrong:
        with pytest.raises(errors.UnavailableError):
            _who_am_i(secure_keybearer, tls)


def test_the_client_for_asyncio_speaks_tls_too(
    secure_keybearer: FakeKeybearer, server_pair: Pair
) -> None:
    """The asynchronous client takes the same TLS arguments."""

    async def run() -> str:
        tls = TLSConfig(ca=server_pair.certificate, server_name="keybearer.example.com")
        async with AsyncKeybearerClient(
            secure_keybearer.address, token=secure_keybearer.validator_token, tls=tls
        ) as client:
            return (await client.who_am_i()).identity.key_name

    assert asyncio.run(run()) == "validator"


def test_a_client_can_show_a_certificate_of_its_own(server_pair: Pair, tmp_path: Path) -> None:
    """A client presents its own certificate, read from files."""
    own = _pair("client.example.com")
    credentials = grpc.ssl_server_credentials(
        [(server_pair.key, server_pair.certificate)],
        root_certificates=own.certificate,
        require_client_auth=True,
    )
    files = {"ca": server_pair.certificate, "cert": own.certificate, "key": own.key}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tls = TLSConfig.from_files(
        ca=tmp_path / "ca",
        cert=tmp_path / "cert",
        key=tmp_path / "key",
        server_name="keybearer.example.com",
    )
    with FakeKeybearer(credentials) as keybearer:
        assert _who_am_i(keybearer, tls) == "validator"
        without = TLSConfig(ca=server_pair.certificate, server_name="keybearer.example.com")
        with pytest.raises(errors.UnavailableError):
            _who_am_i(keybearer, without)


def test_tls_is_what_a_client_does_unless_told_otherwise(fake_keybearer: FakeKeybearer) -> None:
    """A client without `tls=` does not connect to a plaintext port, also on loopback."""
    with (
        KeybearerClient(fake_keybearer.address, token="token", timeout=2) as client,
        pytest.raises(errors.UnavailableError),
    ):
        client.who_am_i()


@pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy", "https_proxy"])
def test_a_proxy_of_the_environment_is_not_used(
    variable: str, fake_keybearer: FakeKeybearer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy in the environment is ignored, because it would read every token."""
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert _who_am_i(fake_keybearer, tls=False) == "validator"
    with (
        KeybearerClient(
            fake_keybearer.address,
            token=fake_keybearer.validator_token,
            tls=False,
            timeout=2,
            options=(("grpc.enable_http_proxy", 1),),
        ) as client,
        pytest.raises(errors.UnavailableError),
    ):
        client.who_am_i()
