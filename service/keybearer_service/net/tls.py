"""TLS for every port, with certificates that may be replaced while the server runs."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc
import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


class TlsError(Exception):
    """A certificate or key cannot be used. The text names it and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Given, every client must show a certificate of this authority: mutual TLS."""


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that read the files again whenever one of them has changed.

    Raises:
        TlsError: A file cannot be used.
    """
    latest = _Latest(files, _configuration)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Called for every handshake, on a thread of the core: cheap, and never raising.
        return latest.value if latest.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        latest.value,
        fetch,  # type: ignore[arg-type]  # None means unchanged; the stubs have forgotten it
        require_client_authentication=files.client_ca is not None,
    )


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the same for a port that grpc does not serve.

    Raises:
        TlsError: A file cannot be used.
    """
    latest = _Latest(files, _context)
    first = latest.value

    def renew(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        # Called in every handshake, with or without a name.
        latest.refresh()
        connection.context = latest.value

    first.sni_callback = renew
    return first


def name_in_certificate(files: TlsFiles) -> str | None:
    """Return a name that the server's certificate carries; None when it carries none.

    Raises:
        TlsError: A file cannot be used, or the certificate is not valid now.
    """
    server = _context(TlsFiles(certificate=files.certificate, key=files.key))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(files.certificate)
    # The standard library takes a certificate apart only for the peer of a handshake, so there is
    # one, in memory.
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (asking, answering, asking):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise TlsError(f"{files.certificate}: {error.verify_message}") from None
    names = (asking.getpeercert() or {}).get("subjectAltName", ())
    return next((str(name[1]).replace("*", "any") for name in names), None)


class _Latest(Generic[T]):
    """What is made of the files, made again after they have changed."""

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], T]) -> None:
        self._files = files
        self._make = make
        self._stamp = self._refused = _stamp(files)
        self._problem = ""
        self.value = make(files)

    def refresh(self) -> bool:
        """Look at the files; return whether there is a new value. Files that are wrong change none.

        Logs a problem once, not for every handshake in which it is met.
        """
        try:
            stamp = _stamp(self._files)
            if stamp in (self._stamp, self._refused):
                return False
            self._refused = stamp
            value = self._make(self._files)
        except TlsError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error("tls_files_unusable", cause=self._problem)  # noqa: TRY400 - no traceback needed
            return False
        self.value, self._stamp, self._problem = value, stamp, ""
        log.info("tls_files_reloaded")
        return True


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _assert_certificates(files.certificate)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_passphrase)
    except _PassphraseError:
        raise TlsError(f"{files.key} is encrypted; give a key without a passphrase") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"{files.key} is not the key of {files.certificate}") from None
        raise TlsError(f"{files.key} holds no PEM private key") from None
    except OSError as error:
        raise TlsError(f"{files.key}: {error.strerror}") from None
    if files.client_ca is not None:
        _assert_certificates(files.client_ca)
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    # Checked before grpc sees the files: its own error does not tell a wrong file from a used port.
    _context(files)
    try:
        contents = [path.read_bytes() for path in _paths(files)]
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from None
    certificate, key = contents[:2]
    return grpc.ssl_server_certificate_configuration(
        [(key, certificate)], root_certificates=contents[2] if files.client_ca else None
    )


class _PassphraseError(Exception):
    """OpenSSL asks for a passphrase, which it would otherwise do on the terminal."""


def _refuse_passphrase() -> str:
    raise _PassphraseError


def _assert_certificates(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise TlsError(f"{path} holds no PEM certificate") from None
    except OSError as error:
        raise TlsError(f"{path}: {error.strerror}") from None


def _stamp(files: TlsFiles) -> tuple[tuple[int, int], ...]:
    try:
        stats = [path.stat() for path in _paths(files)]
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from None
    return tuple((one.st_mtime_ns, one.st_ino) for one in stats)


def _paths(files: TlsFiles) -> list[Path]:
    return [path for path in (files.certificate, files.key, files.client_ca) if path is not None]
