"""What a bench needs of the doors: prepared requests, and a generator for forward-auth."""

import selectors
import socket
import time
from collections.abc import Sequence

from bench.generator import Report, message
from gateway.asking import CHECK, check_request
from keybearer_service.ext_authz.v3 import ext_authz_pb2

CHECK_PATH = CHECK
_HEAD_END = b"\r\n\r\n"


def check_bodies(tokens: Sequence[str]) -> list[bytes]:
    """Make framed CheckRequests as a real Envoy sends them, one for each token."""
    return [
        message(
            check_request(
                {
                    ":authority": "app.example.com",
                    ":method": "GET",
                    ":path": "/orders/7?page=2",
                    ":scheme": "https",
                    "accept": "*/*",
                    "authorization": f"Bearer {token}",
                    "user-agent": "bench",
                    "x-forwarded-proto": "https",
                    "x-request-id": "0b5f1f9c-7a2f-4b57-9c1d-0d8a3f8f3b55",
                },
                {"required_role": "VALIDATOR"},
            ).SerializeToString()
        )
        for token in tokens
    ]


def is_admitted(reply: bytes) -> bool:
    """Check a reply: an admission with the whole identity."""
    response = ext_authz_pb2.CheckResponse.FromString(reply)
    return response.status.code == 0 and len(response.ok_response.headers) == 7


def forward_auth_requests(gateway: str, tokens: Sequence[str]) -> list[bytes]:
    """Make requests as nginx sends them, one for each token."""
    return [
        (
            "GET /v1/auth/check HTTP/1.1\r\nHost: keybearer\r\nAccept: */*\r\n"
            f"Authorization: Bearer {token}\r\nX-Keybearer-Caller: Bearer {gateway}\r\n"
            "X-Keybearer-Required-Role: VALIDATOR\r\n\r\n"
        ).encode()
        for token in tokens
    ]


def run_forward_auth(
    port: int, requests: Sequence[bytes], *, seconds: float, connections: int
) -> Report:
    """Ask for a while, one request at a time on each connection, and check every answer."""
    selector = selectors.DefaultSelector()
    for index in range(connections):
        one = socket.create_connection(("127.0.0.1", port))
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(one, selectors.EVENT_READ, [index, b"", 0.0])
    report = Report()
    started = time.perf_counter()
    for key in selector.get_map().values():
        _send(key, requests)
    while time.perf_counter() - started < seconds:
        for key, _ in selector.select(timeout=1.0):
            key.data[1] += key.fileobj.recv(65536)  # type: ignore[union-attr]
            if key.data[1].endswith(_HEAD_END):  # an admission has no body
                report.replies += 1
                report.latencies.append(time.perf_counter() - key.data[2])
                good = (
                    key.data[1].startswith(b"HTTP/1.1 200 ")
                    and b"x-keybearer-key-id" in (key.data[1])
                )
                report.wrong += not good
                _send(key, requests)
    report.seconds = time.perf_counter() - started
    for key in list(selector.get_map().values()):
        selector.unregister(key.fileobj)
        key.fileobj.close()  # type: ignore[union-attr]
    return report


def _send(key: selectors.SelectorKey, requests: Sequence[bytes]) -> None:
    key.data[0] = (key.data[0] + 1) % len(requests)
    key.data[1], key.data[2] = b"", time.perf_counter()
    key.fileobj.sendall(requests[key.data[0]])  # type: ignore[union-attr]
