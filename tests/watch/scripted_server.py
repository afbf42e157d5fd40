"""A keybearer whose stream sends what a test scripts, also what no server may send."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc

from harness import message
from keybearer.v1 import token_service_pb2 as pb

Response = pb.ValidateTokenResponse
TIMEOUT_S = 10.0
ACCOUNT = "Account000000001"
OWNER = "Owner00000000001"


def key_of(token: str) -> str:
    """Return the id of the key of a made-up token."""
    return token.removeprefix("kbear1_")


class ScriptedStream:
    """The server's end of one stream."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        """The connection that it came over."""
        self._received: queue.SimpleQueue[pb.WatchInvalidationsRequest | None] = queue.SimpleQueue()
        self.outgoing: queue.SimpleQueue[pb.WatchInvalidationsResponse | None] = queue.SimpleQueue()
        self.usage: list[Any] = []

    def next(self, kind: str = "") -> pb.WatchInvalidationsRequest:
        """Return the next message, skipping those of another kind."""
        while True:
            request = self._received.get(timeout=TIMEOUT_S)
            assert request is not None, "the client has ended the stream"
            if kind in ("", request.WhichOneof("message")):
                return request

    def say(self, **fields: Any) -> None:
        """Send a message."""
        self.outgoing.put(message(pb.WatchInvalidationsResponse, **fields))

    def hello(self, epoch: str = "epoch", head: int = 0) -> pb.WatchInvalidationsRequest:
        """Read the subscription, send the hello, and return the subscription."""
        subscription = self.next("subscribe")
        self.say(hello={"epoch": epoch, "head_revision": head})
        return subscription

    def answer_ping(self, head: int = 0) -> None:
        """Send a pong for the next ping."""
        sent_at = self.next("ping").ping.sent_at
        self.say(pong={"sent_at": sent_at, "head_revision": head})

    def end(self) -> None:
        """End the stream in the regular way."""
        self.outgoing.put(None)

    def receive(self, requests: Iterator[pb.WatchInvalidationsRequest]) -> None:
        """Receive what the client sends, until the stream ends."""
        try:
            for request in requests:
                if request.WhichOneof("message") == "usage":
                    self.usage.extend(request.usage.items)
                self._received.put(request)
        except grpc.RpcError:
            pass
        self._received.put(None)
        self.outgoing.put(None)


class ScriptedServer:
    """Returns VALID for every token, at `revision`, unless a test changes that."""

    def __init__(self) -> None:
        self.revision = 0
        self.questions = 0
        """Tokens that were asked about."""
        self.calls: list[list[str]] = []
        """The tokens of each call."""
        self.batches = 0
        """Calls of BatchValidateTokens."""
        self.credentials: list[str] = []
        """The tokens that questions and streams came with."""
        self.answer: Callable[[pb.ValidateTokenRequest], pb.ValidateTokenResponse] = self.valid
        self.hold: threading.Event | None = None
        """Questions wait for it."""
        self.asked = threading.Semaphore(0)
        """Released by every call."""
        self.answer_batch: Callable[[list[Response]], list[Response]] = list
        """Changes the verdicts of a batch."""
        self.fail: Callable[[list[str], grpc.ServicerContext], None] | None = None
        """May abort a call; it gets the tokens."""
        self.streams: queue.SimpleQueue[ScriptedStream] = queue.SimpleQueue()
        self._open: list[ScriptedStream] = []
        self._server = grpc.server(
            futures.ThreadPoolExecutor(64), options=(("grpc.so_reuseport", 0),)
        )
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stream(self) -> ScriptedStream:
        """Wait for the next stream."""
        return self.streams.get(timeout=TIMEOUT_S)

    def stop(self) -> None:
        """End everything."""
        for stream in self._open:
            stream.end()
        if self.hold is not None:
            self.hold.set()
        self._server.stop(None).wait()

    def valid(self, request: pb.ValidateTokenRequest) -> pb.ValidateTokenResponse:
        """Return a VALID verdict for the key named in the token."""
        return message(
            pb.ValidateTokenResponse,
            valid=True,
            outcome="VALIDATION_OUTCOME_VALID",
            key_id=key_of(request.token),
            account_id=ACCOUNT,
            owner_id=OWNER,
            granted_role="ROLE_DEVELOPER",
            effective_role="ROLE_DEVELOPER",
            cache_for={"seconds": 60},
            revision=self.revision,
            secret_version=1,
        )

    def unknown(self, request: pb.ValidateTokenRequest) -> pb.ValidateTokenResponse:
        """Return a NOT_FOUND verdict."""
        return message(
            pb.ValidateTokenResponse,
            outcome="VALIDATION_OUTCOME_NOT_FOUND",
            cache_for={"seconds": 1},
            revision=self.revision,
        )

    def _handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "keybearer.v1.TokenService",
            {
                "ValidateToken": grpc.unary_unary_rpc_method_handler(
                    self._validate,
                    pb.ValidateTokenRequest.FromString,
                    pb.ValidateTokenResponse.SerializeToString,
                ),
                "BatchValidateTokens": grpc.unary_unary_rpc_method_handler(
                    self._batch_validate,
                    pb.BatchValidateTokensRequest.FromString,
                    pb.BatchValidateTokensResponse.SerializeToString,
                ),
                "WatchInvalidations": grpc.stream_stream_rpc_method_handler(
                    self._watch,
                    pb.WatchInvalidationsRequest.FromString,
                    pb.WatchInvalidationsResponse.SerializeToString,
                ),
            },
        )

    def _validate(
        self, request: pb.ValidateTokenRequest, context: grpc.ServicerContext
    ) -> pb.ValidateTokenResponse:
        (response,) = self._answer([request], context)
        return response

    def _batch_validate(
        self, request: pb.BatchValidateTokensRequest, context: grpc.ServicerContext
    ) -> pb.BatchValidateTokensResponse:
        self.batches += 1
        responses = self.answer_batch(self._answer(request.requests, context))
        return pb.BatchValidateTokensResponse(responses=responses)

    def _answer(
        self, requests: Sequence[pb.ValidateTokenRequest], context: grpc.ServicerContext
    ) -> list[pb.ValidateTokenResponse]:
        self.questions += len(requests)
        self.calls.append([request.token for request in requests])
        self._note(context)
        if self.fail is not None:
            self.fail([request.token for request in requests], context)
        responses = [self.answer(request) for request in requests]
        self.asked.release()
        if self.hold is not None:
            self.hold.wait(TIMEOUT_S)
        return responses

    def _watch(
        self, requests: Iterator[pb.WatchInvalidationsRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.WatchInvalidationsResponse]:
        self._note(context)
        stream = ScriptedStream(context.peer())
        self._open.append(stream)
        threading.Thread(target=stream.receive, args=(requests,), daemon=True).start()
        self.streams.put(stream)
        while (response := stream.outgoing.get()) is not None:
            yield response

    def _note(self, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        self.credentials.append(str(metadata.get("authorization", "")))


@contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run a scripted server during a block."""
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.stop()
