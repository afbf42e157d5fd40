"""The clients of the API: `KeybearerClient` and, for asyncio, `AsyncKeybearerClient`.

Both offer the functions of `calls` as their methods. A method answers what its `Call` reads, or
iterates over its `Pages`; it raises a KeybearerError, and nothing else, when the call fails.
"""

import asyncio
import functools
import inspect
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, get_args

import grpc
import grpc.aio

from keybearer._client import requests
from keybearer._client.channel import (
    AsyncTokenSource,
    ChannelOptions,
    Endpoint,
    TLSConfig,
    TokenSource,
    authorization_of,
    current_token,
    current_token_async,
    open_async_channel,
    open_channel,
)
from keybearer._client.requests import Call, Kind, Pages
from keybearer.errors import KeybearerError, from_rpc_error

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds a method may take in all."""
DEFAULT_TRY_TIMEOUT: Final = 3.0
"""Seconds one try of it may take."""
MAX_TRIES: Final = {Kind.READ: 3, Kind.WRITE: 1, Kind.MINT: 8}
MAX_READ_PAUSE: Final = 0.5
"""Seconds a read waits at most between two tries; told to wait longer, its caller decides."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

_LOST = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}
"""What a broken connection may look like. From the service itself they come with a reason."""


class _Tries:
    """The tries of one call: how long each may take, and whether there is another one.

    Args:
        call: The call; of a MINT, the request's `attempt` grows with every try.
        timeout: Seconds for all tries together.
        try_timeout: Seconds for one.
        now: The monotonic time, in seconds.
    """

    def __init__(self, call: Call[Any], timeout: float, try_timeout: float, now: float) -> None:
        self._call = call
        self._try_timeout = try_timeout
        self._end = now + timeout
        self._made = 0

    def begin(self, now: float) -> float:
        """Count a try and answer how many seconds it has."""
        if self._made and self._call.kind is Kind.MINT:
            self._call.request.attempt += 1  # type: ignore[attr-defined]  # every MINT has one
        self._made += 1
        return max(0.0, min(self._try_timeout, self._end - now))

    def pause_after(self, error: KeybearerError, now: float) -> float:
        """Answer how many seconds to wait before the next try.

        Raises:
            KeybearerError: `error` itself, when there is no next try.
        """
        pause = random.uniform(0.5, 1) * min(1.0, 0.05 * 2.0**self._made)
        pause = max(pause, error.retry_after or 0)
        if self._call.kind is Kind.READ and pause > MAX_READ_PAUSE:
            raise error
        if not self._may_repeat(error) or now + pause >= self._end:
            if self._call.kind is Kind.MINT:
                error.request_id = self._call.request.request_id  # type: ignore[attr-defined]
                error.attempt = self._call.request.attempt  # type: ignore[attr-defined]
            raise error
        return pause

    def _may_repeat(self, error: KeybearerError) -> bool:
        if self._made >= MAX_TRIES[self._call.kind]:
            return False
        if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return True
        if self._call.kind is Kind.READ:
            return False
        return error.reason == "OVERLOADED" or (error.code in _LOST and not error.reason)


def _read(call: Call[_R], response: Any) -> _R:
    """Read an answer.

    Raises:
        KeybearerError: It makes no sense, such as a time beyond the year 9999.
    """
    try:
        return call.read(response)
    except (ValueError, OverflowError) as error:
        raise KeybearerError(f"the answer of {call.path} cannot be read") from error


def _dress(method: Callable[..., Any], plan: Callable[..., Any], listing: Any = None) -> None:
    """Give a method the name, the docstring and, behind `self`, the signature of its plan.

    `listing` is the type of iterator that a method answers whose plan answers Pages.
    """
    functools.update_wrapper(method, plan)
    # Else `inspect` would follow it and take the plan's first argument for `self`.
    del method.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.signature(plan)
    (result,) = get_args(signature.return_annotation)
    client = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[client, *signature.parameters.values()],
        return_annotation=listing[result] if listing else result,
    )


