"""A guarded service for tests: a method for each rule and each arity, on both kinds of server."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import error_details_pb2, status_pb2

from keybearer import AccessRule, Role, current_identity
from keybearer.v1 import access_pb2

Message = wrappers_pb2.StringValue
Handler = Any
"""A grpc.RpcMethodHandler, which takes its type arguments in stubs only."""

RULES: dict[str, AccessRule | None] = {
    "Any": AccessRule(),
    "Developer": AccessRule(role=Role.DEVELOPER),
    "Admin": AccessRule(role=Role.ADMIN),
    "Read": AccessRule(scopes=("clusters.read",)),
    "Validators": AccessRule(only_roles=(Role.VALIDATOR,)),
    "Public": AccessRule(public=True),
    "Operators": AccessRule(operator_only=True),
    "Unruled": None,
    "Lines": AccessRule(role=Role.DEVELOPER),
    "Collect": AccessRule(role=Role.DEVELOPER),
    "Chat": AccessRule(role=Role.DEVELOPER),
}
"""The methods of test.guarded.Demo and their rules. The last three are streams."""
STREAMS = {"Lines": (False, True), "Collect": (True, False), "Chat": (True, True)}


def _describe() -> ServiceDescriptor:
    """Load the service's proto, with its access rules, into the pool of this process."""
    proto = descriptor_pb2.FileDescriptorProto(
        name="test/guarded.proto",
        package="test.guarded",
        dependency=["google/protobuf/wrappers.proto", "keybearer/v1/access.proto"],
        syntax="proto3",
    )
    for service_name in ("Demo", "Complete"):
        service = proto.service.add(name=service_name)
        for name, rule in RULES.items():
            if service_name == "Complete" and (rule is None or rule.operator_only):
                continue
            client_streaming, server_streaming = STREAMS.get(name, (False, False))
            method = service.method.add(
                name=name,
                input_type=".google.protobuf.StringValue",
                output_type=".google.protobuf.StringValue",
                client_streaming=client_streaming,
                server_streaming=server_streaming,
            )
            if rule is not None:
                access = method.options.Extensions[access_pb2.access]
                access.SetInParent()
                access.role = rule.role.value  # type: ignore[assignment]
                access.scopes.extend(rule.scopes)
                access.public = rule.public
                access.only_roles.extend(role.value for role in rule.only_roles)  # type: ignore[misc]
                access.operator_only = rule.operator_only
    pool = descriptor_pool.Default()
    pool.Add(proto)
    return pool.FindServiceByName("test.guarded.Demo")


DEMO = _describe()
COMPLETE = descriptor_pool.Default().FindServiceByName("test.guarded.Complete")
"""The same without the two methods that cannot be guarded."""


@dataclass
class Reached:
    """What the handlers saw."""

    calls: list[str] = field(default_factory=list)


def _who(public: str) -> str:
    try:
        return current_identity().key_id
    except LookupError:
        return public


def handlers(reached: Reached) -> dict[str, Handler]:
    """Return handlers for threads; each response is the caller's key id and the request."""

    def unary(name: str) -> Callable[[Message, grpc.ServicerContext], Message]:
        def answer(request: Message, context: grpc.ServicerContext) -> Message:
            reached.calls.append(name)
            return Message(value=f"{_who('nobody')} {request.value}")

        return answer

    def lines(request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        reached.calls.append("Lines")
        for part in request.value.split():
            yield Message(value=f"{_who('nobody')} {part}")

    def collect(requests: Iterator[Message], context: grpc.ServicerContext) -> Message:
        reached.calls.append("Collect")
        return Message(value=f"{_who('nobody')} {' '.join(request.value for request in requests)}")

    def chat(requests: Iterator[Message], context: grpc.ServicerContext) -> Iterator[Message]:
        reached.calls.append("Chat")
        for request in requests:
            yield Message(value=f"{_who('nobody')} {request.value}")

    return _handlers(unary, lines, collect, chat)


def async_handlers(reached: Reached) -> dict[str, Handler]:
    """The same for asyncio."""

    def unary(name: str) -> Callable[[Message, Any], Any]:
        async def answer(request: Message, context: Any) -> Message:
            reached.calls.append(name)
            return Message(value=f"{_who('nobody')} {request.value}")

        return answer

    async def lines(request: Message, context: Any) -> AsyncIterator[Message]:
        reached.calls.append("Lines")
        for part in request.value.split():
            yield Message(value=f"{_who('nobody')} {part}")

    async def collect(requests: AsyncIterator[Message], context: Any) -> Message:
        reached.calls.append("Collect")
        parts = [request.value async for request in requests]
        return Message(value=f"{_who('nobody')} {' '.join(parts)}")

    async def chat(requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Message]:
        reached.calls.append("Chat")
        async for request in requests:
            yield Message(value=f"{_who('nobody')} {request.value}")

    return _handlers(unary, lines, collect, chat)


def _handlers(
    unary: Callable[[str], Any], lines: Any, collect: Any, chat: Any
) -> dict[str, Handler]:
    codec = (Message.FromString, Message.SerializeToString)
    made = {
        name: grpc.unary_unary_rpc_method_handler(unary(name), *codec)
        for name in RULES
        if name not in STREAMS
    }
    made["Lines"] = grpc.unary_stream_rpc_method_handler(lines, *codec)
    made["Collect"] = grpc.stream_unary_rpc_method_handler(collect, *codec)
    made["Chat"] = grpc.stream_stream_rpc_method_handler(chat, *codec)
    return made


def demo(methods: dict[str, Handler], name: str = "test.guarded.Demo") -> grpc.GenericRpcHandler:
    """Bundle handlers as a service."""
    return grpc.method_handlers_generic_handler(name, methods)


@contextlib.contextmanager
def serving(
    interceptors: Sequence[Any],
    *services: grpc.GenericRpcHandler,
    workers: int = 8,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[str]:
    """Run a grpc.server on a free port, and yield its address."""
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=workers),
        interceptors=list(interceptors),
        options=(("grpc.so_reuseport", 0),),
    )
    server.add_generic_rpc_handlers(services)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def calling(
    interceptors: Sequence[Any], *services: grpc.GenericRpcHandler, workers: int = 8
) -> Iterator[grpc.Channel]:
    """Run a grpc.server, and yield a channel to it."""
    with (
        serving(interceptors, *services, workers=workers) as address,
        grpc.insecure_channel(address) as channel,
    ):
        yield channel


def failure_of(call: Callable[[], Any]) -> grpc.RpcError:
    """Make a call that must fail, and return its error."""
    try:
        response = call()
        if hasattr(response, "__next__"):
            list(response)
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call did not fail")


def until(condition: Callable[[], bool], timeout: float = 10) -> None:
    """Wait for a condition that another thread fulfils."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


async def until_async(condition: Callable[[], bool], timeout: float = 10) -> None:  # noqa: ASYNC109
    """Wait for a condition that another task or thread fulfils."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving_async(
    interceptors: Sequence[Any],
    *services: grpc.GenericRpcHandler,
    pool: futures.Executor | None = None,
) -> AsyncIterator[str]:
    """Run a grpc.aio.server on a free port, and yield its address."""
    server = grpc.aio.server(
        migration_thread_pool=pool,
        interceptors=interceptors,
        options=(("grpc.so_reuseport", 0),),
    )
    server.add_generic_rpc_handlers(services)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class LoopThread:
    """An event loop on a thread, for servers that run beside a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any, timeout: float = 20) -> Any:
        """Run a coroutine on the loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def close(self) -> None:
        """Stop the loop."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass(frozen=True)
class Details:
    """What a status carries."""

    reason: str = ""
    domain: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    field_names: tuple[str, ...] = ()
    has_retry: bool = False
    challenge: str = ""


def details_of(error: grpc.RpcError) -> Details:
    """Read the details of a failed call, independently of the client library."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    has_retry = False
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        has_retry = has_retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    if status.details:
        assert status.code == error.code().value[0]
        assert status.message == error.details()
    return Details(
        info.reason,
        info.domain,
        dict(info.metadata),
        tuple(violation.field for violation in bad.field_violations),
        has_retry,
        trailers.get("www-authenticate", ""),
    )
