"""ApiKeyService."""

from keybearer.v1 import api_key_service_pb2 as pb
from keybearer_service.domain.clock import Clock
from keybearer_service.rpc.convert.api_keys import (
    filter_query,
    issued_fields,
    key_query,
    key_to_proto,
    key_update,
    new_key,
    overlap,
    revocation,
    revocations_to_proto,
    wanted_ids,
)
from keybearer_service.rpc.convert.common import idempotency_key, page_to_proto
from keybearer_service.usecases.access import authorize
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.revoking import KeyRevoker


class ApiKeyServicer:
    """The keys of an account."""

    def __init__(self, keys: KeyManager, revoker: KeyRevoker, clock: Clock) -> None:
        self._keys = keys
        self._revoker = revoker
        self._clock = clock

    def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, call: CallContext
    ) -> pb.CreateApiKeyResponse:
        """Create a key."""
        scope = authorize(call, request.account_id)
        new = new_key(request)
        issued = self._keys.create(call, scope, new, idempotency_key(call.method, request))
        return pb.CreateApiKeyResponse(**issued_fields(issued, self._clock.now()))

    def GetApiKey(self, request: pb.GetApiKeyRequest, call: CallContext) -> pb.GetApiKeyResponse:
        """Return one key."""
        key = self._keys.get(call, request.id)
        return pb.GetApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def ListApiKeys(
        self, request: pb.ListApiKeysRequest, call: CallContext
    ) -> pb.ListApiKeysResponse:
        """Return a page of keys."""
        now = self._clock.now()
        query = key_query(authorize(call, request.account_id), request, now)
        listed = self._keys.list(call, query, request.page_size, request.page_token)
        keys, next_page = page_to_proto(listed, lambda key: key_to_proto(key, now))
        return pb.ListApiKeysResponse(api_keys=keys, next_page_token=next_page)

    def UpdateApiKey(
        self, request: pb.UpdateApiKeyRequest, call: CallContext
    ) -> pb.UpdateApiKeyResponse:
        """Update a key."""
        key = self._keys.update(call, request.api_key.id, key_update(request))
        return pb.UpdateApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def DisableApiKey(
        self, request: pb.DisableApiKeyRequest, call: CallContext
    ) -> pb.DisableApiKeyResponse:
        """Disable a key."""
        key = self._keys.disable(call, request.id)
        return pb.DisableApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def EnableApiKey(
        self, request: pb.EnableApiKeyRequest, call: CallContext
    ) -> pb.EnableApiKeyResponse:
        """Enable a key."""
        key = self._keys.enable(call, request.id)
        return pb.EnableApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def RotateApiKey(
        self, request: pb.RotateApiKeyRequest, call: CallContext
    ) -> pb.RotateApiKeyResponse:
        """Rotate the secret of a key."""
        issued = self._keys.rotate(
            call,
            request.id,
            overlap(request),
            idempotency_key(call.method, request),
        )
        return pb.RotateApiKeyResponse(**issued_fields(issued, self._clock.now()))

    def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, call: CallContext
    ) -> pb.RevokeApiKeyResponse:
        """Revoke a key."""
        key = self._revoker.revoke(call, request.id, *revocation(request))
        return pb.RevokeApiKeyResponse(api_key=key_to_proto(key, self._clock.now()))

    def RevokeApiKeys(
        self, request: pb.RevokeApiKeysRequest, call: CallContext
    ) -> pb.RevokeApiKeysResponse:
        """Revoke several keys."""
        ids = wanted_ids(request)
        reason, note = revocation(request)
        if ids:
            revoked = self._revoker.revoke_many(
                call, ids, reason, note, validate_only=request.validate_only
            )
            return pb.RevokeApiKeysResponse(revocations=revocations_to_proto(revoked))
        scope = authorize(call, request.filter.account_id)
        query = filter_query(scope, request.filter, self._clock.now())
        revoked, next_page = self._revoker.revoke_matching(
            call, query, request.page_token, reason, note, validate_only=request.validate_only
        )
        return pb.RevokeApiKeysResponse(
            revocations=revocations_to_proto(revoked), next_page_token=next_page
        )
