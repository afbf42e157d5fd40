"""Requests that two readers could read in two ways: the HTTP port refuses them and hangs up."""

import re

import pytest

from gateway.raw_http import connect, exchange, rest_of, status_of
from gateway.support import Gated

HOST = b"host: keybearer\r\n"
SMUGGLED = b"GET /healthz HTTP/1.1\r\nhost: keybearer\r\n\r\n"
"""What an attacker hides behind a request; it must never be answered."""

AMBIGUOUS = {
    "both lengths": b"POST /v1/auth HTTP/1.1\r\n" + HOST + b"content-length: 5\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, the other way round": b"POST /v1/auth HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: Chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /v1/auth HTTP/1.1\r\n"
    + HOST
    + b"content-length: 0\r\ncontent-length: 5\r\n\r\n",
    "one length twice": b"POST /v1/auth HTTP/1.1\r\n"
    + HOST
    + b"content-length: 0\r\ncontent-length: 0\r\n\r\n",
    "a list of lengths": b"POST /v1/auth HTTP/1.1\r\n" + HOST + b"content-length: 0, 0\r\n\r\n",
    "a signed length": b"POST /v1/auth HTTP/1.1\r\n" + HOST + b"content-length: +0\r\n\r\n",
    "a length in words": b"POST /v1/auth HTTP/1.1\r\n" + HOST + b"content-length: zero\r\n\r\n",
    "another coding": b"POST /v1/auth HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip\r\n\r\n",
    "two codings": b"POST /v1/auth HTTP/1.1\r\n"
    + HOST
    + b"transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "one coding twice": b"POST /v1/auth HTTP/1.1\r\n"
    + HOST
    + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"POST /v1/auth HTTP/1.0\r\n"
    + HOST
    + b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a hidden coding": b"POST /v1/auth HTTP/1.1\r\n"
    + HOST
    + b"transfer-encoding\x0b: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-a : b\r\n\r\n",
    "a folded line": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-a: b\r\n c: d\r\n\r\n",
    "a first line that is folded": b"GET /healthz HTTP/1.1\r\n x-a: b\r\n" + HOST + b"\r\n",
    "a bare LF": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-a: b\nx-c: d\r\n\r\n",
    "a bare LF at the end": b"GET /healthz HTTP/1.1\r\n" + HOST + b"\n",
    "LF alone": b"GET /healthz HTTP/1.1\nhost: keybearer\n\n",
    "a bare CR": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-a: b\rx-c: d\r\n\r\n",
    "NUL": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-a: b\0\r\n\r\n",
    "a line without a colon": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-a\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "the absolute form": b"GET http://evil.example.com/healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "no path": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority": b"CONNECT keybearer:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "two spaces": b"GET  /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment of another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a lower-case protocol": b"GET /healthz http/1.1\r\n" + HOST + b"\r\n",
    "an empty line first": b"\r\nGET /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_head_is_refused_and_the_connection_ends(world: Gated, name: str) -> None:
    """With 400, once, and what follows on the connection is never read."""
    received = exchange(world.service.app.http_port, AMBIGUOUS[name] + SMUGGLED)
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"400"]
    assert b"connection: close\r\n" in received


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_head_is_refused_wherever_it_stands(world: Gated, name: str) -> None:
    """Behind another request, in one piece or byte by byte."""
    first = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    sent = first + AMBIGUOUS[name] + SMUGGLED
    for parts in ([sent], [bytes([byte]) for byte in sent]):
        received = exchange(world.service.app.http_port, *parts)
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"400"]


CHUNKED = b"POST /v1/auth HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
BAD_CHUNKS = {
    "no number": b"zz\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a bare LF": b"5\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "a bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a long extension": b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n",
    "too long a number": b"0" * 20 + b"5\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer": b"3\r\nhello\r\n0\r\n\r\n",
    "a bare LF at the end": b"0\r\n\n",
    "a bare LF in a trailer": b"0\r\nx: y\n\r\n",
    "a folded trailer": b"0\r\nx: y\r\n z\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("is_answered", [False, True], ids=["at once", "after the answer"])
def test_an_ambiguous_chunk_ends_the_connection(
    world: Gated, caplog: pytest.LogCaptureFixture, name: str, *, is_answered: bool
) -> None:
    """Whether the request was answered already or not, and without a traceback in the log."""
    with connect(world.service.app.http_port) as one:
        one.sendall(CHUNKED)
        received = one.recv(65536) if is_answered else b""
        one.sendall(BAD_CHUNKS[name] + SMUGGLED)
        received += rest_of(one)
    assert set(re.findall(rb"HTTP/1.1 (\d+)", received)) <= {b"403", b"400"}
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


def test_a_client_that_leaves_within_its_body_leaves_no_traceback(
    world: Gated, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody can do that as often as they like, and what they sent may be a token."""
    port = world.service.app.http_port
    with connect(port) as one:
        one.sendall(
            b"POST /oauth2/introspect HTTP/1.1\r\n" + HOST + b"content-length: 99\r\n\r\ntoken=a"
        )
        assert status_of("/healthz", port) == 200  # by now the body is waited for
    assert status_of("/healthz", port) == 200  # and by now it is not any more
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []
