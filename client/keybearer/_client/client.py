"""The clients of the API: `KeybearerClient` and, for asyncio, `AsyncKeybearerClient`.

Both offer the functions of `requests` as their methods. A method returns what its `Request` reads,
or iterates over its `Pages`. A failed call raises a KeybearerError and nothing else.
"""

import asyncio
import functools
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from keybearer._client import requests
from keybearer._client.channel import (
    ChannelOptions,
    Endpoint,
    TLSConfig,
    open_async_channel,
    open_channel,
)
from keybearer._client.methods import async_list_method, async_method, list_method, method
from keybearer._client.requests import Pages, Request
from keybearer._client.retries import DEFAULT_TIMEOUT, DEFAULT_TRY_TIMEOUT, Attempts
from keybearer._client.token_source import (
    AsyncTokenSource,
    TokenSource,
    assert_token_source,
    current_token,
    current_token_async,
)
from keybearer._wire.arguments import seconds
from keybearer._wire.bearer import authorization_of
from keybearer.errors import KeybearerError, from_rpc_error

ResultT = TypeVar("ResultT")


class KeybearerClient:
    """A client for threads, which may share it. Use it as a context manager, or `close` it.

    Nothing is sent before the first call. After a fork, the child opens its own connection.

    Args:
        address: `host:port` of the service.
        token: The client's own credential, or a callable that returns the current one; None for a
            client that only calls `revoke_token`, which needs no credential.
        tls: True trusts the authorities of the system; False is plaintext, in which everybody on
            the way can read the tokens.
        timeout: Seconds that a method may take in all, its retries included.
        try_timeout: Seconds that one attempt may take. Reads are repeated, and so are create and
            rotate, in a way that creates one key; other changes are attempted once.
        options: Raw channel arguments; they override the defaults.

    Raises:
        TypeError, ValueError: An argument has a wrong type or form; the message names it.
    """

    def __init__(
        self,
        address: str,
        *,
        token: TokenSource | None = None,
        tls: bool | TLSConfig = True,
        timeout: float = DEFAULT_TIMEOUT,
        try_timeout: float = DEFAULT_TRY_TIMEOUT,
        options: ChannelOptions = (),
    ) -> None:
        self.endpoint = Endpoint(address=address, tls=tls, options=options)
        """Where the client connects to."""
        if token is not None:
            assert_token_source(token)
        self.token_source = token
        """Where the credential of the client comes from."""
        self._open = functools.partial(open_channel, address, tls=tls, options=options)
        self._timeout = seconds("timeout", timeout)
        self._try_timeout = seconds("try_timeout", try_timeout)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: dict[str, Any] = {}
        self._pid = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.address!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        with self._lock:
            channel, self._channel = self._channel, None
            self._stubs = {}
        if channel is not None:
            channel.close()

    def run(self, request: Request[ResultT], *, timeout: float | None = None) -> ResultT:
        """Make a call and return its result.

        Args:
            request: From a function of `requests`.
            timeout: Seconds in all; None means those of the client.

        Raises:
            KeybearerError: The call failed.
        """
        attempts = Attempts(
            request,
            self._timeout if timeout is None else timeout,
            self._try_timeout,
            time.monotonic(),
        )
        while True:
            try:
                response = self._try(request, attempts.begin(time.monotonic()))
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                failure.__cause__ = error
                pause = attempts.pause_after(failure, time.monotonic())
            else:
                return _read(request, response)
            time.sleep(pause)

    def iterate(self, pages: Pages[ResultT]) -> Iterator[ResultT]:
        """Yield the items of a list; a page is fetched when it is needed.

        Raises:
            KeybearerError: A page could not be fetched.
        """
        items, page_token = self.run(pages.at(""))
        yield from items
        while page_token:
            items, page_token = self.run(pages.at(page_token))
            yield from items

    def _try(self, request: Request[Any], timeout: float) -> Any:
        metadata: tuple[tuple[str, str], ...] = ()
        if request.needs_token and self.token_source is not None:
            metadata = (authorization_of(current_token(self.token_source)),)
        return self._stub(request)(request.message, timeout=timeout, metadata=metadata)

    def _stub(self, request: Request[Any]) -> Callable[..., Any]:
        with self._lock:
            if self._channel is None or self._pid != os.getpid():
                self._channel, self._pid, self._stubs = self._open(), os.getpid(), {}
            if request.path not in self._stubs:
                self._stubs[request.path] = self._channel.unary_unary(
                    request.path,
                    request_serializer=type(request.message).SerializeToString,
                    response_deserializer=request.response_type.FromString,
                )
            stub: Callable[..., Any] = self._stubs[request.path]
        return stub

    create_account = method(requests.create_account)
    get_account = method(requests.get_account)
    list_accounts = list_method(requests.list_accounts)
    disable_account = method(requests.disable_account)
    enable_account = method(requests.enable_account)
    create_user = method(requests.create_user)
    get_user = method(requests.get_user)
    list_users = list_method(requests.list_users)
    update_user = method(requests.update_user)
    delete_user = method(requests.delete_user)
    create_api_key = method(requests.create_api_key)
    get_api_key = method(requests.get_api_key)
    list_api_keys = list_method(requests.list_api_keys)
    update_api_key = method(requests.update_api_key)
    disable_api_key = method(requests.disable_api_key)
    enable_api_key = method(requests.enable_api_key)
    rotate_api_key = method(requests.rotate_api_key)
    revoke_api_key = method(requests.revoke_api_key)
    revoke_api_keys = method(requests.revoke_api_keys)
    validate_token = method(requests.validate_token)
    batch_validate_tokens = method(requests.batch_validate_tokens)
    who_am_i = method(requests.who_am_i)
    rotate_self = method(requests.rotate_self)
    revoke_token = method(requests.revoke_token)
    list_audit_events = list_method(requests.list_audit_events)


