"""An application that reads header names as WSGI and CGI do, and tells what it was sent.

wsgiref makes the WSGI environment. The CGI one is made from the same header lines by the rule of
the servers that fold most: upper case, and every character but letters and digits an underscore.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Received:
    """One request, as the application received it."""

    target: str
    """The request target, exactly as it was sent."""
    wsgi_path: str
    """PATH_INFO of wsgiref."""
    wsgi: dict[str, str]
    """The header variables of wsgiref."""
    cgi: dict[str, str]
    """The header variables of a CGI program."""
    body: tuple[int, str]
    """The size of the body in bytes, and its SHA-256."""

    def variables(self, prefix: str) -> list[dict[str, str]]:
        """Return the variables that begin with a prefix, in either reading."""
        return [
            {name: value for name, value in reading.items() if name.startswith(prefix)}
            for reading in (self.wsgi, self.cgi)
        ]


def received_from(text: bytes) -> Received:
    """Read what the application answered."""
    fields = json.loads(text)
    return Received(**{**fields, "body": tuple(fields["body"])})


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> "WSGIEnvironment":
        environ = super().get_environ()
        folded: dict[str, str] = {}
        for name, value in self.headers.items():
            variable = "HTTP_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
            folded[variable] = ",".join(filter(None, (folded.get(variable), value)))
        environ["test.cgi"] = folded
        environ["test.target"] = self.path
        return environ

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


def _application(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    received = {
        "target": environ["test.target"],
        "wsgi_path": environ["PATH_INFO"],
        "wsgi": {name: value for name, value in environ.items() if name.startswith("HTTP_")},
        "cgi": environ["test.cgi"],
        "body": (len(body), hashlib.sha256(body).hexdigest()),
    }
    text = json.dumps(received).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(text)))]
    start_response("200 OK", headers)
    return [text]


@contextmanager
def folding_upstream() -> Iterator[int]:
    """Serve the application; yields its port."""
    server = make_server(LOOPBACK, 0, _application, server_class=_Server, handler_class=_Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
