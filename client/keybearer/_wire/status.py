"""`google.rpc.Status` with its details, written and read in one place."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "keybearer.v1"
"""The domain of every ErrorInfo that keybearer and its guards send."""
DETAILS_KEY: Final = "grpc-status-details-bin"
"""The trailing metadata that carries a `google.rpc.Status`."""
_NANOS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong."""

    field: str
    """Its name, as in the proto."""
    description: str
    """What would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDetails:
    """What a status says beside its code and its message."""

    reason: str = ""
    """A name of `keybearer.v1.ErrorReason` without its prefix; empty when there is none."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What belongs to the reason, such as `api_key_id`."""
    retry_after: float | None = None
    """Seconds after which another attempt makes sense; None when nothing is known."""
    field_violations: tuple[FieldViolation, ...] = ()


def write_status(code: grpc.StatusCode, message: str, details: StatusDetails) -> status_pb2.Status:
    """Return the status as it goes on the wire."""
    packed: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=details.reason, domain=DOMAIN, metadata=dict(details.metadata)
        )
    ]
    if details.field_violations:
        packed.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.description
                    )
                    for violation in details.field_violations
                ]
            )
        )
    if details.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(details.retry_after * _NANOS))
        packed.append(retry)
    return status_pb2.Status(
        code=code.value[0], message=message, details=[_pack(detail) for detail in packed]
    )


def read_details(trailers: Iterable[tuple[str, Any]] | None) -> StatusDetails:
    """Return the details in the trailing metadata of a call.

    Details that are absent, of another domain or unreadable are left out: the code of the call
    still counts.
    """
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    try:
        for detail in _status_in(trailers or ()).details:
            for message in (info, retry, bad_request):
                detail.Unpack(message)
    except DecodeError:
        return StatusDetails()
    reason = info.reason if info.domain == DOMAIN else ""
    has_delay = retry.HasField("retry_delay")
    return StatusDetails(
        reason=reason,
        metadata=dict(info.metadata) if reason else {},
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if has_delay else None,
        field_violations=tuple(
            FieldViolation(violation.field, violation.description)
            for violation in bad_request.field_violations
        ),
    )


def _status_in(trailers: Iterable[tuple[str, Any]]) -> status_pb2.Status:
    for key, value in trailers:
        if key == DETAILS_KEY:
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