class AsyncKeybearerClient:
    """The same as KeybearerClient for asyncio. Each event loop gets a connection of its own.

    The methods that list return asynchronous iterators: `async for key in client.list_api_keys()`.
    `token` may also be a coroutine function.
    """

    def __init__(
        self,
        address: str,
        *,
        token: AsyncTokenSource | None = None,
        tls: bool | TLSConfig = True,
        timeout: float = DEFAULT_TIMEOUT,
        try_timeout: float = DEFAULT_TRY_TIMEOUT,
        options: ChannelOptions = (),
    ) -> None:
        self.endpoint = Endpoint(address=address, tls=tls, options=options)
        """Where the client connects to."""
        if token is not None:
            assert_token_source(token)
        self.token_source = token
        """Where the credential of the client comes from."""
        self._open = functools.partial(open_async_channel, address, tls=tls, options=options)
        self._timeout = seconds("timeout", timeout)
        self._try_timeout = seconds("try_timeout", try_timeout)
        self._connections: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, tuple[grpc.aio.Channel, dict[str, Any]]
        ] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.address!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection of this event loop. A later call opens a new one."""
        connection = self._connections.pop(asyncio.get_running_loop(), None)
        if connection is not None:
            await connection[0].close()

    async def run(self, request: Request[ResultT], *, timeout: float | None = None) -> ResultT:  # noqa: ASYNC109 - the deadline travels with the call
        """Make a call and return its result, as KeybearerClient.run does."""
        attempts = Attempts(
            request,
            self._timeout if timeout is None else timeout,
            self._try_timeout,
            time.monotonic(),
        )
        while True:
            try:
                response = await self._try(request, attempts.begin(time.monotonic()))
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                failure.__cause__ = error
                pause = attempts.pause_after(failure, time.monotonic())
            else:
                return _read(request, response)
            await asyncio.sleep(pause)

    async def iterate(self, pages: Pages[ResultT]) -> AsyncIterator[ResultT]:
        """Yield the items of a list; a page is fetched when it is needed.

        Raises:
            KeybearerError: A page could not be fetched.
        """
        items, page_token = await self.run(pages.at(""))
        for item in items:
            yield item
        while page_token:
            items, page_token = await self.run(pages.at(page_token))
            for item in items:
                yield item

    async def _try(self, request: Request[Any], seconds: float) -> Any:
        metadata = grpc.aio.Metadata()
        if request.needs_token and self.token_source is not None:
            metadata.add(*authorization_of(await current_token_async(self.token_source)))
        return await self._stub(request)(request.message, timeout=seconds, metadata=metadata)

    def _stub(self, request: Request[Any]) -> Callable[..., Any]:
        # A channel belongs to the event loop in which it was opened, and test clients use several.
        loop = asyncio.get_running_loop()
        connection = self._connections.get(loop)
        if connection is None:
            connection = self._connections[loop] = (self._open(), {})
        channel, stubs = connection
        if request.path not in stubs:
            stubs[request.path] = channel.unary_unary(
                request.path,
                request_serializer=type(request.message).SerializeToString,
                response_deserializer=request.response_type.FromString,
            )
        stub: Callable[..., Any] = stubs[request.path]
        return stub

    create_account = async_method(requests.create_account)
    get_account = async_method(requests.get_account)
    list_accounts = async_list_method(requests.list_accounts)
    disable_account = async_method(requests.disable_account)
    enable_account = async_method(requests.enable_account)
    create_user = async_method(requests.create_user)
    get_user = async_method(requests.get_user)
    list_users = async_list_method(requests.list_users)
    update_user = async_method(requests.update_user)
    delete_user = async_method(requests.delete_user)
    create_api_key = async_method(requests.create_api_key)
    get_api_key = async_method(requests.get_api_key)
    list_api_keys = async_list_method(requests.list_api_keys)
    update_api_key = async_method(requests.update_api_key)
    disable_api_key = async_method(requests.disable_api_key)
    enable_api_key = async_method(requests.enable_api_key)
    rotate_api_key = async_method(requests.rotate_api_key)
    revoke_api_key = async_method(requests.revoke_api_key)
    revoke_api_keys = async_method(requests.revoke_api_keys)
    validate_token = async_method(requests.validate_token)
    batch_validate_tokens = async_method(requests.batch_validate_tokens)
    who_am_i = async_method(requests.who_am_i)
    rotate_self = async_method(requests.rotate_self)
    revoke_token = async_method(requests.revoke_token)
    list_audit_events = async_list_method(requests.list_audit_events)


def _read(request: Request[ResultT], response: Any) -> ResultT:
    """Return what a response means.

    Raises:
        KeybearerError: The response makes no sense, such as a time beyond the year 9999.
    """
    try:
        return request.read(response)
    except (ValueError, OverflowError) as error:
        raise KeybearerError(f"the response of {request.path} cannot be read") from error
