"""Asks a running server whether it serves, as a container's health check does."""

from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from keybearer_service.net.addresses import Address


def ask(
    address: Address,
    tls_files: tuple[Path | None, Path | None, Path | None],
    tls_name: str | None,
    timeout_s: float,
) -> str:
    """Answer SERVING, NOT_SERVING, or the name of the status with which asking failed.

    Args:
        address: Where the server listens; 0.0.0.0 and [::] are asked on loopback.
        tls_files: The server's authority, and the client's certificate and key; all None for
            plaintext.
        tls_name: The name in the server's certificate, when it is not the address.
        timeout_s: Seconds to wait for the answer.
    """
    target = str(address.connectable)
    options = [("grpc.ssl_target_name_override", tls_name)] if tls_name else []
    if any(tls_files):
        authority, certificate, key = (
            None if path is None else path.read_bytes() for path in tls_files
        )
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        channel = grpc.secure_channel(target, credentials, options)
    else:
        channel = grpc.insecure_channel(target, options)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # not in the stubs
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
