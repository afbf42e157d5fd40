"""Uses every part of the client library; run by an interpreter with the oldest libraries.

It has no pytest and none of this repository's development tools.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import google.protobuf
import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2

from keybearer import (
    AccessRule,
    AsyncAuthInterceptor,
    AsyncKeybearerClient,
    AuthInterceptor,
    KeybearerClient,
    Outcome,
    Role,
    credentials,
    current_identity,
    errors,
)
from keybearer.access import rules_of
from keybearer.testing import FakeKeybearer
from keybearer.v1 import (
    access_pb2,
    account_service_pb2_grpc,
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    token_service_pb2_grpc,
    user_service_pb2_grpc,
)
from keybearer.web import AuthMiddleware, WSGIAuthMiddleware

STUBS = (
    account_service_pb2_grpc,
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    token_service_pb2_grpc,
    user_service_pb2_grpc,
)
Message = wrappers_pb2.StringValue
CODEC: Any = (Message.FromString, Message.SerializeToString)
METHODS = {"Get": (False, False), "List": (False, True), "Put": (True, False), "Chat": (True, True)}


def _declare() -> None:
    """Load a service with access rules."""
    proto = descriptor_pb2.FileDescriptorProto(
        name="floor.proto",
        package="floor",
        dependency=["google/protobuf/wrappers.proto", "keybearer/v1/access.proto"],
        syntax="proto3",
    )
    service = proto.service.add(name="Floor")
    for name, (client_streaming, server_streaming) in METHODS.items():
        method = service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=client_streaming,
            server_streaming=server_streaming,
        )
        method.options.Extensions[access_pb2.access].role = access_pb2.ROLE_DEVELOPER
    descriptor_pool.Default().Add(proto)


class Handlers:
    """For threads."""

    def get(self, request: Message, context: Any) -> Message:
        return Message(value=current_identity().owner_id)

    def list(self, request: Message, context: Any) -> Iterator[Message]:
        yield Message(value=current_identity().owner_id)

    def put(self, requests: Iterator[Message], context: Any) -> Message:
        assert [request.value for request in requests] == ["hello"]
        return Message(value=current_identity().owner_id)

    def chat(self, requests: Iterator[Message], context: Any) -> Iterator[Message]:
        for _ in requests:
            yield Message(value=current_identity().owner_id)


class AsyncHandlers:
    """For asyncio."""

    async def get(self, request: Message, context: Any) -> Message:
        return Message(value=current_identity().owner_id)

    async def list(self, request: Message, context: Any) -> AsyncIterator[Message]:
        yield Message(value=current_identity().owner_id)

    async def put(self, requests: AsyncIterator[Message], context: Any) -> Message:
        assert [request.value async for request in requests] == ["hello"]
        return Message(value=current_identity().owner_id)

    async def chat(self, requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Message]:
        async for _ in requests:
            yield Message(value=current_identity().owner_id)


def _service(of: Any) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "floor.Floor",
        {
            "Get": grpc.unary_unary_rpc_method_handler(of.get, *CODEC),
            "List": grpc.unary_stream_rpc_method_handler(of.list, *CODEC),
            "Put": grpc.stream_unary_rpc_method_handler(of.put, *CODEC),
            "Chat": grpc.stream_stream_rpc_method_handler(of.chat, *CODEC),
        },
    )


def _calls(channel: Any) -> Iterator[Any]:
    """Begin a call of every arity."""
    message, codec = Message(value="hello"), CODEC[::-1]
    yield channel.unary_unary("/floor.Floor/Get", *codec)(message)
    yield channel.unary_stream("/floor.Floor/List", *codec)(message)
    yield channel.stream_unary("/floor.Floor/Put", *codec)(iter([message]))
    yield channel.stream_stream("/floor.Floor/Chat", *codec)(iter([message]))


def _threads(keybearer: FakeKeybearer, token: str) -> None:
    owner = keybearer.identity_of(token).owner_id
    server = grpc.server(
        futures.ThreadPoolExecutor(4), interceptors=[AuthInterceptor(keybearer.verifier())]
    )
    server.add_generic_rpc_handlers((_service(Handlers()),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as plain:
        bearing = grpc.intercept_channel(plain, credentials.bearer_interceptor(token))
        for call in _calls(bearing):
            answer = next(call) if hasattr(call, "__next__") else call
            assert answer.value == owner
        try:
            next(_calls(plain))
        except grpc.RpcError as error:
            denied = errors.from_rpc_error(error)
        assert isinstance(denied, errors.CredentialsMissingError)
    server.stop(None).wait()

    with KeybearerClient(keybearer.address, token=keybearer.validator_token, tls=False) as client:
        assert client.who_am_i().identity.effective_role is Role.VALIDATOR
        assert client.validate_token(token).valid
        outcomes = [one.outcome for one in client.batch_validate_tokens([token, "nothing"])]
        assert outcomes == [Outcome.VALID, Outcome.NOT_FOUND]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        return [current_identity().owner_id.encode()]

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "HTTP_AUTHORIZATION": f"Bearer {token}",
    }
    guarded = WSGIAuthMiddleware(app, keybearer.verifier())
    assert b"".join(guarded(environ, None)) == owner.encode()  # type: ignore[arg-type]


async def _asyncio(keybearer: FakeKeybearer, token: str) -> None:
    owner = keybearer.identity_of(token).owner_id
    server = grpc.aio.server(interceptors=[AsyncAuthInterceptor(keybearer.async_verifier())])
    server.add_generic_rpc_handlers((_service(AsyncHandlers()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    interceptors = credentials.async_bearer_interceptors(token)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors) as channel:
        for call in _calls(channel):
            answer = (await anext(aiter(call))) if hasattr(call, "__aiter__") else await call
            assert answer.value == owner
    await server.stop(None)

    async with AsyncKeybearerClient(
        keybearer.address, token=keybearer.validator_token, tls=False
    ) as client:
        assert (await client.validate_token(token)).valid

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(current_identity().owner_id)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"authorization", f"Bearer {token}".encode())],
    }
    await AuthMiddleware(app, keybearer.async_verifier())(scope, send, send)  # type: ignore[arg-type]
    assert sent == [owner]


def main() -> None:
    """Use everything; exit with 0 when it works."""
    assert importlib.util.find_spec("pytest") is None, "this is to run without pytest"
    _declare()
    rules = rules_of(api_key_service_pb2.DESCRIPTOR.services_by_name.values())
    assert rules["/keybearer.v1.ApiKeyService/CreateApiKey"] == AccessRule(role=Role.ADMIN)
    assert all(stub.GRPC_GENERATED_VERSION for stub in STUBS)
    with FakeKeybearer() as keybearer:
        token = keybearer.issue()
        _threads(keybearer, token)
        asyncio.run(_asyncio(keybearer, token))
    sys.stdout.write(f"grpcio {grpc.__version__} protobuf {google.protobuf.__version__}\n")


if __name__ == "__main__":
    main()
