"""An HTTP port: uvicorn on a thread of its own, beside the gRPC server."""

import contextlib
import socket
import threading

import uvicorn
from starlette.applications import Starlette

from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.net.tls import server_context

MAX_CONNECTIONS = 1000
"""Beyond, 503 at once: a queue that only grows would answer nobody in time."""
KEEP_ALIVE_S = 75
"""Longer than nginx (60 s) and Envoy keep an idle connection, so that we never close first."""


class HttpServer:
    """One port with one application."""

    def __init__(self, name: str, app: Starlette, listener: Listener) -> None:
        """Bind the port; `start` begins to serve.

        Raises:
            ListenError: The port is in use, or not to be had.
            TlsError: A certificate or key cannot be read.
        """
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            # Its warnings are about bytes that are no HTTP: anybody could fill the log with them.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()
        if listener.tls is not None:
            config.ssl = server_context(listener.tls)
        self._config = config
        self._server = uvicorn.Server(config)
        self._socket = _bind(listener)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to serve; connections made from now on are answered."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Take no more requests, and let those in flight finish for a while."""
        # Whole seconds are what uvicorn takes.
        self._config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(grace_s + 2)
        self.close()

    def close(self) -> None:
        """Give up the port of a server that was never started."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def _bind(listener: Listener) -> socket.socket:
    address = listener.address
    try:
        bound = socket.create_server(
            (address.host, address.port),
            family=address.family,
            backlog=2048,
            reuse_port=listener.share_port,
        )
    except OSError as error:
        reason = str(error.strerror).partition(" (while ")[0]  # which repeats the address
        raise ListenError(f"cannot listen on {address}: {reason}") from None
    # Connections inherit it. asyncio sets it for sockets that name TCP, as these do not; without it
    # every answer with a body waits 40 ms for the client to confirm its headers.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound
