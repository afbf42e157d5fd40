"""AuditService."""

from keybearer.v1 import audit_service_pb2 as pb
from keybearer_service.rpc.convert.audit import audit_query, event_to_proto
from keybearer_service.usecases.access import authorize_audit
from keybearer_service.usecases.audit import AuditHistory
from keybearer_service.usecases.call_context import CallContext


class AuditServicer:
    """The audit log of an account."""

    def __init__(self, history: AuditHistory) -> None:
        self._history = history

    def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, call: CallContext
    ) -> pb.ListAuditEventsResponse:
        """Return a page of events, newest first."""
        query = audit_query(authorize_audit(call, request.account_id), request)
        events, next_page = self._history.list(query, request.page_size, request.page_token)
        return pb.ListAuditEventsResponse(
            audit_events=[event_to_proto(event) for event in events],
            next_page_token=next_page,
        )
