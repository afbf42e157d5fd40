"""Why a call is refused: code, reason, text and metadata, the same at every entry point."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import grpc
from google.rpc import status_pb2

from keybearer._wire.challenge import WWW_AUTHENTICATE, challenge_of
from keybearer._wire.enums import Outcome
from keybearer._wire.status import DETAILS_KEY, FieldViolation, StatusDetails, write_status
from keybearer.access import AccessRule, Role

RETRY_AFTER: Final = 1.0
"""Seconds after which a caller may try again when its credential cannot be checked."""
CANNOT_CHECK: Final = "the credential cannot be checked right now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A refusal in the words of the wire contract, section 6."""

    code: grpc.StatusCode
    reason: str
    """A name of `keybearer.v1.ErrorReason` without its prefix."""
    message: str
    """For people; it says nothing that the caller may not know."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    """Seconds; None when another attempt does not help."""
    field_violations: tuple[FieldViolation, ...] = ()

    @property
    def challenge(self) -> str:
        """The value of `www-authenticate`; empty when there is none."""
        return challenge_of(self.code, self.reason, self.message, self.metadata)

    def status(self) -> status_pb2.Status:
        """Return the status with its details."""
        details = StatusDetails(
            reason=self.reason,
            metadata=self.metadata,
            retry_after=self.retry_after,
            field_violations=self.field_violations,
        )
        return write_status(self.code, self.message, details)

    def trailers(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return the trailing metadata of a gRPC response: the status and the challenge."""
        trailers: tuple[tuple[str, str | bytes], ...] = (
            (DETAILS_KEY, self.status().SerializeToString()),
        )
        challenge = self.challenge
        return (*trailers, (WWW_AUTHENTICATE, challenge)) if challenge else trailers


CREDENTIALS_MISSING: Final = Denial(
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CREDENTIALS_MISSING",
    message="exactly one `authorization: Bearer <token>` is needed",
)
CREDENTIALS_INVALID: Final = Denial(
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CREDENTIALS_INVALID",
    message="the credential is not accepted",
)
CREDENTIALS_EXPIRED: Final = Denial(
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CREDENTIALS_EXPIRED",
    message="the key has expired",
)
NO_RULE: Final = Denial(
    code=grpc.StatusCode.PERMISSION_DENIED,
    reason="ROLE_INSUFFICIENT",
    message="this has no access rule, so nobody may call it",
)
OPERATOR_ONLY: Final = Denial(
    code=grpc.StatusCode.PERMISSION_DENIED,
    reason="OPERATOR_ONLY",
    message="only callers of the operator account may do this",
)


def denial_of(outcome: Outcome, rule: AccessRule, role: Role) -> Denial:
    """Return the denial that an outcome means.

    Args:
        outcome: Of the validation. Every one but VALID is a denial, also one that is unknown here.
        rule: What the caller was judged by.
        role: The effective role of the caller's key; UNSPECIFIED when the caller is not known.
    """
    if outcome is Outcome.ROLE_INSUFFICIENT:
        needed = ", ".join(one.name for one in rule.accepted_roles if one)
        return Denial(
            code=grpc.StatusCode.PERMISSION_DENIED,
            reason="ROLE_INSUFFICIENT",
            message=f"this needs the role {needed}; the key's effective role is {role.name}",
            metadata={"required_role": needed, "effective_role": role.name},
        )
    if outcome is Outcome.SCOPE_INSUFFICIENT:
        scopes = ", ".join(rule.scopes)
        return Denial(
            code=grpc.StatusCode.PERMISSION_DENIED,
            reason="SCOPE_INSUFFICIENT",
            message=f"this needs the scopes {scopes}",
            metadata={"required_scopes": scopes},
        )
    return CREDENTIALS_EXPIRED if outcome is Outcome.EXPIRED else CREDENTIALS_INVALID


def field_invalid(name: str, description: str) -> Denial:
    """Return the refusal of a request in which one field is wrong.

    Args:
        name: The field, as in the proto; `(message)` for bytes that do not parse.
        description: What would be right.
    """
    return Denial(
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="FIELD_INVALID",
        message=f"{name}: {description}",
        metadata={"field": name},
        field_violations=(FieldViolation(name, description),),
    )


def internal(reference: str) -> Denial:
    """Return the answer to an unforeseen error.

    Args:
        reference: Finds the error in the log; the caller learns nothing else of it.
    """
    return Denial(
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        message=f"internal error (reference {reference})",
        metadata={"reference": reference},
    )


def verifier_unavailable(retry_after: float | None = None) -> Denial:
    """Return the answer of a guard that cannot check a credential.

    Args:
        retry_after: Seconds; None means RETRY_AFTER.
    """
    return Denial(
        code=grpc.StatusCode.UNAVAILABLE,
        reason="VERIFIER_UNAVAILABLE",
        message=CANNOT_CHECK,
        retry_after=RETRY_AFTER if retry_after is None else retry_after,
    )


MALFORMED_MESSAGE: Final = field_invalid("(message)", "not a message of this method")
