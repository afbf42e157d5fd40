"""Presenting a token with outgoing calls, of every arity, to a guarded service."""

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from client.support import Message, Reached, demo, handlers, serving
from client.test_channel import _pair
from keybearer import AuthInterceptor
from keybearer.credentials import (
    async_bearer_interceptors,
    bearer_call_credentials,
    bearer_interceptor,
)
from keybearer.testing import FakeKeybearer

METHOD = "/test.guarded.Demo/"
CODEC: Any = (Message.SerializeToString, Message.FromString)
ARITIES = {
    "unary_unary": "Any",
    "unary_stream": "Lines",
    "stream_unary": "Collect",
    "stream_stream": "Chat",
}


@pytest.fixture
def address(fake_keybearer: FakeKeybearer) -> Iterator[str]:
    """Where a guarded service listens in plaintext."""
    guarded = AuthInterceptor(fake_keybearer.verifier())
    with serving([guarded], demo(handlers(Reached()))) as address:
        yield address


def _call(channel: Any, arity: str) -> Any:
    message = Message(value="hello")
    request = iter([message]) if arity.startswith("stream") else message
    return getattr(channel, arity)(f"{METHOD}{ARITIES[arity]}", *CODEC)(request, timeout=10)


def _answer(response: Any) -> str:
    return str((next(response) if hasattr(response, "__next__") else response).value)


@pytest.mark.parametrize("arity", ARITIES)
def test_an_interceptor_presents_the_token_on_plaintext(
    arity: str, address: str, fake_keybearer: FakeKeybearer
) -> None:
    """The interceptor presents the token for every arity."""
    token = fake_keybearer.issue()
    with grpc.insecure_channel(address) as channel:
        bearing = grpc.intercept_channel(channel, bearer_interceptor(lambda: token))
        answer = _answer(_call(bearing, arity))
    assert answer == f"{fake_keybearer.identity_of(token).key_id} hello"


@pytest.mark.parametrize("arity", ARITIES)
def test_four_interceptors_present_the_token_for_asyncio(
    arity: str, address: str, fake_keybearer: FakeKeybearer
) -> None:
    """The asynchronous interceptors present the token for every arity."""
    token = fake_keybearer.issue()

    async def source() -> str:
        return token

    async def run() -> str:
        async with grpc.aio.insecure_channel(
            address, interceptors=async_bearer_interceptors(source)
        ) as channel:
            call = _call(channel, arity)
            if arity.endswith("stream"):
                return str((await anext(aiter(call))).value)
            return str((await call).value)

    assert asyncio.run(run()) == f"{fake_keybearer.identity_of(token).key_id} hello"


def test_call_credentials_present_the_token_on_tls(fake_keybearer: FakeKeybearer) -> None:
    """Call credentials of a TLS channel present the token with every call."""
    pair = _pair("service.example.com")
    token = fake_keybearer.issue()
    tls = grpc.ssl_channel_credentials(pair.certificate)
    credentials = grpc.composite_channel_credentials(tls, bearer_call_credentials(token))
    options = (("grpc.ssl_target_name_override", "service.example.com"),)
    server_credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
    guarded = AuthInterceptor(fake_keybearer.verifier())
    with (
        serving([guarded], demo(handlers(Reached())), credentials=server_credentials) as address,
        grpc.secure_channel(address, credentials, options) as channel,
    ):
        answer = _answer(_call(channel, "unary_unary"))
    assert answer == f"{fake_keybearer.identity_of(token).key_id} hello"


def test_a_call_keeps_the_authorization_it_brings(
    address: str, fake_keybearer: FakeKeybearer
) -> None:
    """A call with its own `authorization` keeps it: two would be rejected."""
    own = fake_keybearer.issue()
    metadata = (("authorization", f"Bearer {own}"),)

    async def run() -> str:
        async with grpc.aio.insecure_channel(
            address, interceptors=async_bearer_interceptors("other")
        ) as channel:
            call: Any = channel.unary_unary(f"{METHOD}Any", *CODEC)
            return str((await call(Message(), metadata=grpc.aio.Metadata(*metadata))).value)

    with grpc.insecure_channel(address) as channel:
        bearing = grpc.intercept_channel(channel, bearer_interceptor("other"))
        call: Any = bearing.unary_unary(f"{METHOD}Any", *CODEC)
        answers = [call(Message(), metadata=metadata).value, asyncio.run(run())]
    assert answers == [f"{fake_keybearer.identity_of(own).key_id} "] * 2
