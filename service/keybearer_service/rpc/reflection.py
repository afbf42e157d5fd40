"""Server reflection, v1 and v1alpha: what is served, for everybody who may connect."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha import reflection_pb2 as pb

from keybearer.access import AccessRule
from keybearer_service.domain.errors import Overloaded, StreamEnded
from keybearer_service.domain.rate_limits import ConcurrencyLimit
from keybearer_service.net.bounds import peer_of
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
"""Questions and answers of one stream that wait; beyond, it is ended."""


class ReflectionServicer:
    """Answers each message on an executor, so that an idle stream holds no thread."""

    def __init__(self, services: Sequence[str], executor: CallExecutor) -> None:
        self._library: Any = reflection.ReflectionServicer(services, pool=_Symbols())
        self._executor = executor
        self._limit = ConcurrencyLimit(in_all=MAX_STREAMS, of_one=MAX_STREAMS_OF_A_PEER)
        self._open: set[_Exchange] = set()

    def ServerReflectionInfo(self, stream: MessageStream, call: CallContext) -> None:  # noqa: N802 - named by the proto
        """Describe services, messages and files to a tool."""
        peer = peer_of(call.peer)
        self._limit.acquire(peer)
        exchange = _Exchange(stream, self._library, self._executor)
        self._open.add(exchange)

        def leave() -> None:
            self._limit.release(peer)
            self._open.discard(exchange)

        stream.listen(exchange.take, leave, exchange.half_close)

    def close(self) -> None:
        """End all streams, so that a server that stops need not wait for them."""
        for exchange in list(self._open):
            exchange.stream.end(StreamEnded("the server stops"))


class _Exchange:
    """One open stream: at most one of its messages is worked on at a time."""

    def __init__(self, stream: MessageStream, library: Any, executor: CallExecutor) -> None:
        self.stream = stream
        self._library = library
        self._executor = executor
        self._lock = threading.Lock()
        self._waiting: deque[Any] = deque()
        self._is_working = False
        self._is_half_closed = False

    def take(self, request: Any) -> None:
        if len(self._waiting) + self.stream.queued >= MAX_QUEUED:
            raise Overloaded("too many questions at once; read the answers first")
        with self._lock:
            self._waiting.append(request)
            self._work()

    def half_close(self) -> None:
        with self._lock:
            self._is_half_closed = True
            self._work()

    def _work(self) -> None:
        if not self._is_working:
            self._is_working = True
            self._executor.submit(self._answer_all)

    def _answer_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_working = False
                    break
                request = self._waiting.popleft()
            try:
                for response in self._library.ServerReflectionInfo(iter([request]), None):
                    self.stream.send(response)
            except Exception as error:  # noqa: BLE001 - it becomes the status of the stream
                self.stream.end(error)
        if self._is_half_closed:
            self.stream.finish()


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
