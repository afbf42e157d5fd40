"""Where a caller's own token comes from: a string, or a callable that returns the current one."""

import inspect
from collections.abc import Awaitable, Callable

TokenSource = str | Callable[[], str]
"""A token, or a callable that returns the current one, so that the token may be rotated."""
AsyncTokenSource = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""The same for asyncio, where the callable may be a coroutine function."""


def current_token(source: TokenSource) -> str:
    """Return the current token of a source."""
    return source if isinstance(source, str) else source()


async def current_token_async(source: AsyncTokenSource) -> str:
    """Return the current token of a source that may have to be awaited."""
    if isinstance(source, str):
        return source
    token = source()
    return await token if inspect.isawaitable(token) else token
