"""TLS for every port, with certificates that may be replaced while the server runs."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

log = structlog.get_logger(__name__)


class TlsError(Exception):
    """A certificate or key cannot be used. The text says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Given, every client must show a certificate of this authority: mutual TLS."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Make credentials that read the files again whenever one of them has changed.

    Raises:
        TlsError: A file cannot be read.
    """
    stamp = _stamp(files)
    current = _configuration(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called for every handshake, on a thread of the core: cheap, and never raising.
        nonlocal stamp
        try:
            new = _stamp(files)
            if new == stamp:
                return None
            configuration = _configuration(files)
        except TlsError as error:
            log.error("tls_files_unreadable", cause=str(error))  # noqa: TRY400 - no traceback needed
            return None
        stamp = new
        log.info("tls_files_reloaded")
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        current,
        fetch,  # type: ignore[arg-type]  # None means unchanged; the stubs have forgotten it
        require_client_authentication=files.client_ca is not None,
    )


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Make the same for a port that grpc does not serve.

    Raises:
        TlsError: A file cannot be read.
    """
    stamp = _stamp(files)
    first = current = _context(files)

    def renew(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        # Called in every handshake, with or without a name.
        nonlocal stamp, current
        try:
            new = _stamp(files)
            if new != stamp:
                current, stamp = _context(files), new
                log.info("tls_files_reloaded")
        except TlsError as error:
            log.error("tls_files_unreadable", cause=str(error))  # noqa: TRY400 - no traceback needed
        connection.context = current

    first.sni_callback = renew
    return first


def _context(files: TlsFiles) -> ssl.SSLContext:
    _configuration(files)  # names the file that is none
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise TlsError(f"{files.certificate}: {error.strerror or error}") from None
    return context


def _stamp(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    try:
        stats = [path.stat() for path in _paths(files)]
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from None
    return tuple((one.st_mtime_ns, one.st_ino) for one in stats)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    try:
        contents = [path.read_bytes() for path in _paths(files)]
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from None
    certificate, key = contents[:2]
    if b"CERTIFICATE" not in certificate:
        raise TlsError(f"{files.certificate} holds no PEM certificate")
    if b"PRIVATE KEY" not in key:
        raise TlsError(f"{files.key} holds no PEM private key")
    return grpc.ssl_server_certificate_configuration(
        [(key, certificate)], root_certificates=contents[2] if files.client_ca else None
    )


def _paths(files: TlsFiles) -> list[Path]:
    return [path for path in (files.certificate, files.key, files.client_ca) if path is not None]
