"""AuditService."""

from keybearer.v1 import audit_service_pb2 as pb
from keybearer_service.rpc.convert.audit import audit_query, event_to_proto
from keybearer_service.rpc.convert.common import page_to_proto
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
        listed = self._history.list(call, query, request.page_size, request.page_token)
        events, next_page = page_to_proto(listed, event_to_proto)
        return pb.ListAuditEventsResponse(audit_events=events, next_page_token=next_page)
