"""Functions of `requests` as methods of the clients, with their signatures and docstrings."""

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, get_args

from keybearer._client.requests import Pages, Request

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


class Runner(Protocol):
    """A client for threads."""

    def run(self, request: Request[ResultT]) -> ResultT:
        """Make one call and return its result."""
        ...

    def iterate(self, pages: Pages[ResultT]) -> Iterator[ResultT]:
        """Return an iterator over the items of a list."""
        ...


class AsyncRunner(Protocol):
    """A client for asyncio."""

    async def run(self, request: Request[ResultT]) -> ResultT:
        """Make one call and return its result."""
        ...

    def iterate(self, pages: Pages[ResultT]) -> AsyncIterator[ResultT]:
        """Return an iterator over the items of a list."""
        ...


def method(
    build: Callable[ParamsT, Request[ResultT]],
) -> Callable[Concatenate[Runner, ParamsT], ResultT]:
    """Return a method that makes the request of `build` and returns its result."""

    def run(self: Runner, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        return self.run(build(*args, **kwargs))

    _copy_signature(run, build)
    return run


def list_method(
    build: Callable[ParamsT, Pages[ResultT]],
) -> Callable[Concatenate[Runner, ParamsT], Iterator[ResultT]]:
    """Return a method that iterates over the list of `build`."""

    def iterate(
        self: Runner, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs
    ) -> Iterator[ResultT]:
        return self.iterate(build(*args, **kwargs))

    _copy_signature(iterate, build, Iterator)
    return iterate


def async_method(
    build: Callable[ParamsT, Request[ResultT]],
) -> Callable[Concatenate[AsyncRunner, ParamsT], Coroutine[Any, Any, ResultT]]:
    """Return a coroutine method that makes the request of `build` and returns its result."""

    async def run(self: AsyncRunner, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        return await self.run(build(*args, **kwargs))

    _copy_signature(run, build)
    return run


def async_list_method(
    build: Callable[ParamsT, Pages[ResultT]],
) -> Callable[Concatenate[AsyncRunner, ParamsT], AsyncIterator[ResultT]]:
    """Return a method that iterates asynchronously over the list of `build`."""

    def iterate(
        self: AsyncRunner, /, *args: ParamsT.args, **kwargs: ParamsT.kwargs
    ) -> AsyncIterator[ResultT]:
        return self.iterate(build(*args, **kwargs))

    _copy_signature(iterate, build, AsyncIterator)
    return iterate


def _copy_signature(
    wrapper: Callable[..., Any], build: Callable[..., Any], iterator: Any = None
) -> None:
    """Give a method the name, the docstring and, after `self`, the signature of its function.

    Args:
        wrapper: The method.
        build: The function; its result type is `Request[X]` or `Pages[X]`.
        iterator: The type of iterator that the method returns, for `Pages[X]`.
    """
    functools.update_wrapper(wrapper, build)
    # `inspect` would follow it and take the first parameter of `build` for `self`.
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    signature = inspect.signature(build)
    (result,) = get_args(signature.return_annotation)
    client = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    wrapper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[client, *signature.parameters.values()],
        return_annotation=iterator[result] if iterator else result,
    )
