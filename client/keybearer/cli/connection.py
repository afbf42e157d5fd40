"""Where the service is and how it is spoken to: TLS, unless nobody can listen or it was said."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from keybearer._client.channel import TLSConfig
from keybearer.cli.refusals import usage

DEFAULT_ADDRESS = "127.0.0.1:50051"
"""Where a server listens that was not told where."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What a client needs to be opened."""

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
    """Decide how an address is spoken to.

    TLS for every address, except that loopback and unix sockets are spoken to in plaintext unless
    `https://` or one of the TLS settings says otherwise: that is how a server listens there by
    itself, and nobody else can read along.

    Args:
        address: `host:port`, `https://host[:port]`, `http://host[:port]` or `unix:/path`.
        plaintext: Do without TLS, whatever the address.
        ca: The authorities trusted to name the server; None: those of the system.
        client_cert: The caller's own certificate, for mutual TLS.
        client_key: Its key.
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
    """Answer the scheme, if any, the target for gRPC, and whether it is on this machine."""
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
    return scheme if separator else "", f"{host}:{port}", _is_loopback(parts.hostname)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
