"""`python -m reliability.bare_service [CERTIFICATE KEY]`: the control of the soak.

A grpcio server whose handlers do nothing, for every method that is served, with the channel
arguments of the product and as many threads, in one pool; and in the same process two HTTP ports
of a bare uvicorn. It has no store, judges nothing and logs nothing: what an attack costs its
callers is what the libraries and this machine cost.
"""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import uvicorn

from keybearer.v1 import token_service_pb2 as pb
from keybearer_service.endpoints import Executors
from keybearer_service.net.bounds import GRPC
from keybearer_service.net.descriptors import raise_limit
from keybearer_service.rpc.server import server_options
from reliability.hostile import VALIDATE
from reliability.served import every_method

VALID = pb.ValidateTokenResponse(valid=True).SerializeToString()


def unary(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    """Return an empty message."""
    return b""


def validate(_request: bytes, _context: grpc.ServicerContext) -> bytes:
    """Return that every token is valid."""
    return VALID


def stream(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
    """Yield one response to the first message, and end."""
    for _request in requests:
        yield b""
        return


class Handlers(grpc.GenericRpcHandler):
    """The handlers of all paths."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {
            method.path: grpc.stream_stream_rpc_method_handler(stream)
            if method.is_stream
            else grpc.unary_unary_rpc_method_handler(unary)
            for method in every_method("", "")
        }
        self._handlers[VALIDATE] = grpc.unary_unary_rpc_method_handler(validate)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


async def respond(_scope: Any, _receive: Any, send: Any) -> None:
    """Respond to every HTTP request with an empty body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def serve_http(**tls: Any) -> int:
    """Serve HTTP on a thread of its own; return the port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        respond, ws="none", lifespan="off", log_config=None, access_log=False, **tls
    )
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, args=([listening],), daemon=True).start()
    port: int = listening.getsockname()[1]
    return port


def threads() -> int:
    """Return how many threads the product has for calls."""
    executors = Executors()
    try:
        return sum(one.threads for one in executors.serving)
    finally:
        executors.shutdown()


def main() -> None:
    """Serve until standard input ends; the ports go to standard output."""
    raise_limit()
    pool = ThreadPoolExecutor(threads())
    server = grpc.server(pool, options=server_options(GRPC, share_port=False))
    server.add_generic_rpc_handlers((Handlers(),))
    tls: dict[str, Any] = {}
    if sys.argv[1:]:
        certificate, key = sys.argv[1:]
        pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        tls = {"ssl_certfile": certificate, "ssl_keyfile": key}
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ports = {"grpc": f"127.0.0.1:{port}", "http": [serve_http(**tls), serve_http()]}
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop(0)


if __name__ == "__main__":
    main()