def _method(plan: Callable[_P, Call[_R]]) -> "Callable[Concatenate[KeybearerClient, _P], _R]":
    def method(self: "KeybearerClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return self.run(plan(*args, **kwargs))

    _dress(method, plan)
    return method


def _list_method(
    plan: Callable[_P, Pages[_R]],
) -> "Callable[Concatenate[KeybearerClient, _P], Iterator[_R]]":
    def method(self: "KeybearerClient", /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_R]:
        return self.iterate(plan(*args, **kwargs))

    _dress(method, plan, Iterator)
    return method


def _async_method(
    plan: Callable[_P, Call[_R]],
) -> "Callable[Concatenate[AsyncKeybearerClient, _P], Coroutine[Any, Any, _R]]":
    async def method(self: "AsyncKeybearerClient", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return await self.run(plan(*args, **kwargs))

    _dress(method, plan)
    return method


def _async_list_method(
    plan: Callable[_P, Pages[_R]],
) -> "Callable[Concatenate[AsyncKeybearerClient, _P], AsyncIterator[_R]]":
    def method(
        self: "AsyncKeybearerClient", /, *args: _P.args, **kwargs: _P.kwargs
    ) -> AsyncIterator[_R]:
        return self.iterate(plan(*args, **kwargs))

    _dress(method, plan, AsyncIterator)
    return method


class KeybearerClient:
    """A client for threads. Safe to share between them; use it as a context manager, or `close` it.

    Nothing is sent before the first call. A process made by fork opens a connection of its own.

    Args:
        address: `host:port` of the service.
        token: The client's own credential, or a callable that answers the current one; None for
            `revoke_token`, which needs none.
        tls: True trusts the system's authorities; False is plaintext (see `open_channel`).
        timeout: Seconds a method may take in all, its retries included.
        try_timeout: Seconds one try may take. Reads are tried again, and so are create and rotate,
            in a way that makes one key; other changes are tried once.
        options: Raw channel arguments; they win over ours.
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
        """Where it connects to."""
        self.token_source = token
        """Where its credential comes from."""
        self._open = functools.partial(open_channel, address, tls=tls, options=options)
        self._timeout = timeout
        self._try_timeout = try_timeout
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

    def run(self, call: Call[_R], *, timeout: float | None = None) -> _R:
        """Carry out a call.

        Args:
            call: From a function of `calls`.
            timeout: Seconds in all; None: those of the client.

        Raises:
            KeybearerError: It failed.
        """
        tries = _Tries(call, timeout or self._timeout, self._try_timeout, time.monotonic())
        while True:
            try:
                response = self._try(call, tries.begin(time.monotonic()))
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                failure.__cause__ = error
                pause = tries.pause_after(failure, time.monotonic())
            else:
                return _read(call, response)
            time.sleep(pause)

    def iterate(self, pages: Pages[_R]) -> Iterator[_R]:
        """Yield the items of a list, fetching a page when it is needed.

        Raises:
            KeybearerError: A page could not be fetched.
        """
        items, page_token = self.run(pages.at(""))
        yield from items
        while page_token:
            items, page_token = self.run(pages.at(page_token))
            yield from items

    def _try(self, call: Call[Any], timeout: float) -> Any:
        metadata: tuple[tuple[str, str], ...] = ()
        if call.needs_token and self.token_source is not None:
            metadata = (authorization_of(current_token(self.token_source)),)
        return self._stub(call)(call.request, timeout=timeout, metadata=metadata)

    def _stub(self, call: Call[Any]) -> Callable[..., Any]:
        with self._lock:
            if self._channel is None or self._pid != os.getpid():
                self._channel, self._pid, self._stubs = self._open(), os.getpid(), {}
            if call.path not in self._stubs:
                self._stubs[call.path] = self._channel.unary_unary(
                    call.path,
                    request_serializer=type(call.request).SerializeToString,
                    response_deserializer=call.response_type.FromString,
                )
            stub: Callable[..., Any] = self._stubs[call.path]
        return stub

    create_account = _method(requests.create_account)
    get_account = _method(requests.get_account)
    list_accounts = _list_method(requests.list_accounts)
    disable_account = _method(requests.disable_account)
    enable_account = _method(requests.enable_account)
    create_user = _method(requests.create_user)
    get_user = _method(requests.get_user)
    list_users = _list_method(requests.list_users)
    update_user = _method(requests.update_user)
    delete_user = _method(requests.delete_user)
    create_api_key = _method(requests.create_api_key)
    get_api_key = _method(requests.get_api_key)
    list_api_keys = _list_method(requests.list_api_keys)
    update_api_key = _method(requests.update_api_key)
    disable_api_key = _method(requests.disable_api_key)
    enable_api_key = _method(requests.enable_api_key)
    rotate_api_key = _method(requests.rotate_api_key)
    revoke_api_key = _method(requests.revoke_api_key)
    validate_token = _method(requests.validate_token)
    batch_validate_tokens = _method(requests.batch_validate_tokens)
    who_am_i = _method(requests.who_am_i)
    rotate_self = _method(requests.rotate_self)
    revoke_token = _method(requests.revoke_token)
    list_audit_events = _list_method(requests.list_audit_events)


class AsyncKeybearerClient:
    """A client for asyncio, for use within one event loop. As KeybearerClient, but for `await`.

    The methods that list answer asynchronous iterators: `async for key in client.list_api_keys()`.
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
        """Where it connects to."""
        self.token_source = token
        """Where its credential comes from."""
        self._open = functools.partial(open_async_channel, address, tls=tls, options=options)
        self._timeout = timeout
        self._try_timeout = try_timeout
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[str, Any] = {}

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
        """Close the connection. A later call opens a new one."""
        channel, self._channel, self._stubs = self._channel, None, {}
        if channel is not None:
            await channel.close()

    async def run(self, call: Call[_R], *, timeout: float | None = None) -> _R:  # noqa: ASYNC109 - the deadline travels with the call
        """Carry out a call; as KeybearerClient.run."""
        tries = _Tries(call, timeout or self._timeout, self._try_timeout, time.monotonic())
        while True:
            try:
                response = await self._try(call, tries.begin(time.monotonic()))
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                failure.__cause__ = error
                pause = tries.pause_after(failure, time.monotonic())
            else:
                return _read(call, response)
            await asyncio.sleep(pause)

    async def iterate(self, pages: Pages[_R]) -> AsyncIterator[_R]:
        """Yield the items of a list, fetching a page when it is needed.

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

    async def _try(self, call: Call[Any], seconds: float) -> Any:
        metadata = grpc.aio.Metadata()
        if call.needs_token and self.token_source is not None:
            metadata.add(*authorization_of(await current_token_async(self.token_source)))
        return await self._stub(call)(call.request, timeout=seconds, metadata=metadata)

    def _stub(self, call: Call[Any]) -> Callable[..., Any]:
        if self._channel is None:
            self._channel = self._open()
        if call.path not in self._stubs:
            self._stubs[call.path] = self._channel.unary_unary(
                call.path,
                request_serializer=type(call.request).SerializeToString,
                response_deserializer=call.response_type.FromString,
            )
        stub: Callable[..., Any] = self._stubs[call.path]
        return stub

    create_account = _async_method(requests.create_account)
    get_account = _async_method(requests.get_account)
    list_accounts = _async_list_method(requests.list_accounts)
    disable_account = _async_method(requests.disable_account)
    enable_account = _async_method(requests.enable_account)
    create_user = _async_method(requests.create_user)
    get_user = _async_method(requests.get_user)
    list_users = _async_list_method(requests.list_users)
    update_user = _async_method(requests.update_user)
    delete_user = _async_method(requests.delete_user)
    create_api_key = _async_method(requests.create_api_key)
    get_api_key = _async_method(requests.get_api_key)
    list_api_keys = _async_list_method(requests.list_api_keys)
    update_api_key = _async_method(requests.update_api_key)
    disable_api_key = _async_method(requests.disable_api_key)
    enable_api_key = _async_method(requests.enable_api_key)
    rotate_api_key = _async_method(requests.rotate_api_key)
    revoke_api_key = _async_method(requests.revoke_api_key)
    validate_token = _async_method(requests.validate_token)
    batch_validate_tokens = _async_method(requests.batch_validate_tokens)
    who_am_i = _async_method(requests.who_am_i)
    rotate_self = _async_method(requests.rotate_self)
    revoke_token = _async_method(requests.revoke_token)
    list_audit_events = _async_list_method(requests.list_audit_events)
