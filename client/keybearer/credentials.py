"""Presents a token with outgoing calls, to any service that wants `authorization: Bearer …`.

On TLS, call credentials go with the channel: `grpc.composite_channel_credentials(tls,
bearer_call_credentials(token))`, for threads and for asyncio. grpc refuses them on plaintext, where
the interceptors do the same. A call that carries its own `authorization` keeps it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import grpc.aio

from keybearer._client.channel import (
    AUTHORIZATION,
    AsyncTokenSource,
    TokenSource,
    authorization_of,
    current_token,
    current_token_async,
)


def bearer_call_credentials(token: TokenSource) -> grpc.CallCredentials:
    """Answer call credentials that present a token. They work on TLS channels only."""
    return grpc.metadata_call_credentials(_Plugin(token), name="keybearer")


def bearer_interceptor(token: TokenSource) -> "BearerInterceptor":
    """Answer an interceptor for `grpc.intercept_channel` that presents a token."""
    return BearerInterceptor(token)


def async_bearer_interceptors(token: AsyncTokenSource) -> list[grpc.aio.ClientInterceptor]:
    """Answer the interceptors for `grpc.aio.insecure_channel(…, interceptors=…)`.

    They are four: grpc.aio registers an interceptor for the first kind of call it knows and no
    other.
    """
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
        except Exception as error:  # noqa: BLE001 - the call fails with whatever the source raised
            callback((), error)
        else:
            callback(metadata, None)


class _Details(NamedTuple):
    """What grpc asks for as ClientCallDetails."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class BearerInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Presents a token with every call of a channel, whatever its arity."""

    def __init__(self, token: TokenSource) -> None:
        self._token = token

    def _dressed(self, details: Any) -> Any:
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
        """Present the token."""
        return continuation(self._dressed(client_call_details), request)

    def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        """Present the token."""
        return continuation(self._dressed(client_call_details), request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Present the token."""
        return continuation(self._dressed(client_call_details), request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Present the token."""
        return continuation(self._dressed(client_call_details), request_iterator)


class _AsyncBearer:
    def __init__(self, token: AsyncTokenSource) -> None:
        self._token = token

    async def _dressed(self, details: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if metadata.get_all(AUTHORIZATION):
            return details
        metadata.add(*authorization_of(await current_token_async(self._token)))
        return details._replace(metadata=metadata)


class _UnaryUnary(_AsyncBearer, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(await self._dressed(client_call_details), request)


class _UnaryStream(_AsyncBearer, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await continuation(await self._dressed(client_call_details), request)


class _StreamUnary(_AsyncBearer, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(await self._dressed(client_call_details), request_iterator)


class _StreamStream(_AsyncBearer, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(await self._dressed(client_call_details), request_iterator)
