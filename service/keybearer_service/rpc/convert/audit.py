"""Audit events, between their messages and the model."""

from keybearer._wire.enums import AuditAction
from keybearer.v1 import audit_event_pb2, audit_service_pb2
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import AuditEvent
from keybearer_service.rpc.convert.common import members, optional_time, to_proto, wire
from keybearer_service.storage import AuditQuery


def audit_query(
    scope: AccountScope, request: audit_service_pb2.ListAuditEventsRequest
) -> AuditQuery:
    """Read which events are asked for."""
    return AuditQuery(
        scope=scope,
        actor_id=request.actor_id,
        target_id=request.target_id,
        actions=members("actions", AuditAction, request.actions),
        after=optional_time(request, "after"),
        before=optional_time(request, "before"),
    )


def event_to_proto(event: AuditEvent) -> audit_event_pb2.AuditEvent:
    """Write an audit event."""
    return to_proto(
        audit_event_pb2.AuditEvent,
        event,
        actor=to_proto(audit_event_pb2.AuditActor, event.actor),
        target=audit_event_pb2.AuditTarget(type=wire(event.target_type), id=event.target_id),
        changes=[to_proto(audit_event_pb2.AuditChange, one) for one in event.changes],
    )
