"""gRPC method handlers: taken apart, wrapped, and remembered. For both kinds of server."""

import functools
from collections.abc import Callable
from typing import Any, Final

import grpc

Behaviour = Callable[..., Any]
Deserializer = Callable[[bytes], Any]

DEFAULT_REJUDGE_AFTER: Final = 30.0
"""Seconds after which the credential of an open stream is judged again."""
_MAX_KEPT_HANDLERS: Final = 4096
_READ_BY_GRPC: Final = ("experimental_thread_pool", "experimental_non_blocking")
"""Attributes of a behaviour that grpc reads, also where they belong to its class."""


class GuardedHandlers:
    """Wraps each handler once.

    Args:
        wrap: Returns the guarded handler for the path of a method and its handler.
    """

    def __init__(self, wrap: Callable[[str, Any], Any]) -> None:
        self._wrap = wrap
        self._kept: dict[str, tuple[Any, Any]] = {}

    def of(self, path: str, handler: Any) -> Any:
        """Return the guarded handler of a method."""
        kept = self._kept.get(path)
        if kept is not None and kept[0] is handler:
            return kept[1]
        guarded = self._wrap(path, handler)
        # Some servers create handlers and paths as calls come in.
        if len(self._kept) >= _MAX_KEPT_HANDLERS:
            self._kept.clear()
        self._kept[path] = (handler, guarded)
        return guarded


def split_handler(handler: Any) -> tuple[Callable[..., Any], Behaviour]:
    """Return the function that makes handlers of the same arity, and the behaviour."""
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


def copy_attributes(wrapper: Behaviour, behaviour: Behaviour) -> Behaviour:
    """Give a wrapper the name and the attributes of the behaviour, and return the wrapper."""
    functools.update_wrapper(wrapper, behaviour)
    for name in _READ_BY_GRPC:
        if hasattr(behaviour, name):
            setattr(wrapper, name, getattr(behaviour, name))
    return wrapper
