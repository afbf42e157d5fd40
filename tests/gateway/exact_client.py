"""An HTTP client that sends a request exactly as it is written, and reads what came of it."""

import http.client
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.folding_upstream import Received, received_from
from gateway.proxies import Proxy
from gateway.support import LOOPBACK

TIMEOUT_S = 15
IDENTITY_VARIABLES = "HTTP_X_KEYBEARER_"
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    """400 also where the gateway closed the connection instead."""
    received: Received | None
    """What the application was sent; None where it was not asked."""
    grpc_status: str = ""


def bearer(token: str) -> tuple[str, str]:
    """Return the one header of a client."""
    return ("authorization", f"Bearer {token}")


def send(
    proxy: Proxy,
    target: str,
    headers: Headers = (),
    body: bytes | None = None,
    *,
    method: str = "",
) -> Answer:
    """Send a request to a gateway before the folding application."""
    lines = [f"{name}: {value}" for name, value in headers]
    return send_lines(proxy, target, lines, body, method=method)


def send_lines(
    proxy: Proxy,
    target: str,
    lines: Sequence[str],
    body: bytes | None = None,
    *,
    method: str = "",
) -> Answer:
    """Send a request whose header lines need not be any; it asks for no second one by default."""
    method = method or ("GET" if body is None else "POST")
    head = [f"{method} {target} HTTP/1.1", "host: app", *lines]
    if not any(line.lower().startswith("connection:") for line in lines):
        head.append("connection: close")
    if body is not None:
        head.append(f"content-length: {len(body)}")
    with socket.create_connection((LOOPBACK, proxy.http), timeout=TIMEOUT_S) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + (body or b""))
        response = http.client.HTTPResponse(connection, method=method)
        try:
            response.begin()
            text = response.read()
        except (http.client.HTTPException, ConnectionError):
            return Answer(400, None)
    received = received_from(text) if response.status == http.client.OK and text else None
    return Answer(response.status, received, response.getheader("grpc-status") or "")


def identities(received: Received) -> list[dict[str, str]]:
    """Return what the application takes for keybearer's word, as WSGI and as CGI read it."""
    return [
        {name.removeprefix(IDENTITY_VARIABLES): value for name, value in read.items() if value}
        for read in received.variables(IDENTITY_VARIABLES)
    ]


def values_of(received: Received) -> str:
    """Return all header values that the application received, in one text."""
    return "\n".join([*received.wsgi.values(), *received.cgi.values()])
