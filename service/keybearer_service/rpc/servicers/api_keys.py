"""ApiKeyService."""

import grpc

from keybearer.v1 import api_key_service_pb2 as pb
from keybearer.v1 import api_key_service_pb2_grpc
from keybearer_service.domain.clock import Clock
from keybearer_service.rpc.convert.api_keys import (
    issued_fields,
    key_query,
    key_to_proto,
    key_update,
    new_key,
    overlap,
    revocation,
)
from keybearer_service.rpc.convert.common import idempotency_key
from keybearer_service.usecases.access import authorize
from keybearer_service.usecases.call_context import current_call
from keybearer_service.usecases.keys import KeyManager


class ApiKeyServicer(api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """The keys of an account."""

    def __init__(self, keys: KeyManager, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.CreateApiKeyResponse:
        """Create a key."""
        call = current_call()
        scope = authorize(call, request.account_id)
        new = new_key(request)
        issued = self._keys.create(call, scope, new, idempotency_key(call.method, request))
        return pb.CreateApiKeyResponse(**issued_fields(issued, self._clock.now()))

    def GetApiKey(
        self, request: pb.GetApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.GetApiKeyResponse:
        """Return one key."""
        key = self._keys.get(current_call(), request.id)
        return pb.GetApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: grpc.ServicerContext
    ) -> pb.ListApiKeysResponse:
        """Return a page of keys."""
        call = current_call()
        now = self._clock.now()
        query = key_query(authorize(call, request.account_id), request, now)
        keys, next_page = self._keys.list(query, request.page_size, request.page_token)
        return pb.ListApiKeysResponse(
            api_keys=[key_to_proto(key, now) for key in keys], next_page_token=next_page
        )

    def UpdateApiKey(
        self, request: pb.UpdateApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.UpdateApiKeyResponse:
        """Update a key."""
        key = self._keys.update(current_call(), request.api_key.id, key_update(request))
        return pb.UpdateApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def DisableApiKey(
        self, request: pb.DisableApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.DisableApiKeyResponse:
        """Disable a key."""
        key = self._keys.disable(current_call(), request.id)
        return pb.DisableApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def EnableApiKey(
        self, request: pb.EnableApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.EnableApiKeyResponse:
        """Enable a key."""
        key = self._keys.enable(current_call(), request.id)
        return pb.EnableApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def RotateApiKey(
        self, request: pb.RotateApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.RotateApiKeyResponse:
        """Rotate the secret of a key."""
        call = current_call()
        issued = self._keys.rotate(
            call,
            request.id,
            overlap(request),
            idempotency_key(call.method, request),
        )
        return pb.RotateApiKeyResponse(**issued_fields(issued, self._clock.now()))

    def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: grpc.ServicerContext
    ) -> pb.RevokeApiKeyResponse:
        """Revoke a key."""
        key = self._keys.revoke(current_call(), request.id, *revocation(request))
        return pb.RevokeApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))
