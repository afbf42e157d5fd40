"""AuditService."""

import grpc

from keybearer.v1 import audit_service_pb2 as pb
from keybearer.v1 import audit_service_pb2_grpc
from keybearer_service.domain.errors import ResourceNotFound
from keybearer_service.rpc.convert.audit import audit_query, audited_account, event_to_proto
from keybearer_service.storage import Store
from keybearer_service.usecases.call_context import current_call
from keybearer_service.usecases.pagination import PageTokens


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """The audit log of an account."""

    def __init__(self, store: Store, page_tokens: PageTokens) -> None:
        """Take the store: reading the log needs no use case of its own."""
        self._store = store
        self._page_tokens = page_tokens

    def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: grpc.ServicerContext
    ) -> pb.ListAuditEventsResponse:
        """Answer a page of events, newest first."""
        call = current_call()
        query = audit_query(audited_account(call, request.account_id), request)
        bound_to = ("audit", query)
        page = self._page_tokens.page(request.page_size, request.page_token, bound_to)
        with self._store.read() as reader:
            if query.account_id is not None and reader.account(query.account_id) is None:
                raise ResourceNotFound("account", query.account_id)
            found = reader.list_audit_events(query, page)
        events, next_page = self._page_tokens.split(
            found, page, bound_to, lambda event: (event.seq, event.id)
        )
        return pb.ListAuditEventsResponse(
            audit_events=[event_to_proto(event) for event in events],
            next_page_token=next_page,
        )
