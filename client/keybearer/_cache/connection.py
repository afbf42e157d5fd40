"""The connection of one caching verifier to the service."""

import threading
from typing import Any, Final

import grpc

from keybearer._client.channel import Endpoint
from keybearer.errors import VerifierUnavailableError
from keybearer.v1 import token_service_pb2 as pb

_VALIDATE: Final = "/keybearer.v1.TokenService/ValidateToken"
_WATCH: Final = "/keybearer.v1.TokenService/WatchInvalidations"


class Connection:
    """One connection for the validations and for the stream of changes.

    They share it so that both return together: after a restart of the service, the verifier does
    not validate every token before it may reuse a verdict again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: tuple[Any, Any] | None = None
        self._closed = False

    def stubs(self) -> tuple[Any, Any]:
        """Return the callables for ValidateToken and for WatchInvalidations.

        Raises:
            VerifierUnavailableError: The verifier is closed.
        """
        with self._lock:
            if self._closed:
                raise VerifierUnavailableError("the verifier was closed")
            if self._stubs is None:
                # By default all channels to one address share a connection, alive or dead.
                channel = self._channel = self._endpoint.open(
                    [("grpc.use_local_subchannel_pool", 1)]
                )
                self._stubs = (
                    channel.unary_unary(
                        _VALIDATE,
                        request_serializer=pb.ValidateTokenRequest.SerializeToString,
                        response_deserializer=pb.ValidateTokenResponse.FromString,
                    ),
                    channel.stream_stream(
                        _WATCH,
                        request_serializer=pb.WatchInvalidationsRequest.SerializeToString,
                        response_deserializer=pb.WatchInvalidationsResponse.FromString,
                    ),
                )
            return self._stubs

    def renew(self) -> None:
        """Close the connection; the next call opens a new one."""
        with self._lock:
            channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Close the connection for good."""
        with self._lock:
            self._closed = True
        self.renew()
