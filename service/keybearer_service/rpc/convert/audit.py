"""Audit events, between their messages and the model."""

from keybearer.v1 import audit_event_pb2, audit_service_pb2
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import Action, AuditEvent
from keybearer_service.rpc.convert.common import members, optional_time, timestamp, wire
from keybearer_service.storage import AuditQuery


def audit_query(
    scope: AccountScope, request: audit_service_pb2.ListAuditEventsRequest
) -> AuditQuery:
    """Read which events are wanted."""
    return AuditQuery(
        scope=scope,
        actor_id=request.actor_id,
        target_id=request.target_id,
        actions=members("actions", Action, request.actions),
        after=optional_time(request, "after"),
        before=optional_time(request, "before"),
    )


def event_to_proto(event: AuditEvent) -> audit_event_pb2.AuditEvent:
    """Write an audit event."""
    return audit_event_pb2.AuditEvent(
        id=event.id,
        seq=event.seq,
        time=timestamp(event.time),
        account_id=event.account_id,
        actor=audit_event_pb2.AuditActor(
            type=wire(event.actor.type),
            key_id=event.actor.key_id,
            user_id=event.actor.user_id,
            user_email=event.actor.user_email,
        ),
        action=wire(event.action),
        target=audit_event_pb2.AuditTarget(type=wire(event.target_type), id=event.target_id),
        changes=[
            audit_event_pb2.AuditChange(field=one.field, before=one.before, after=one.after)
            for one in event.changes
        ],
        request_id=event.request_id,
        peer=event.peer,
        hash=event.hash,
    )
