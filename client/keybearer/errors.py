"""The errors that a call to keybearer may raise.

Branch on the class, or on `reason`. Reasons are part of the API and never change; messages are for
people and may change. `from_rpc_error` is the only code that reads a `grpc.RpcError`.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

import grpc

from keybearer._wire.status import FieldViolation, read_details

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AuthorityExceededError",
    "CancelledError",
    "CredentialsExpiredError",
    "CredentialsInvalidError",
    "CredentialsMissingError",
    "DeadlineExceededError",
    "EmailTakenError",
    "EtagMismatchError",
    "FailedPreconditionError",
    "FieldInvalidError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "KeyExpiredError",
    "KeyRevokedError",
    "KeybearerError",
    "LastAdminError",
    "NotFoundError",
    "OperatorAccountProtectedError",
    "OperatorOnlyError",
    "OutcomeUnknownError",
    "OverloadedError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "ReplayImpossibleError",
    "RequestIdReusedError",
    "ResourceExhaustedError",
    "ResourceNotFoundError",
    "RoleInsufficientError",
    "ScopeInsufficientError",
    "SignInAgainError",
    "StoreFullError",
    "StoreUnavailableError",
    "StreamEndedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "VerifierUnavailableError",
    "from_rpc_error",
]


class KeybearerError(Exception):
    """A call that failed. Every other class here is a subclass."""

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = ""

    code: grpc.StatusCode
    """The status of the call."""
    reason: str
    """A name of `keybearer.v1.ErrorReason` without its prefix; empty when the transport failed."""
    metadata: Mapping[str, str]
    """What belongs to the reason, such as `api_key_id`."""
    retry_after: float | None
    """Seconds after which another attempt makes sense; None when the service does not say."""
    field_violations: tuple[FieldViolation, ...]
    """The fields that are wrong; empty unless `code` is INVALID_ARGUMENT."""
    request_id: str
    """The id of a create or rotate that may have happened: pass it again, with a greater `attempt`.
    Empty for every other call."""
    attempt: int
    """The last `attempt` that was made under `request_id`."""

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
        """Store what is known; `code` and `reason` default to those of the class."""
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
        """Return one line: code, reason if there is one, message."""
        reason = f" {self.reason}" if self.reason else ""
        return f"{self.code.name}{reason}: {self.message}"


class UnauthenticatedError(KeybearerError):
    """The credential of the call is missing or not accepted."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class CredentialsMissingError(UnauthenticatedError):
    """The call has not exactly one `authorization: Bearer <token>`."""

    default_reason = "CREDENTIALS_MISSING"


class CredentialsExpiredError(UnauthenticatedError):
    """The key has expired."""

    default_reason = "CREDENTIALS_EXPIRED"


class CredentialsInvalidError(UnauthenticatedError):
    """The credential is not accepted for another reason."""

    default_reason = "CREDENTIALS_INVALID"


class PermissionDeniedError(KeybearerError):
    """The caller is known but may not do this."""

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


class SignInAgainError(PermissionDeniedError):
    """The person who is signed in has not proven who they are for too long. Keys never see it."""

    default_reason = "SIGN_IN_AGAIN"


class NotFoundError(KeybearerError):
    """Nothing like this exists in an account that the caller may see."""

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
    """The state does not allow this, and another attempt will not help."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class KeyRevokedError(FailedPreconditionError):
    """The key is revoked, which is final."""

    default_reason = "KEY_REVOKED"


class KeyExpiredError(FailedPreconditionError):
    """The key has expired and cannot be reactivated."""

    default_reason = "KEY_EXPIRED"


class LastAdminError(FailedPreconditionError):
    """The account would be left without an administrator."""

    default_reason = "LAST_ADMIN"


class OperatorAccountProtectedError(FailedPreconditionError):
    """The operator account cannot be disabled."""

    default_reason = "OPERATOR_ACCOUNT_PROTECTED"


class AbortedError(KeybearerError):
    """Another change was made first."""

    default_code = grpc.StatusCode.ABORTED


class EtagMismatchError(AbortedError):
    """The resource has changed since it was read: read it and decide again."""

    default_reason = "ETAG_MISMATCH"


class AlreadyExistsError(KeybearerError):
    """The thing exists already."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class EmailTakenError(AlreadyExistsError):
    """Another user of the account has this e-mail address."""

    default_reason = "EMAIL_TAKEN"


