"""The connection of a command: TLS, except on loopback and where plaintext is requested."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from keybearer._client.channel import TLSConfig
from keybearer._wire.peer import is_loopback
from keybearer.cli.refusals import usage

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens by default."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The address and the TLS settings of a client."""

    address: str
    tls: bool | TLSConfig

    def __str__(self) -> str:
        return f"{self.address} ({'TLS' if self.tls else 'plaintext'})"


def settle(
    address: str,
    *,
    plaintext: bool,
    ca: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    server_name: str | None,
) -> Connection:
    """Return the connection for an address and its settings.

    The default is TLS. Loopback and unix sockets use plaintext unless `https://` or a TLS setting
    asks for TLS: a server listens there in plaintext by default, and nobody else can read it.

    Args:
        address: `host:port`, `https://host[:port]`, `http://host[:port]` or `unix:/path`.
        plaintext: Whether to use plaintext for every address.
        ca: The authorities that may sign the server's certificate; None means the system's.
        client_cert: The certificate of the caller, for mutual TLS.
        client_key: The private key of `client_cert`.
        server_name: The name in the server's certificate.

    Raises:
        Refusal: The settings contradict each other, or a file cannot be read.
    """
    scheme, target, local = _parse(address)
    if (client_cert is None) != (client_key is None):
        raise usage("--client-cert and --client-key: give both or neither")
    settings = {"--ca": ca, "--client-cert": client_cert, "--server-name": server_name}
    demanding = [name for name, value in settings.items() if value is not None]
    if scheme == "https":
        demanding.append("https://")
    if demanding and (plaintext or scheme == "http"):
        asked = "--plaintext" if plaintext else "http://"
        raise usage(f"{asked} contradicts {demanding[0]}: give one of them")
    if scheme == "http" and not plaintext and not local:
        raise usage(
            f"{address} would send tokens in plain text over a network: write https://, or add "
            "--plaintext if that network is trusted as a whole"
        )
    if not demanding and (plaintext or local):
        return Connection(address=target, tls=False)
    if not demanding:
        return Connection(address=target, tls=True)
    try:
        config = TLSConfig.from_files(
            ca=ca, cert=client_cert, key=client_key, server_name=server_name
        )
    except OSError as error:
        raise usage(f"{error.filename}: {error.strerror}") from None
    for name, path, pem in (("--ca", ca, config.ca), ("--client-cert", client_cert, config.cert)):
        if pem is not None and b"-----BEGIN CERTIFICATE-----" not in pem:
            raise usage(f"{name}: {path} holds no PEM certificate")
    return Connection(address=target, tls=config)


def _parse(address: str) -> tuple[str, str, bool]:
    """Return the scheme or "", the target for gRPC, and whether the target is on this machine."""
    refusal = usage(f"--address: {address!r} is not host:port, https://host:port or unix:/path")
    if address.startswith("unix:"):
        return "", address, True
    scheme, separator, _ = address.partition("://")
    try:
        parts = urlsplit(address if separator else f"//{address}")
        port = parts.port
    except ValueError:
        raise refusal from None
    if separator:
        port = port or _DEFAULT_PORTS.get(scheme)
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc)
    if port is None or not parts.hostname or not plain:
        raise refusal
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return scheme if separator else "", f"{host}:{port}", is_loopback(parts.hostname)
