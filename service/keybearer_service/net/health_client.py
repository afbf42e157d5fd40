"""Asks a running server whether it serves, for a container's health check."""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from keybearer import TLSConfig
from keybearer._client.channel import open_channel
from keybearer_service.net.addresses import Address


@dataclass(frozen=True, slots=True)
class Health:
    """The health that a server reports, or the reason why it could not be asked."""

    status: str
    """SERVING, NOT_SERVING, or the name of the gRPC status with which asking failed."""
    reason: str = ""
    """The details of that status."""

    @property
    def is_serving(self) -> bool:
        """Whether the server takes calls."""
        return self.status == "SERVING"


def ask(address: Address, tls: TLSConfig | None, timeout_s: float) -> Health:
    """Return the health of the server that listens at an address.

    Args:
        address: Where the server listens; 0.0.0.0 and [::] are asked on loopback.
        tls: How the two sides prove who they are; None for plaintext.
        timeout_s: Seconds to wait for the answer.
    """
    # Through the client's own function: no proxy of the environment stands in between.
    with open_channel(str(address.connectable), tls=tls or False) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]  # not in the stubs
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError as error:
            return Health(error.code().name, error.details() or "")
    return Health(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
