"""The gRPC server: ports, health, reflection, and an end that loses nothing."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from keybearer_service.net.addresses import Listener, ListenError
from keybearer_service.net.tls import server_credentials

MAX_MESSAGE_BYTES = 128 * 1024
MAX_METADATA_BYTES = 8 * 1024
MAX_STREAMS_A_CONNECTION = 100
"""Section 8 of the wire contract."""
DRAIN_GRACE_S = 10.0
"""How long calls in flight may take to finish; below the 30 s that Kubernetes waits."""

HEALTH_METHODS = frozenset(f"/grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch"))
REFLECTION_SERVICES = (
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""grpcio serves v1alpha alone; tools ask for v1 first. The messages are the same on the wire."""
REFLECTION_METHODS = frozenset(f"/{name}/ServerReflectionInfo" for name in REFLECTION_SERVICES)
EXEMPT_METHODS = HEALTH_METHODS | REFLECTION_METHODS
"""Served to anybody: they tell whether the server runs and what its protos say, both public."""


class Server:
    """A gRPC server with everything on its port."""

    def __init__(
        self,
        listener: Listener,
        *,
        interceptor: grpc.ServerInterceptor,
        register: Callable[[grpc.Server], None],
        services: Sequence[str],
        executors: Sequence[ThreadPoolExecutor],
        with_reflection: bool = True,
    ) -> None:
        """Bind the port; `start` begins to serve.

        Args:
            listener: Where to listen.
            interceptor: What every call goes through.
            register: Adds our servicers.
            services: Their full names, for health and reflection.
            executors: Shut down with the server. The first runs the calls that have none of their
                own.
            with_reflection: Whether tools may ask what is served.

        Raises:
            ListenError: The port is in use, or not to be had.
        """
        self._reflection_executor = ThreadPoolExecutor(4, thread_name_prefix="reflection")
        self._executors = [*executors, self._reflection_executor]
        self._services = services
        self._server = grpc.server(
            executors[0],
            interceptors=[interceptor],
            options=server_options(share_port=listener.share_port),
        )
        register(self._server)
        # Non-blocking, so that a Watch holds no thread.
        self.health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if with_reflection:
            self._add_reflection([*services, health.SERVICE_NAME, *REFLECTION_SERVICES[1:]])
        self.port = self._bind(listener)

    @property
    def queued_calls(self) -> int:
        """How many calls wait for a thread of the first executor."""
        return self._executors[0]._work_queue.qsize()  # noqa: SLF001 - it is told nowhere else

    def start(self) -> None:
        """Begin to serve, and say so to those who ask for health."""
        self._server.start()
        self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Take no more calls, let those in flight finish for a while, and end."""
        self.health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)

    def _set_health(self, status: int) -> None:
        for name in ("", *self._services):
            self.health.set(name, status)

    def _add_reflection(self, names: Sequence[str]) -> None:
        servicer = reflection.ReflectionServicer(names, pool=_Symbols())

        def info(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            yield from servicer.ServerReflectionInfo(requests, context)

        # Its own executor: a tool that keeps its stream open must not cost a validation a thread.
        info.experimental_thread_pool = self._reflection_executor  # type: ignore[attr-defined]
        handler = grpc.stream_stream_rpc_method_handler(
            info,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        for name in REFLECTION_SERVICES:
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
            )

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


def server_options(*, share_port: bool) -> list[tuple[str, int]]:
    """Answer the channel arguments of every server of ours."""
    return [
        # On by default: a second server would silently take half of the connections.
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
        # Unlimited by default: resets by the thousand then slow everybody down.
        ("grpc.max_concurrent_streams", MAX_STREAMS_A_CONNECTION),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 300_000),
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


class _Symbols:
    """The descriptor pool, where methods are found too.

    protobuf's own finds the file of a service and not that of its method, which grpcurl asks for
    when it describes one.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - the library's name
        """Answer the file that declares a symbol.

        Raises:
            KeyError: There is none.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return found.file
