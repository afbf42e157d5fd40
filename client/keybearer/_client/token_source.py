"""Where a caller's own token comes from: a string, or a callable that returns the current one."""

import inspect
from collections.abc import Awaitable, Callable

from keybearer._wire.arguments import kind_of
from keybearer._wire.bearer import authorization_of

TokenSource = str | Callable[[], str]
"""A token, or a callable that returns the current one, so that the token may be rotated."""
AsyncTokenSource = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""The same for asyncio, where the callable may be a coroutine function."""


def assert_token_source(source: object) -> None:
    """Reject what cannot be a source of tokens. The message does not repeat it.

    Raises:
        TypeError: It is neither a string nor callable.
        ValueError: It is a string that is empty or that no header can carry.
    """
    if isinstance(source, str):
        authorization_of(source)
    elif not callable(source):
        raise TypeError(
            f"token must be a str or a callable that returns one, not {kind_of(source)}"
        )


def current_token(source: TokenSource) -> str:
    """Return the current token of a source.

    Raises:
        TypeError: The callable returns no string.
    """
    return source if isinstance(source, str) else _checked(source())


async def current_token_async(source: AsyncTokenSource) -> str:
    """Return the current token of a source that may have to be awaited.

    Raises:
        TypeError: The callable returns no string.
    """
    if isinstance(source, str):
        return source
    token = source()
    return _checked(await token if inspect.isawaitable(token) else token)


def _checked(token: object) -> str:
    if not isinstance(token, str):
        raise TypeError(f"the callable given as token returned {kind_of(token)}, not a str")
    return token
