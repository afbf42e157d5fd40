"""The command with a real server that uses mutual TLS."""

import datetime as dt
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cliharness import Cli
from harness import Service, initialise, make_app
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.net.addresses import Address, Listener
from keybearer_service.net.tls import TlsFiles


@dataclass(frozen=True)
class Secured:
    """The command, and the options with which it connects."""

    cli: Cli
    ca: tuple[str, ...]
    client: tuple[str, ...]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A service on a loopback port, behind mutual TLS, as `keys.example.com`."""
    path = tmp_path_factory.mktemp("tls")
    server_cert, server_key = _pair(path, "keys.example.com")
    client_cert, client_key = _pair(path, "operator.example.com")
    clock, entropy = SystemClock(), SystemEntropy()
    data_dir, created = initialise(path / "data", clock, entropy)
    files = TlsFiles(certificate=server_cert, key=server_key, client_ca=client_cert)
    app = make_app(
        data_dir, clock, entropy, listener=Listener(address=Address("127.0.0.1", 0), tls=files)
    )
    app.start()
    service = Service(
        app=app,
        data_dir=data_dir,
        admin_token=created.issued.token,
        account_id=created.account.id,
        admin_user_id=created.user.id,
        admin_key_id=created.issued.key.id,
    )
    try:
        yield Secured(
            cli=Cli(service, path / "here"),
            ca=("--ca", str(server_cert)),
            client=("--client-cert", str(client_cert), "--client-key", str(client_key)),
        )
    finally:
        service.close()


def _pair(path: Path, name: str) -> tuple[Path, Path]:
    """Write a certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = path / f"{name}.pem", path / f"{name}.key"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_path, key_path


def test_a_ca_makes_it_tls_on_loopback_too(secured: Secured) -> None:
    """`--ca` makes the connection TLS, also on loopback."""
    answer = secured.cli("whoami", *secured.ca, *secured.client)
    assert (answer.code, answer.err) == (0, "")


def test_the_server_may_be_named(secured: Secured) -> None:
    """`--server-name` replaces the name of the address."""
    named = ("--server-name", "keys.example.com")
    assert secured.cli("whoami", *secured.ca, *secured.client, *named).code == 0
    wrong = ("--server-name", "other.example.com", "--timeout", "1")
    assert secured.cli("whoami", *secured.ca, *secured.client, *wrong).code == 4


def test_a_server_that_nobody_vouches_for_is_not_spoken_to(secured: Secured) -> None:
    """A server without a trusted authority is rejected."""
    address = f"https://{secured.cli.service.address}"
    answer = secured.cli.process("whoami", "--address", address, "--timeout", "1")
    assert (answer.code, "(TLS)" in answer.err, answer.err.count("\n")) == (4, True, 1)


def test_a_client_without_its_certificate_gets_nowhere(secured: Secured) -> None:
    """A client without its certificate gets one line that names the transport."""
    answer = secured.cli("whoami", *secured.ca, "--timeout", "1")
    assert (answer.code, answer.err.count("\n")) == (4, 1)


def test_plaintext_to_a_tls_port_says_that_it_was_plaintext(secured: Secured) -> None:
    """The error of plaintext to a TLS port says that it was plaintext."""
    answer = secured.cli("whoami", "--timeout", "1")
    assert (answer.code, "(plaintext)" in answer.err) == (4, True)
