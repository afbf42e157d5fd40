"""What a call to keybearer may raise.

Branch on the class, or on `reason`: reasons are part of the API and never change, messages are for
people and may. `from_rpc_error` is the only code that reads a `grpc.RpcError`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "keybearer.v1"
"""The domain of every ErrorInfo that keybearer and its guards send."""
DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata that carries a google.rpc.Status."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong."""

    field: str
    """Its name, as in the proto."""
    description: str
    """What would be right."""


class KeybearerError(Exception):
    """A call that did not succeed. Every other class here is one of these."""

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = ""

    code: grpc.StatusCode
    """The status of the call."""
    reason: str
    """Why, as in `keybearer.v1.ErrorReason` without its prefix. Empty: the transport said it."""
    metadata: Mapping[str, str]
    """What belongs to the reason, such as `api_key_id`."""
    retry_after: float | None
    """Seconds after which trying again makes sense, when the service said so."""
    field_violations: tuple[FieldViolation, ...]
    """The fields that are wrong; empty unless `code` is INVALID_ARGUMENT."""
    request_id: str
    """Of a create or rotate that may have happened: pass it again, with a greater `attempt`."""
    attempt: int
    """The last `attempt` made under `request_id`."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        field_violations: Iterable[FieldViolation] = (),
    ) -> None:
        """Take what is known; the class supplies the usual code and reason."""
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.reason = self.default_reason if reason is None else reason
        self.metadata = MappingProxyType(dict(metadata or {}))
        self.retry_after = retry_after
        self.field_violations = tuple(field_violations)
        self.request_id = ""
        self.attempt = 0

    def __str__(self) -> str:
        """Answer one line: code, reason if any, message."""
        reason = f" {self.reason}" if self.reason else ""
        return f"{self.code.name}{reason}: {self.message}"


class UnauthenticatedError(KeybearerError):
    """The credential of the call is missing or not accepted."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class CredentialsMissingError(UnauthenticatedError):
    """There is not exactly one `authorization: Bearer <token>`."""

    default_reason = "CREDENTIALS_MISSING"


class CredentialsExpiredError(UnauthenticatedError):
    """The key has expired."""

    default_reason = "CREDENTIALS_EXPIRED"


class CredentialsInvalidError(UnauthenticatedError):
    """The credential is not accepted, for whatever other reason."""

    default_reason = "CREDENTIALS_INVALID"


class PermissionDeniedError(KeybearerError):
    """The caller is known and may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class RoleInsufficientError(PermissionDeniedError):
    """The effective role is too low."""

    default_reason = "ROLE_INSUFFICIENT"


class ScopeInsufficientError(PermissionDeniedError):
    """The key lacks a scope."""

    default_reason = "SCOPE_INSUFFICIENT"


class OperatorOnlyError(PermissionDeniedError):
    """Only callers of the operator account may do this."""

    default_reason = "OPERATOR_ONLY"


class AuthorityExceededError(PermissionDeniedError):
    """The call would create more authority than the caller holds."""

    default_reason = "AUTHORITY_EXCEEDED"


class NotFoundError(KeybearerError):
    """There is no such thing in an account the caller may see."""

    default_code = grpc.StatusCode.NOT_FOUND


class ResourceNotFoundError(NotFoundError):
    """No resource has this id. Metadata: `resource`, `id`."""

    default_reason = "RESOURCE_NOT_FOUND"


class InvalidArgumentError(KeybearerError):
    """The request is wrong, whatever the state of the service."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class FieldInvalidError(InvalidArgumentError):
    """A field is wrong; `field_violations` says which, and what would be right."""

    default_reason = "FIELD_INVALID"


class FailedPreconditionError(KeybearerError):
    """Not possible in this state; trying again will not help."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class KeyRevokedError(FailedPreconditionError):
    """The key is revoked; that is final."""

    default_reason = "KEY_REVOKED"


class KeyExpiredError(FailedPreconditionError):
    """The key has expired and is not revived."""

    default_reason = "KEY_EXPIRED"


class LastAdminError(FailedPreconditionError):
    """The account would be left without an administrator."""

    default_reason = "LAST_ADMIN"


class OperatorAccountProtectedError(FailedPreconditionError):
    """The operator account cannot be disabled."""

    default_reason = "OPERATOR_ACCOUNT_PROTECTED"


class AbortedError(KeybearerError):
    """Somebody else was faster."""

    default_code = grpc.StatusCode.ABORTED


class EtagMismatchError(AbortedError):
    """The resource has changed since it was read: read it again and decide again."""

    default_reason = "ETAG_MISMATCH"


class AlreadyExistsError(KeybearerError):
    """What was to be made is there."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class EmailTakenError(AlreadyExistsError):
    """Another user of the account has this e-mail address."""

    default_reason = "EMAIL_TAKEN"


class RequestIdReusedError(AlreadyExistsError):
    """The request id was used before with another body. Metadata: `api_key_id`."""

    default_reason = "REQUEST_ID_REUSED"


class ReplayImpossibleError(AlreadyExistsError):
    """The request was carried out and its token cannot be minted again.

    Metadata: `api_key_id`; rotate or revoke that key.
    """

    default_reason = "REPLAY_IMPOSSIBLE"


class ResourceExhaustedError(KeybearerError):
    """Something is used up; see `retry_after`."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class StoreFullError(ResourceExhaustedError):
    """The disk of the store is full; nothing was changed."""

    default_reason = "STORE_FULL"


class OverloadedError(ResourceExhaustedError):
    """Too many calls."""

    default_reason = "OVERLOADED"


class UnavailableError(KeybearerError):
    """The service cannot be asked right now. It says nothing about any key."""

    default_code = grpc.StatusCode.UNAVAILABLE


class StoreUnavailableError(UnavailableError):
    """The store is locked or cannot be reached; nothing was changed."""

    default_reason = "STORE_UNAVAILABLE"


class OutcomeUnknownError(UnavailableError):
    """The change may or may not have happened."""

    default_reason = "OUTCOME_UNKNOWN"


class VerifierUnavailableError(UnavailableError):
    """keybearer could not be asked about a token, or its answer makes no sense."""

    default_reason = "VERIFIER_UNAVAILABLE"


class StreamEndedError(UnavailableError):
    """A stream ends although nothing is wrong: it is old, or the server stops. Open it again."""

    default_reason = "STREAM_ENDED"


class DeadlineExceededError(KeybearerError):
    """No answer came in time. A change may or may not have happened."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(KeybearerError):
    """The call was cancelled."""

    default_code = grpc.StatusCode.CANCELLED


class UnimplementedError(KeybearerError):
    """The service does not know the method."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(KeybearerError):
    """Something unforeseen. Metadata: `reference`, which the server's log carries too."""

    default_code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


def from_rpc_error(error: grpc.RpcError) -> KeybearerError:
    """Build the typed error that a failed call means; the caller raises it `from error`.

    A reason this version does not know falls back on the class of the code, a code without a class
    on KeybearerError. Details that cannot be read are passed over: the code still counts.
    """
    code = error.code()
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    bad_request = error_details_pb2.BadRequest()
    messages: tuple[Message, ...] = (info, retry, bad_request)
    try:
        for detail in _details(error):
            for message in messages:
                detail.Unpack(message)
    except DecodeError:
        for message in messages:
            message.Clear()
    reason = info.reason if info.domain == DOMAIN else ""
    error_class = _BY_REASON.get((code, reason)) or _BY_CODE.get(code, KeybearerError)
    has_delay = retry.HasField("retry_delay")
    return error_class(
        error.details() or "",
        code=code,
        reason=reason,
        metadata=dict(info.metadata) if reason else None,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if has_delay else None,
        field_violations=[
            FieldViolation(violation.field, violation.description)
            for violation in bad_request.field_violations
        ],
    )


def _details(error: grpc.RpcError) -> list[AnyMessage]:
    """Unwrap the google.rpc.Status in the trailing metadata; nothing when there is none.

    Raises:
        DecodeError: It is not one.
    """
    # Both flavours of RpcError iterate over pairs; their stubs do not say so.
    trailers = cast("Iterable[tuple[str, Any]] | None", error.trailing_metadata())
    for key, value in trailers or ():
        if key == DETAILS_KEY:
            return list(status_pb2.Status.FromString(value).details)
    return []


_BY_CODE = {family.default_code: family for family in KeybearerError.__subclasses__()}
_BY_REASON = {
    (error_class.default_code, error_class.default_reason): error_class
    for family in KeybearerError.__subclasses__()
    for error_class in (family, *family.__subclasses__())
    if error_class.default_reason
}
