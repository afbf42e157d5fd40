"""The messages of a watch stream, between protobuf and the model."""

from keybearer.v1 import token_service_pb2
from keybearer_service.domain.clock import SECOND, Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import Invalidation, SubjectKind
from keybearer_service.rpc.convert.common import MAX_SECONDS, MIN_SECONDS
from keybearer_service.watch.messages import Hello, Incoming, Outgoing, Ping, Pong, Reset, Subscribe
from keybearer_service.watch.usage_reports import UsageItem, UsageReport


def watch_message(request: token_service_pb2.WatchInvalidationsRequest) -> Incoming:
    """Read a message of a watcher."""
    match request.WhichOneof("message"):
        case "subscribe":
            return Subscribe(request.subscribe.epoch, request.subscribe.from_revision)
        case "ping":
            return Ping(request.ping.sent_at)
        case "usage":
            items = request.usage.items
            return UsageReport(len(items), map(_usage_item, items))
    raise FieldInvalid("message", "one of subscribe, ping, usage is required")


def _usage_item(item: token_service_pb2.WatchInvalidationsRequest.UsageItem) -> UsageItem:
    time = item.last_used_time
    # Any number is accepted: the time is clamped later.
    micros = min(max(time.seconds, MIN_SECONDS), MAX_SECONDS) * SECOND
    last_used_time = Micros(micros + time.nanos // 1000)
    return UsageItem(item.key_id, item.secret_version, last_used_time, item.count)


def watch_response_to_proto(told: Outgoing) -> token_service_pb2.WatchInvalidationsResponse:
    """Write a message to a watcher."""
    response = token_service_pb2.WatchInvalidationsResponse()
    match told:
        case Hello():
            response.hello.epoch, response.hello.head_revision = told
        case Reset():
            response.reset.epoch, response.reset.head_revision = told
        case Pong():
            response.pong.sent_at, response.pong.head_revision = told
        case Invalidation():
            _write_invalidation(told, response.invalidation)
    return response


def _write_invalidation(
    change: Invalidation, told: token_service_pb2.WatchInvalidationsResponse.Invalidation
) -> None:
    told.revision = change.revision
    match change.kind:
        case SubjectKind.KEY:
            told.key_id = change.subject_id
        case SubjectKind.OWNER:
            told.owner_id = change.subject_id
        case SubjectKind.ACCOUNT:
            told.account_id = change.subject_id
        case SubjectKind.EVERYTHING:
            told.everything = True