class RequestIdReusedError(AlreadyExistsError):
    """The request id was used before with another request. Metadata: `api_key_id`."""

    default_reason = "REQUEST_ID_REUSED"


class ReplayImpossibleError(AlreadyExistsError):
    """The request was carried out before, and its token cannot be issued again.

    Metadata: `api_key_id`. Rotate or revoke that key.
    """

    default_reason = "REPLAY_IMPOSSIBLE"


class ResourceExhaustedError(KeybearerError):
    """A resource is exhausted; `retry_after` says when to try again, if waiting helps."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class StoreFullError(ResourceExhaustedError):
    """The disk of the store is full. Nothing was changed."""

    default_reason = "STORE_FULL"


class QuotaExceededError(ResourceExhaustedError):
    """The account has as many keys or users as the server allows. Waiting does not help.

    Metadata: `quota` and `limit`. Revoke keys or delete users that are no longer needed.
    """

    default_reason = "QUOTA_EXCEEDED"


class OverloadedError(ResourceExhaustedError):
    """The service receives too many calls."""

    default_reason = "OVERLOADED"


class UnavailableError(KeybearerError):
    """The service cannot be reached or cannot answer. This says nothing about any key."""

    default_code = grpc.StatusCode.UNAVAILABLE


class StoreUnavailableError(UnavailableError):
    """The store is locked or cannot be reached. Nothing was changed."""

    default_reason = "STORE_UNAVAILABLE"


class OutcomeUnknownError(UnavailableError):
    """The change may or may not have happened."""

    default_reason = "OUTCOME_UNKNOWN"


class VerifierUnavailableError(UnavailableError):
    """A token could not be checked: keybearer did not answer, or its answer makes no sense."""

    default_reason = "VERIFIER_UNAVAILABLE"


class StreamEndedError(UnavailableError):
    """A stream ended in the regular way: it is old, or the server stops. Open it again."""

    default_reason = "STREAM_ENDED"


class DeadlineExceededError(KeybearerError):
    """The deadline passed without an answer. A change may or may not have happened."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledError(KeybearerError):
    """The call was cancelled."""

    default_code = grpc.StatusCode.CANCELLED


class UnimplementedError(KeybearerError):
    """The service does not know the method."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(KeybearerError):
    """An unforeseen error. Metadata: `reference`, which stands in the log of the server too."""

    default_code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


def from_rpc_error(error: grpc.RpcError) -> KeybearerError:
    """Return the typed error that a failed call means. Raise it `from error`.

    A reason that this version does not know becomes the class of its code, and a code without a
    class becomes KeybearerError. Details that cannot be read are ignored: the code still counts.
    """
    code = error.code()
    # Both kinds of RpcError iterate over pairs; their stubs do not say so.
    trailers = cast("Iterable[tuple[str, Any]] | None", error.trailing_metadata())
    details = read_details(trailers)
    error_class = _BY_REASON.get((code, details.reason)) or _BY_CODE.get(code, KeybearerError)
    return error_class(
        error.details() or "",
        code=code,
        reason=details.reason,
        metadata=details.metadata,
        retry_after=details.retry_after,
        field_violations=details.field_violations,
    )


_BY_CODE = {family.default_code: family for family in KeybearerError.__subclasses__()}
_BY_REASON = {
    (error_class.default_code, error_class.default_reason): error_class
    for family in KeybearerError.__subclasses__()
    for error_class in (family, *family.__subclasses__())
    if error_class.default_reason
}
