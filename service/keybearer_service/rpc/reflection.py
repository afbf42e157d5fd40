"""Server reflection, v1 and v1alpha: what is served, told to anybody who may connect."""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

from keybearer.access import AccessRule
from keybearer_service.domain.errors import StreamEnded
from keybearer_service.domain.rate_limits import ConcurrencyLimit
from keybearer_service.rpc.executors import CallExecutor
from keybearer_service.rpc.pipeline import MethodSpec
from keybearer_service.rpc.requests import MessageStream
from keybearer_service.usecases.call_context import CallContext

SERVICES = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""grpcio serves v1alpha alone; tools ask for v1 first. The messages are the same on the wire."""
SPECS = tuple(
    MethodSpec(
        path=f"/{name}/ServerReflectionInfo",
        rule=AccessRule(public=True),
        request=pb.ServerReflectionRequest,
        response=pb.ServerReflectionResponse,
        is_stream=True,
    )
    for name in SERVICES
)
MAX_STREAMS = 100
"""Open streams in all; beyond, RESOURCE_EXHAUSTED. Tools keep theirs open for seconds."""
MAX_STREAMS_OF_A_PEER = 25
MAX_QUEUED = 100
"""Answers that wait for a slow reader; beyond, its stream is cut off."""


class ReflectionServicer:
    """Answers each message on an executor, so that an idle stream holds no thread."""

    def __init__(self, services: Sequence[str], executor: CallExecutor) -> None:
        """Take the names of what is served."""
        self._library: Any = reflection.ReflectionServicer(services, pool=_Symbols())
        self._executor = executor
        self._limit = ConcurrencyLimit(in_all=MAX_STREAMS, of_one=MAX_STREAMS_OF_A_PEER)
        self._open: set[MessageStream] = set()

    def ServerReflectionInfo(self, stream: MessageStream, call: CallContext) -> None:  # noqa: N802 - named by the proto
        """Answer what a tool asks."""
        peer = call.peer
        self._limit.acquire(peer)
        self._open.add(stream)

        def leave() -> None:
            self._limit.release(peer)
            self._open.discard(stream)

        stream.listen(self._answer_on(stream), leave)

    def close(self) -> None:
        """End all streams, so that a server that stops need not wait for them."""
        for stream in list(self._open):
            stream.end(StreamEnded("the server stops"))

    def _answer_on(self, stream: MessageStream) -> Callable[[Any], None]:
        def take(request: Any) -> None:
            self._executor.submit(self._answer, stream, request)

        return take

    def _answer(self, stream: MessageStream, request: Any) -> None:
        if stream.queued >= MAX_QUEUED:
            stream.cancel()
            return
        for response in self._library.ServerReflectionInfo(iter([request]), None):
            stream.send(response)


class _Symbols:
    """The descriptor pool, where methods are found too.

    protobuf's own finds the file of a service and not that of its method, which grpcurl asks for
    when it describes one.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - the library's name
        """Return the file that declares a symbol.

        Raises:
            KeyError: There is none.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return found.file
