"""The errors that callers see. Code raises them; the call pipeline alone turns them into a status.

One class for every reason of `error_reason.proto` that the service sends. Messages are for people:
they name the field, say what would be right, and never carry a secret or an exception's text.
"""

import enum
from typing import ClassVar


class Code(enum.IntEnum):
    """The codes of google.rpc.Code that the service sends."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class ServiceError(Exception):
    """The root. Never raised itself."""

    code: ClassVar[Code]
    reason: ClassVar[str]
    retry_after: float | None = None
    """Seconds, for RetryInfo."""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class CredentialsMissing(ServiceError):
    """No credential, or not exactly one in the form asked for."""

    code = Code.UNAUTHENTICATED
    reason = "CREDENTIALS_MISSING"

    def __init__(self) -> None:
        super().__init__("exactly one `authorization: Bearer <token>` is needed")


class CredentialsExpired(ServiceError):
    """The key has expired; its holder may know."""

    code = Code.UNAUTHENTICATED
    reason = "CREDENTIALS_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the key has expired")


class CredentialsInvalid(ServiceError):
    """Anything else wrong with the credential: one text for all."""

    code = Code.UNAUTHENTICATED
    reason = "CREDENTIALS_INVALID"

    def __init__(self) -> None:
        super().__init__("the credential is not accepted")


class RoleInsufficient(ServiceError):
    """The effective role is too low."""

    code = Code.PERMISSION_DENIED
    reason = "ROLE_INSUFFICIENT"


class ScopeInsufficient(ServiceError):
    """The key lacks a scope."""

    code = Code.PERMISSION_DENIED
    reason = "SCOPE_INSUFFICIENT"


class OperatorOnly(ServiceError):
    """Only the operator account may do this."""

    code = Code.PERMISSION_DENIED
    reason = "OPERATOR_ONLY"


class AuthorityExceeded(ServiceError):
    """The call would create more authority than its caller holds."""

    code = Code.PERMISSION_DENIED
    reason = "AUTHORITY_EXCEEDED"


class SignInAgain(ServiceError):
    """The person behind the session has not proven who they are for too long."""

    code = Code.PERMISSION_DENIED
    reason = "SIGN_IN_AGAIN"

    def __init__(self) -> None:
        super().__init__("this needs a sign-in of less than an hour ago")


class ResourceNotFound(ServiceError):
    """Nothing, or a thing of another account: alike."""

    code = Code.NOT_FOUND
    reason = "RESOURCE_NOT_FOUND"

    def __init__(self, resource: str, resource_id: str) -> None:
        """Name what was looked for; the id is the caller's own words and may be anything."""
        super().__init__(f"there is no such {resource}", resource=resource, id=resource_id[:64])


class FieldInvalid(ServiceError):
    """A field of the request is wrong."""

    code = Code.INVALID_ARGUMENT
    reason = "FIELD_INVALID"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", field=field)
        self.field = field
        self.description = description


class KeyRevoked(ServiceError):
    """The key is revoked, for good."""

    code = Code.FAILED_PRECONDITION
    reason = "KEY_REVOKED"

    def __init__(self, key_id: str) -> None:
        super().__init__("the key is revoked; create a new one", api_key_id=key_id)


class KeyExpired(ServiceError):
    """The key has expired and is not revived."""

    code = Code.FAILED_PRECONDITION
    reason = "KEY_EXPIRED"

    def __init__(self, key_id: str) -> None:
        super().__init__("the key has expired; create a new one", api_key_id=key_id)


class LastAdmin(ServiceError):
    """The account would be left without an administrator."""

    code = Code.FAILED_PRECONDITION
    reason = "LAST_ADMIN"

    def __init__(self, user_id: str) -> None:
        super().__init__(
            "this is the last administrator of the account; make another one first",
            user_id=user_id,
        )


class OperatorAccountProtected(ServiceError):
    """The operator account cannot be disabled."""

    code = Code.FAILED_PRECONDITION
    reason = "OPERATOR_ACCOUNT_PROTECTED"

    def __init__(self, account_id: str) -> None:
        super().__init__("the operator account cannot be disabled", account_id=account_id)


class EtagMismatch(ServiceError):
    """The resource has changed since it was read."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"

    def __init__(self) -> None:
        super().__init__("etag: changed since it was read; read it again and decide again")


class EmailTaken(ServiceError):
    """Another live user of the account has the address."""

    code = Code.ALREADY_EXISTS
    reason = "EMAIL_TAKEN"

    def __init__(self) -> None:
        super().__init__("email: another user of the account has this address")


class RequestIdReused(ServiceError):
    """The request_id was used with another body."""

    code = Code.ALREADY_EXISTS
    reason = "REQUEST_ID_REUSED"

    def __init__(self, key_id: str) -> None:
        super().__init__(
            "request_id: used before with another body; draw a new one", api_key_id=key_id
        )


class ReplayImpossible(ServiceError):
    """The request was carried out and its token cannot be issued again."""

    code = Code.ALREADY_EXISTS
    reason = "REPLAY_IMPOSSIBLE"

    def __init__(self, key_id: str) -> None:
        super().__init__(
            "the request was carried out before and its token cannot be issued again; "
            "rotate or revoke the key",
            api_key_id=key_id,
        )


class StoreFull(ServiceError):
    """The disk of the store is full; nothing was changed."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "STORE_FULL"
    retry_after = 5.0

    def __init__(self) -> None:
        super().__init__("the store is full; nothing was changed")


class QuotaExceeded(ServiceError):
    """The account holds as many of something as the settings allow; waiting does not help."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "QUOTA_EXCEEDED"

    def __init__(self, quota: str, limit: int, remedy: str) -> None:
        super().__init__(
            f"{quota}: the account has reached {limit}; {remedy}, or ask the server's operator to "
            "raise this setting",
            quota=quota,
            limit=str(limit),
        )


class Overloaded(ServiceError):
    """Too many calls."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"
    retry_after = 1.0

    def __init__(self, message: str = "too many calls; try again later") -> None:
        super().__init__(message)


class StoreUnavailable(ServiceError):
    """The store is locked or cannot be reached; nothing was changed."""

    code = Code.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"
    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("the store cannot be used right now; nothing was changed")


class OutcomeUnknown(ServiceError):
    """The commit failed: the change may or may not have happened."""

    code = Code.UNAVAILABLE
    reason = "OUTCOME_UNKNOWN"
    retry_after = 2.0

    def __init__(self) -> None:
        super().__init__(
            "the change may or may not have happened; repeat it with the same request_id "
            "and a greater attempt, or look"
        )


class StreamEnded(ServiceError):
    """A stream ends although nothing is wrong: it is old, or the server stops."""

    code = Code.UNAVAILABLE
    reason = "STREAM_ENDED"
    retry_after = 0.1


class Internal(ServiceError):
    """Unforeseen. The reference stands in the log too."""

    code = Code.INTERNAL
    reason = "INTERNAL"

    def __init__(self, reference: str) -> None:
        """Carry the reference and nothing of the cause."""
        super().__init__(f"internal error (reference {reference})", reference=reference)


class CallAbandoned(Exception):
    """The caller had gone before the change began; nothing was changed."""
