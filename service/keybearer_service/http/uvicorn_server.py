"""An HTTP port: uvicorn on a thread of its own, beside the gRPC server."""

import asyncio
import contextlib
import os
import socket
import threading
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from keybearer_service.http.acceptor import Acceptor
from keybearer_service.http.connection import HttpConnection
from keybearer_service.http.connection_table import ConnectionTable, Held
from keybearer_service.net import descriptors
from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.net.bounds import Bounds, within_descriptors
from keybearer_service.net.tls import server_context

log = structlog.get_logger(__name__)

_LOOKS_IN_THE_SHORTEST_TIME = 4
_LOG_EVERY_S = 1.0


class HttpServer:
    """One port with one application."""

    def __init__(self, name: str, app: ASGIApp, listener: Listener, bounds: Bounds) -> None:
        """Bind the port; `start` begins to serve.

        Args:
            name: Of the port, in the log.
            app: What is served.
            listener: Where to listen.
            bounds: What is held for clients; fewer connections when descriptors are few.

        Raises:
            ListenError: The port is in use, or not to be had.
            TlsError: A certificate or key cannot be read.
        """
        self._name = name
        self._bounds = within_descriptors(bounds, descriptors.for_connections())
        self._config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            # Its warnings are about bytes that are no HTTP: anybody could fill the log with them.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._bounds.idle_s,  # type: ignore[arg-type]  # passed to call_later
        )
        self._config.load()
        self._server = uvicorn.Server(self._config)
        self._tls = None if listener.tls is None else server_context(listener.tls)
        self._socket = _bind(listener)
        self.port: int = self._socket.getsockname()[1]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_serving = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to serve; connections made from now on are answered."""
        self._thread.start()
        self._is_serving.wait()

    def end(self, grace_s: float) -> None:
        """Begin to end: stop accepting requests, and let those in flight finish for a while."""
        # Whole seconds are what uvicorn takes.
        self._config.timeout_graceful_shutdown = max(1, round(grace_s))
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self._end)

    def wait(self, within_s: float) -> None:
        """Wait until the server has ended, and close its port."""
        if self._thread.is_alive():
            self._thread.join(within_s)
        self.close()

    def close(self) -> None:
        """Give up the port of a server that was never started."""
        with contextlib.suppress(OSError):
            self._socket.close()

    # --- on the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(self._socket, self._tls, self._bounds, self._connection)
        self._loop.set_exception_handler(self._on_error)
        self._acceptor.start()
        self._is_serving.set()
        looking = self._loop.create_task(self._look())
        # It is handed connections, and listens to nothing itself.
        await self._server.serve(sockets=[])
        looking.cancel()

    def _end(self) -> None:
        self._acceptor.stop()
        self._server.should_exit = True

    def _connection(self, table: ConnectionTable, accepted: Held) -> HttpConnection:
        state = self._server.server_state
        return HttpConnection(self._config, state, table, self._bounds, accepted)

    def _on_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # By default a traceback for each, and clients can cause some of them.
        error = context.get("exception")
        self._acceptor.table.closed[type(error).__name__ if error else "error"] += 1

    async def _look(self) -> None:
        """Close what is late, and log once a second how many connections were closed."""
        bounds = self._bounds
        shortest = min(bounds.handshake_s, bounds.header_s, bounds.body_s, bounds.answer_s)
        interval = min(_LOG_EVERY_S, shortest / _LOOKS_IN_THE_SHORTEST_TIME)
        loop, table = asyncio.get_running_loop(), self._acceptor.table
        logged_at = loop.time()
        while True:
            await asyncio.sleep(interval)
            table.close_late(loop.time())
            if loop.time() - logged_at >= _LOG_EVERY_S and (closed := table.take_closed()):
                log.warning("http_connections_closed", listener=self._name, **closed)
                logged_at = loop.time()


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
        raise ListenError(f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from None
    # Connections inherit it. asyncio sets it for sockets that name TCP, as these do not; without it
    # every answer with a body waits 40 ms for the client to confirm its headers.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound
