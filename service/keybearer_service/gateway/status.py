"""How errors of the service look on the wire: the forms are those of `keybearer._wire`."""

import grpc
from google.rpc import status_pb2

from keybearer._wire import challenge, http
from keybearer._wire.status import FieldViolation, StatusDetails, write_status
from keybearer_service.domain.errors import Code, FieldInvalid, ServiceError

_GRPC_CODES = {code: grpc.StatusCode[code.name] for code in Code}


def status_of(error: ServiceError) -> status_pb2.Status:
    """Return an error as google.rpc.Status with its details."""
    violations = (
        (FieldViolation(error.field, error.description),) if isinstance(error, FieldInvalid) else ()
    )
    details = StatusDetails(
        reason=error.reason,
        metadata=error.metadata,
        retry_after=error.retry_after,
        field_violations=violations,
    )
    return write_status(_GRPC_CODES[error.code], error.message, details)


def http_status_of(error: ServiceError) -> int:
    """Return the HTTP status of an error."""
    return http.http_status_of(_GRPC_CODES[error.code]).value


def challenge_of(error: ServiceError) -> str:
    """Return the value of `www-authenticate`; empty for what is no denial."""
    return challenge.challenge_of(
        _GRPC_CODES[error.code], error.reason, error.message, error.metadata
    )


def body_of(error: ServiceError) -> str:
    """Return the body of an error over HTTP."""
    return http.error_body(error.reason, error.message)
