"""Channels to keybearer: TLS unless plaintext was asked for, and none of the transport's guesses.

Deadlines and retries are ours (see `client`): the transport's retries would repeat a create.
"""

import importlib.metadata
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio

TokenSource = str | Callable[[], str]
"""A token, or what answers the current one each time it is called, so that it may be rotated."""
AsyncTokenSource = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""The same for asyncio, where the callable may be a coroutine function."""
ChannelOptions = Sequence[tuple[str, Any]]

AUTHORIZATION = "authorization"


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSConfig:
    """How the two sides prove who they are. All PEM."""

    ca: bytes | None = None
    """The authorities trusted to name the server; None: those of the system."""
    cert: bytes | None = None
    """The client's own certificate chain, for mutual TLS."""
    key: bytes | None = field(default=None, repr=False)
    """The key of `cert`."""
    server_name: str | None = None
    """The name the server's certificate must carry, when it is not that of the address."""

    @classmethod
    def from_files(
        cls,
        *,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        server_name: str | None = None,
    ) -> Self:
        """Read the parts from files.

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
    """Where the service is and how to get there; for a further connection to the same place."""

    address: str
    tls: bool | TLSConfig
    options: ChannelOptions

    def open(self, more: ChannelOptions = ()) -> grpc.Channel:
        """Open a channel of its own, with further channel arguments."""
        return open_channel(self.address, tls=self.tls, options=[*self.options, *more])


def open_channel(
    address: str, *, tls: bool | TLSConfig = True, options: ChannelOptions = ()
) -> grpc.Channel:
    """Open a channel. Nothing is sent before the first call.

    Args:
        address: `host:port`, or any target that gRPC understands.
        tls: True trusts the system's authorities; False is plaintext, in which tokens can be read
            on the way: for loopback, and networks that are trusted as a whole.
        options: Raw channel arguments; they win over ours.
    """
    credentials, arguments = _settle(tls, options)
    if credentials is None:
        return grpc.insecure_channel(address, arguments)
    return grpc.secure_channel(address, credentials, arguments)


def open_async_channel(
    address: str, *, tls: bool | TLSConfig = True, options: ChannelOptions = ()
) -> grpc.aio.Channel:
    """Open a channel for asyncio; arguments as for `open_channel`."""
    credentials, arguments = _settle(tls, options)
    if credentials is None:
        return grpc.aio.insecure_channel(address, arguments)
    return grpc.aio.secure_channel(address, credentials, arguments)


def authorization_of(token: str) -> tuple[str, str]:
    """Write the metadata that presents a token.

    Surrounding whitespace goes, since token files end with a newline.

    Raises:
        ValueError: The token is empty, or no header can carry it. The message does not repeat it.
    """
    stripped = token.strip()
    if not stripped:
        raise ValueError("the token is empty")
    if not (stripped.isascii() and stripped.isprintable()) or " " in stripped:
        raise ValueError("the token has characters that no token has")
    return AUTHORIZATION, f"Bearer {stripped}"


def current_token(source: TokenSource) -> str:
    """Ask a token source."""
    return source if isinstance(source, str) else source()


async def current_token_async(source: AsyncTokenSource) -> str:
    """Ask a token source, awaiting it where it wants that."""
    if isinstance(source, str):
        return source
    answer = source()
    return await answer if inspect.isawaitable(answer) else answer


def _settle(
    tls: bool | TLSConfig,  # noqa: FBT001 - the bool is the simple form of a value, not a flag
    options: ChannelOptions,
) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    """Turn our arguments into those of grpc; no credentials means plaintext."""
    arguments = dict(_OPTIONS)
    credentials = None
    if tls is not False:
        config = TLSConfig() if tls is True else tls
        credentials = grpc.ssl_channel_credentials(config.ca, config.key, config.cert)
        if config.server_name is not None:
            arguments["grpc.ssl_target_name_override"] = config.server_name
    arguments.update(options)
    return credentials, list(arguments.items())


def _version() -> str:
    try:
        return importlib.metadata.version("keybearer")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


_OPTIONS: dict[str, Any] = {
    "grpc.primary_user_agent": f"keybearer-python/{_version()}",
    # A proxy from the environment would see every token.
    "grpc.enable_http_proxy": 0,
    # Repeating is for our own code, which knows what may be repeated.
    "grpc.enable_retries": 0,
    # A dead connection is noticed within 30 s + 10 s. The second 10 s is the timer that counts.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    # A server that comes back is found again within two seconds.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.min_reconnect_backoff_ms": 3_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    # What the service takes, section 8 of the wire contract.
    "grpc.max_send_message_length": 128 * 1024,
    # A page of 1,000 keys, each as long as it may be.
    "grpc.max_receive_message_length": 32 * 1024 * 1024,
    "grpc.max_metadata_size": 16 * 1024,
}
