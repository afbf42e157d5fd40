"""ApiKeyService."""

from keybearer.v1 import api_key_service_pb2 as pb
from keybearer_service.domain.clock import Clock
from keybearer_service.rpc import convert
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.keys import KeyManager


class ApiKeyServicer:
    """The keys of an account."""

    def __init__(self, keys: KeyManager, clock: Clock) -> None:
        """Take the use cases, and the clock that states are shown by."""
        self._keys = keys
        self._clock = clock

    def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, call: CallContext
    ) -> pb.CreateApiKeyResponse:
        """Make a key."""
        account_id = call.account(request.account_id)
        new = convert.new_key(request)
        issued = self._keys.create(
            call, account_id, new, convert.idempotency_key(call.method, request)
        )
        return pb.CreateApiKeyResponse(**convert.issued_fields(issued, self._clock.now()))

    def GetApiKey(self, request: pb.GetApiKeyRequest, call: CallContext) -> pb.GetApiKeyResponse:
        """Answer one key."""
        key = self._keys.get(call, request.id)
        return pb.GetApiKeyResponse(api_key=convert.key_to_proto(key, self._clock.now()))

    def ListApiKeys(
        self, request: pb.ListApiKeysRequest, call: CallContext
    ) -> pb.ListApiKeysResponse:
        """Answer a page of keys."""
        now = self._clock.now()
        query = convert.key_query(call.account(request.account_id), request, now)
        keys, next_page = self._keys.list(query, request.page_size, request.page_token)
        return pb.ListApiKeysResponse(
            api_keys=[convert.key_to_proto(key, now) for key in keys], next_page_token=next_page
        )

    def UpdateApiKey(
        self, request: pb.UpdateApiKeyRequest, call: CallContext
    ) -> pb.UpdateApiKeyResponse:
        """Change a key."""
        key = self._keys.update(call, request.api_key.id, convert.key_update(request))
        return pb.UpdateApiKeyResponse(api_key=convert.key_to_proto(key, self._clock.now()))

    def DisableApiKey(
        self, request: pb.DisableApiKeyRequest, call: CallContext
    ) -> pb.DisableApiKeyResponse:
        """Switch a key off."""
        key = self._keys.disable(call, request.id)
        return pb.DisableApiKeyResponse(api_key=convert.key_to_proto(key, self._clock.now()))

    def EnableApiKey(
        self, request: pb.EnableApiKeyRequest, call: CallContext
    ) -> pb.EnableApiKeyResponse:
        """Switch a key on."""
        key = self._keys.enable(call, request.id)
        return pb.EnableApiKeyResponse(api_key=convert.key_to_proto(key, self._clock.now()))

    def RotateApiKey(
        self, request: pb.RotateApiKeyRequest, call: CallContext
    ) -> pb.RotateApiKeyResponse:
        """Give a key a new secret."""
        issued = self._keys.rotate(
            call,
            request.id,
            convert.overlap(request),
            convert.idempotency_key(call.method, request),
        )
        return pb.RotateApiKeyResponse(**convert.issued_fields(issued, self._clock.now()))

    def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, call: CallContext
    ) -> pb.RevokeApiKeyResponse:
        """Kill a key."""
        key = self._keys.revoke(call, request.id, *convert.revocation(request))
        return pb.RevokeApiKeyResponse(api_key=convert.key_to_proto(key, self._clock.now()))
