"""From grpcio to the pipeline: methods of ours as handlers of a `grpc.Server`.

Every method is served as if its requests were a stream: grpc then calls us as soon as the headers
are there, so that the caller is judged before its message is waited for, and we do the waiting.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn, cast

import grpc
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from keybearer._wire.peer import host_of
from keybearer_service.domain.errors import Overloaded
from keybearer_service.gateway.status import status_of
from keybearer_service.rpc.bidi import BidiStream
from keybearer_service.rpc.executors import CallExecutor, HereAndNow, MessageWatchdog
from keybearer_service.rpc.pipeline import MethodSpec, StreamMethod, UnaryMethod
from keybearer_service.rpc.requests import Metadata

_HERE_AND_NOW = HereAndNow()


class ServedMethod(NamedTuple):
    """A method on a port."""

    handler: Any
    executor: CallExecutor
    refusal: Any
    """The handler of calls that find no room in the executor."""


class MethodHandlers(grpc.GenericRpcHandler):
    """The methods of ours on a port, found by their path in one step."""

    def __init__(
        self, methods: Mapping[str, ServedMethod], on_overload: Callable[[str], None]
    ) -> None:
        """Create the handlers.

        Args:
            methods: By their path.
            on_overload: Called with the name of the executor that has no room for a call.
        """
        self._methods = methods
        self._on_overload = on_overload

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method; None, for UNIMPLEMENTED, when it is not ours."""
        served = self._methods.get(handler_call_details.method)
        if served is None:
            return None
        if served.executor.has_room:
            return served.handler
        self._on_overload(served.executor.name)
        return served.refusal


def refusing_handler(spec: MethodSpec) -> Any:
    """Return a handler that answers every call with OVERLOADED, without a thread."""
    status = status_of(Overloaded())

    def behaviour(_messages: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
        _abort(context, status)

    behaviour.experimental_thread_pool = _HERE_AND_NOW  # type: ignore[attr-defined]
    if spec.is_stream:
        return grpc.stream_stream_rpc_method_handler(behaviour)
    return grpc.stream_unary_rpc_method_handler(behaviour)


def unary_handler(method: UnaryMethod, executor: CallExecutor, watchdog: MessageWatchdog) -> Any:
    """Return the handler of a method with one message each way."""

    def behaviour(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        _refuse_private(context)
        answer = method.answer(GrpcRequest(context, messages, executor, watchdog))
        if isinstance(answer, Status):
            _abort(context, answer)
        return answer

    behaviour.experimental_thread_pool = executor  # type: ignore[attr-defined]
    return grpc.stream_unary_rpc_method_handler(behaviour)


def stream_handler(method: StreamMethod, executor: CallExecutor, watchdog: MessageWatchdog) -> Any:
    """Return the handler of a method with messages each way."""

    def behaviour(
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
        send_status: Callable[[None], None],
    ) -> None:
        _refuse_private(context)
        request = GrpcStreamRequest(context, messages, executor, watchdog, send_status)
        status = method.open(request)
        if status is not None:
            _abort(context, status)

    behaviour.experimental_thread_pool = executor  # type: ignore[attr-defined]
    behaviour.experimental_non_blocking = True  # type: ignore[attr-defined]
    return grpc.stream_stream_rpc_method_handler(behaviour)


class GrpcRequest:
    """A call that came in over grpc."""

    __slots__ = ("_context", "_executor", "_messages", "_watchdog")

    def __init__(
        self,
        context: grpc.ServicerContext,
        messages: Iterator[bytes],
        executor: CallExecutor,
        watchdog: MessageWatchdog,
    ) -> None:
        self._context = context
        self._messages = messages
        self._executor = executor
        self._watchdog = watchdog

    @property
    def metadata(self) -> Metadata:
        """The metadata of the call."""
        return self._context.invocation_metadata()

    @property
    def peer(self) -> str:
        """The address of the other end, without its port; the family where it has none."""
        return host_of(self._context.peer())

    @property
    def is_alive(self) -> bool:
        """Whether the call is neither cancelled nor past its deadline."""
        remaining = self.remaining_s
        return self._context.is_active() and (remaining is None or remaining > 0)

    @property
    def remaining_s(self) -> float | None:
        """How many seconds the caller may still wait; None without a deadline."""
        # The type stubs do not say that it may be None.
        return cast("float | None", self._context.time_remaining())

    def message(self) -> bytes:
        """Wait for the message; see `MessageWatchdog.first_message`."""
        return self._watchdog.first_message(self._messages, self._context, self._executor)


class GrpcStreamRequest(GrpcRequest):
    """A call with messages each way that came in over grpc."""

    __slots__ = ("_send_status",)

    def __init__(
        self,
        context: grpc.ServicerContext,
        messages: Iterator[bytes],
        executor: CallExecutor,
        watchdog: MessageWatchdog,
        send_status: Callable[[None], None],
    ) -> None:
        super().__init__(context, messages, executor, watchdog)
        self._send_status = send_status

    def open(
        self,
        *,
        parse: Callable[[bytes], Any],
        serialize: Callable[[Any], bytes],
        status_of: Callable[[Exception], Status],
        on_left: Callable[[], None],
    ) -> BidiStream[Any, Any]:
        """Open the call as a stream; see `StreamRequest.open`."""
        context = self._context

        def conclude(error: Exception) -> None:
            status = rpc_status.to_status(status_of(error))
            context.set_trailing_metadata(status.trailing_metadata)
            context.set_code(status.code)
            context.set_details(status.details)

        return BidiStream(
            context,
            parse=parse,
            serialize=serialize,
            conclude=conclude,
            left=on_left,
            send_status=self._send_status,
            executor=self._executor,
        )


def is_private(context: grpc.ServicerContext) -> bool:
    """Return whether a call came over the private listener, whose credentials are local ones."""
    if context.peer() != "unix:":
        return False
    # Lists of bytes, which the type stubs do not say.
    facts: Mapping[str, Any] = context.auth_context()
    return list(facts.get("transport_security_type", ())) == [b"local"]


def _refuse_private(context: grpc.ServicerContext) -> None:
    if is_private(context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "only liveness is asked here")


def _abort(context: grpc.ServicerContext, status: Status) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(status))
