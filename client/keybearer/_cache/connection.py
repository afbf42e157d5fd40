"""The connection of one caching verifier to the service."""

import threading
from typing import Any, Final, NamedTuple

import grpc

from keybearer._client.channel import Endpoint
from keybearer.errors import VerifierUnavailableError
from keybearer.v1 import token_service_pb2 as pb

_SERVICE: Final = "/keybearer.v1.TokenService/"


class Stubs(NamedTuple):
    """The methods that a caching verifier calls."""

    number: int
    """Of the connection, among those of its verifier."""
    validate_token: Any
    batch_validate_tokens: Any
    watch_invalidations: Any


class Connection:
    """One connection for the validations and for the stream of changes.

    They share it so that both return together: after a restart of the service, the verifier does
    not validate every token before it may reuse a verdict again.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stubs: Stubs | None = None
        self._opened = 0
        self._closed = False

    def stubs(self) -> Stubs:
        """Return the methods of the service.

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
                self._opened += 1
                self._stubs = Stubs(
                    self._opened,
                    channel.unary_unary(
                        f"{_SERVICE}ValidateToken",
                        request_serializer=pb.ValidateTokenRequest.SerializeToString,
                        response_deserializer=pb.ValidateTokenResponse.FromString,
                    ),
                    channel.unary_unary(
                        f"{_SERVICE}BatchValidateTokens",
                        request_serializer=pb.BatchValidateTokensRequest.SerializeToString,
                        response_deserializer=pb.BatchValidateTokensResponse.FromString,
                    ),
                    channel.stream_stream(
                        f"{_SERVICE}WatchInvalidations",
                        request_serializer=pb.WatchInvalidationsRequest.SerializeToString,
                        response_deserializer=pb.WatchInvalidationsResponse.FromString,
                    ),
                )
            return self._stubs

    @property
    def is_closed(self) -> bool:
        """Whether the connection was closed for good."""
        return self._closed

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
