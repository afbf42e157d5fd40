"""Presents a token with outgoing calls to any service that expects `authorization: Bearer …`.

On TLS, call credentials belong to the channel: `grpc.composite_channel_credentials(tls,
bearer_call_credentials(token))`, for threads and for asyncio. grpc rejects them on plaintext; use
the interceptors there. A call that has its own `authorization` keeps it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from keybearer._client.token_source import (
    AsyncTokenSource,
    TokenSource,
    assert_token_source,
    current_token,
    current_token_async,
)
from keybearer._wire.bearer import AUTHORIZATION, authorization_of

__all__ = [
    "AsyncTokenSource",
    "BearerInterceptor",
    "TokenSource",
    "async_bearer_interceptors",
    "bearer_call_credentials",
    "bearer_interceptor",
]


def bearer_call_credentials(token: TokenSource) -> grpc.CallCredentials:
    """Return call credentials that present a token. They work on TLS channels only.

    Raises:
        TypeError, ValueError: `token` is no token and no callable; the message does not repeat it.
    """
    assert_token_source(token)
    return grpc.metadata_call_credentials(_Plugin(token), name="keybearer")


def bearer_interceptor(token: TokenSource) -> "BearerInterceptor":
    """Return an interceptor for `grpc.intercept_channel` that presents a token.

    Raises:
        TypeError, ValueError: `token` is no token and no callable; the message does not repeat it.
    """
    return BearerInterceptor(token)


def async_bearer_interceptors(token: AsyncTokenSource) -> list[grpc.aio.ClientInterceptor]:
    """Return the interceptors for `grpc.aio.insecure_channel(…, interceptors=…)`.

    There is one for each arity: grpc.aio registers an interceptor for one kind of call only.

    Raises:
        TypeError, ValueError: `token` is no token and no callable; the message does not repeat it.
    """
    assert_token_source(token)
    return [
        _UnaryUnary(token),
        _UnaryStream(token),
        _StreamUnary(token),
        _StreamStream(token),
    ]


class _Plugin(grpc.AuthMetadataPlugin):
    def __init__(self, token: TokenSource) -> None:
        self._token = token

    def __call__(
        self, _context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None:
        try:
            metadata = (authorization_of(current_token(self._token)),)
        except Exception as error:  # noqa: BLE001 - the call fails with what the source raised
            callback((), error)
        else:
            callback(metadata, None)


class _Details(NamedTuple):
    """What grpc expects as ClientCallDetails."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any

    def __repr__(self) -> str:
        """Leave the metadata out, which hold the token."""
        return f"_Details(method={self.method!r}, timeout={self.timeout})"


class BearerInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Presents a token with every call of a channel, of every arity."""

    def __init__(self, token: TokenSource) -> None:
        assert_token_source(token)
        self._token = token

    def _with_token(self, details: Any) -> Any:
        metadata = list(details.metadata or ())
        if any(key == AUTHORIZATION for key, _ in metadata):
            return details
        metadata.append(authorization_of(current_token(self._token)))
        return _Details(
            details.method,
            details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

    def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """Make the call with the token."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """Make the call with the token."""
        return continuation(self._with_token(client_call_details), request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Make the call with the token."""
        return continuation(self._with_token(client_call_details), request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Make the call with the token."""
        return continuation(self._with_token(client_call_details), request_iterator)


class _AsyncBearer:
    def __init__(self, token: AsyncTokenSource) -> None:
        self._token = token

    async def _with_token(self, details: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if metadata.get_all(AUTHORIZATION):
            return details
        metadata.add(*authorization_of(await current_token_async(self._token)))
        return details._replace(metadata=metadata)


class _UnaryUnary(_AsyncBearer, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request)


class _UnaryStream(_AsyncBearer, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request)


class _StreamUnary(_AsyncBearer, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request_iterator)


class _StreamStream(_AsyncBearer, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(await self._with_token(client_call_details), request_iterator)
