"""Channels to keybearer: TLS unless plaintext is requested, without the transport's own retries.

Deadlines and retries are those of `retries`: the transport would repeat a create.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

from keybearer._client.version import VERSION
from keybearer._wire import limits
from keybearer._wire.arguments import kind_of, text

_URL_SCHEMES = frozenset({"http", "https", "grpc", "grpcs", "tcp", "tls"})
ChannelOptions = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """How client and server prove who they are. Everything is PEM."""

    ca: bytes | None = None
    """The authorities that may sign the server's certificate; None means those of the system."""
    cert: bytes | None = None
    """The certificate chain of the client, for mutual TLS."""
    key: bytes | None = field(default=None, repr=False)
    """The private key of `cert`."""
    server_name: str | None = None
    """The name in the server's certificate, when it is not the one in the address."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            TypeError: A field that holds PEM is no bytes; `from_files` reads files.
            ValueError: There is a certificate without its key, or a key without its certificate.
        """
        for name in ("ca", "cert", "key"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bytes):
                raise TypeError(
                    f"{name} must be bytes in PEM, not {kind_of(value)}; "
                    "TLSConfig.from_files reads files"
                )
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both or neither")
        if self.server_name is not None:
            text("server_name", self.server_name)

    @classmethod
    def from_files(
        cls,
        *,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
    ) -> Self:
        """Return a configuration that is read from files.

        Raises:
            OSError: A file cannot be read.
        """
        return cls(
            ca=None if ca is None else Path(ca).read_bytes(),
            cert=None if cert is None else Path(cert).read_bytes(),
            key=None if key is None else Path(key).read_bytes(),
            server_name=server_name,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the service is and how to connect, for another connection to the same place."""

    address: str
    tls: bool | TLSConfig
    options: ChannelOptions

    def __post_init__(self) -> None:
        """Check the address and the TLS settings; see `KeybearerClient`."""
        address = text("address", self.address)
        scheme, separator, rest = address.partition("://")
        if separator and scheme.lower() in _URL_SCHEMES:
            raise ValueError(
                f"address must be host:port, such as {rest.strip('/')!r}, "
                f"not the URL {address!r}; TLS is the default, and tls=False is plaintext"
            )
        if not address or any(one.isspace() for one in address):
            raise ValueError(f"address must be host:port, not {address!r}")
        if not isinstance(self.tls, bool | TLSConfig):
            raise TypeError(f"tls must be True, False or a TLSConfig, not {kind_of(self.tls)}")

    def open(self, more: ChannelOptions = ()) -> grpc.Channel:
        """Return a new channel with further channel arguments."""
        return open_channel(self.address, tls=self.tls, options=[*self.options, *more])


def open_channel(
    address: str, *, tls: bool | TLSConfig = True, options: ChannelOptions = ()
) -> grpc.Channel:
    """Return a channel. Nothing is sent before the first call.

    Args:
        address: `host:port`, or any target that gRPC understands.
        tls: True trusts the authorities of the system. False is plaintext: everybody on the way can
            read the tokens, so keep it to loopback and to networks that are trusted as a whole.
        options: Raw channel arguments; they override the defaults.
    """
    credentials, arguments = _grpc_arguments(tls, options)
    if credentials is None:
        return grpc.insecure_channel(address, arguments)
    return grpc.secure_channel(address, credentials, arguments)


def open_async_channel(
    address: str, *, tls: bool | TLSConfig = True, options: ChannelOptions = ()
) -> grpc.aio.Channel:
    """Return a channel for asyncio. The arguments are those of `open_channel`."""
    credentials, arguments = _grpc_arguments(tls, options)
    if credentials is None:
        return grpc.aio.insecure_channel(address, arguments)
    return grpc.aio.secure_channel(address, credentials, arguments)


def _grpc_arguments(
    tls: bool | TLSConfig,  # noqa: FBT001 - the bool is the simple form of a value, not a flag
    options: ChannelOptions,
) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    """Return the credentials, None for plaintext, and the channel arguments."""
    arguments = dict(_OPTIONS)
    credentials = None
    if tls is not False:
        config = TLSConfig() if tls is True else tls
        credentials = grpc.ssl_channel_credentials(config.ca, config.key, config.cert)
        if config.server_name is not None:
            arguments["grpc.ssl_target_name_override"] = config.server_name
    arguments.update(options)
    return credentials, list(arguments.items())


_OPTIONS: dict[str, Any] = {
    "grpc.primary_user_agent": f"keybearer-python/{VERSION}",
    # A proxy from the environment would read every token.
    "grpc.enable_http_proxy": 0,
    # Only our own code knows which calls may be repeated.
    "grpc.enable_retries": 0,
    # A dead connection is noticed within 30 s + 10 s. `ping_timeout_ms` is the timer that counts.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    # A server that returns is found within two seconds.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 3_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.max_send_message_length": limits.MAX_REQUEST_BYTES,
    "grpc.max_receive_message_length": limits.MAX_RESPONSE_BYTES,
    "grpc.max_metadata_size": limits.MAX_METADATA_BYTES,
}
