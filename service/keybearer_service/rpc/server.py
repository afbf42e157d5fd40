"""The gRPC server: ports, health, reflection, and an end that loses nothing."""

import grpc

from keybearer_service.net import descriptors
from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.net.bounds import Bounds, within_descriptors
from keybearer_service.net.tls import server_credentials
from keybearer_service.rpc.executors import CallExecutor
from keybearer_service.rpc.hot_loop import HotLoop

MAX_STREAMS_A_CONNECTION = 100
"""Section 8 of the wire contract."""


class Server:
    """A gRPC server with everything on its port."""

    def __init__(
        self,
        listener: Listener | None,
        *,
        bounds: Bounds,
        methods: grpc.GenericRpcHandler,
        private_address: str,
        default_executor: CallExecutor,
        hot_loop: HotLoop | None,
    ) -> None:
        """Bind the port; `start` begins to serve.

        Args:
            listener: Where to listen; None for the private socket alone.
            bounds: What the port holds for its clients.
            methods: Everything that is served.
            private_address: A `unix:` socket that this process asks itself on.
            default_executor: Takes what grpc has no executor for.
            hot_loop: Serves its methods, instead of `methods`.

        Raises:
            ListenError: The port is in use, or not to be had.
        """
        share_port = listener is not None and listener.share_port
        self._server = grpc.server(
            default_executor, options=server_options(bounds, share_port=share_port)
        )
        self._server.add_generic_rpc_handlers((methods,))
        self.private_address = private_address
        self._hot_loop = hot_loop
        if hot_loop is not None:
            hot_loop.attach(self._server)
        self.port = 0 if listener is None else self._bind(listener)
        self._server.add_secure_port(
            private_address, grpc.local_server_credentials(grpc.LocalConnectionType.UDS)
        )

    def start(self) -> None:
        """Begin to serve."""
        self._server.start()
        if self._hot_loop is not None:
            self._hot_loop.start()

    def stop(self, grace_s: float) -> None:
        """Stop accepting calls, let those in flight finish for a while, and end.

        Args:
            grace_s: Seconds for the calls in flight.
        """
        self._server.stop(grace_s).wait()
        if self._hot_loop is not None:
            self._hot_loop.close()

    def leave_behind(self) -> None:
        """Close the sockets and wait for nothing, as something in here does not work."""
        self._server.stop(0)

    def _bind(self, listener: Listener) -> int:
        try:
            target = str(listener.address)
            if listener.tls is None:
                port = self._server.add_insecure_port(target)
            else:
                port = self._server.add_secure_port(target, server_credentials(listener.tls))
        except RuntimeError:
            raise ListenError(
                f"cannot listen on {listener.address}: the port is in use or not to be had"
            ) from None
        return port


def server_options(bounds: Bounds, *, share_port: bool) -> list[tuple[str, int]]:
    """Return the channel arguments of the server."""
    bounds = within_descriptors(bounds, descriptors.for_connections())
    return [
        # On by default: a second server would silently take half of the connections.
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", bounds.body_bytes),
        ("grpc.max_metadata_size", bounds.header_bytes),
        ("grpc.absolute_max_metadata_size", bounds.header_bytes),
        # Unlimited by default: resets by the thousand then slow everybody down.
        ("grpc.max_concurrent_streams", MAX_STREAMS_A_CONNECTION),
        ("grpc.max_allowed_incoming_connections", bounds.connections),
        ("grpc.server_handshake_timeout_ms", round(bounds.handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", round(bounds.idle_s * 1000)),
        ("grpc.max_connection_age_ms", 1_800_000),
        ("grpc.max_connection_age_grace_ms", 30_000),
        ("grpc.keepalive_time_ms", 10_000),
        # What notices a frozen peer; the keepalive timeout alone takes a minute.
        ("grpc.http2.ping_timeout_ms", 2_000),
        # Clients keep idle connections alive too, every 10 to 30 s; by default the third such ping
        # within two hours ends the connection. One that pings faster than this is still ended.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.enable_channelz", 0),
    ]
