"""Health and reflection: served to anybody, without a judgement."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import grpc

from keybearer_service.domain.errors import CallAbandoned, ServiceError
from keybearer_service.rpc.executors import CallExecutor, MessageWatchdog


class ExemptMethods(grpc.ServerInterceptor):
    """Gives the unary methods of libraries an executor, and bounds the wait for their message.

    `intercept_service` runs on grpc's one serving thread and only picks the handler, made once for
    each method.
    """

    def __init__(self, executors: Mapping[str, CallExecutor], watchdog: MessageWatchdog) -> None:
        """Take the threads of each method, by path."""
        self._executors = executors
        self._watchdog = watchdog
        self._handlers: dict[str, Any] = {}

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Return the handler of a method; None, for UNIMPLEMENTED, of an unknown one."""
        method = handler_call_details.method
        found = self._handlers.get(method)
        if found is not None:
            return found
        handler = continuation(handler_call_details)
        executor = self._executors.get(method)
        if handler is None or executor is None or handler.request_streaming:
            return handler
        self._handlers[method] = self._bounded(handler, executor)
        return self._handlers[method]

    def _bounded(self, handler: Any, executor: CallExecutor) -> Any:
        behaviour = cast("Callable[..., Any]", handler.unary_unary or handler.unary_stream)

        def served(requests: Iterator[Any], context: grpc.ServicerContext, *callback: Any) -> Any:
            try:
                request = self._watchdog.first_message(requests, context, executor)
            except (ServiceError, CallAbandoned):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "exactly one message is needed")
            return behaviour(request, context, *callback)

        vars(served).update(vars(behaviour))
        served.experimental_thread_pool = executor  # type: ignore[attr-defined]
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(
            served,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
