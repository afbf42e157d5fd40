"""Questions about tokens and the verdicts about them, between their messages and the model."""

from collections.abc import Iterable

from keybearer._wire.enums import Outcome
from keybearer._wire.limits import MAX_BATCH
from keybearer.access import Role
from keybearer.models import Presented
from keybearer.v1 import token_service_pb2
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import DAY, Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.verdict import Caller, TokenRecord, Verdict
from keybearer_service.rpc.convert.common import fill, member, timestamp, wire
from keybearer_service.storage.rows import labels_from_text
from keybearer_service.validation.validator import Question

EXPIRES_SOON = 30 * DAY


def question(
    scope: AccountScope, request: token_service_pb2.ValidateTokenRequest, prefix: str = ""
) -> Question:
    """Read a question about one token.

    Args:
        scope: The accounts that the key may be of.
        request: The question.
        prefix: What stands before the names of fields in errors.

    Raises:
        FieldInvalid: The role is unknown, or a required scope is ill-formed.
    """
    role = request.required_role
    if not 0 <= role <= Role.ADMIN:
        member(f"{prefix}required_role", Role, role)
    return Question(
        Presented(request.token),
        scope,
        validators.requirement(prefix, Role(role), request.required_scopes),
    )


def batch(
    request: token_service_pb2.BatchValidateTokensRequest,
) -> Iterable[tuple[str, token_service_pb2.ValidateTokenRequest]]:
    """Return the questions of a batch, each with what stands before its fields in errors.

    Raises:
        FieldInvalid: There are none, or more than 100.
    """
    if not 1 <= len(request.requests) <= MAX_BATCH:
        raise FieldInvalid("requests", f"1 to {MAX_BATCH}")
    return ((f"requests[{index}].", one) for index, one in enumerate(request.requests))


def verdict_to_proto(verdict: Verdict) -> token_service_pb2.ValidateTokenResponse:
    """Write a verdict.

    Runs on every validation, so it skips what most keys do not have, and fills nested messages in
    place: a message that is passed in is copied.
    """
    if verdict.match is None:
        response = token_service_pb2.ValidateTokenResponse(
            outcome=wire(verdict.outcome), revision=verdict.revision
        )
        fill(response.cache_for, verdict.cache_for)
        return response
    record = verdict.match.record
    response = token_service_pb2.ValidateTokenResponse(
        valid=verdict.outcome is Outcome.VALID,
        outcome=wire(verdict.outcome),
        key_id=record.key_id,
        key_name=record.key_name,
        account_id=record.account_id,
        owner_id=record.owner_id,
        owner_email=record.owner_email,
        owner_type=wire(record.owner_type),
        granted_role=wire(record.role),
        effective_role=wire(record.effective_role),
        revision=verdict.revision,
        secret_version=verdict.match.secret_version,
    )
    fill(response.cache_for, verdict.cache_for)
    if record.scopes:
        response.scopes.extend(record.scopes.split())
    if record.labels:
        response.labels.update(labels_from_text(record.labels))
    if record.expire_time is not None:
        fill(response.expire_time, record.expire_time)
    return response


def identity_to_proto(
    caller: Caller, revision: int, now: Micros
) -> token_service_pb2.WhoAmIResponse:
    """Write who the caller is."""
    match = caller.match
    record: TokenRecord = match.record
    return token_service_pb2.WhoAmIResponse(
        key_id=record.key_id,
        key_name=record.key_name,
        account_id=record.account_id,
        owner_id=record.owner_id,
        owner_email=record.owner_email,
        owner_type=wire(record.owner_type),
        granted_role=wire(record.role),
        effective_role=wire(record.effective_role),
        scopes=record.scopes.split(),
        labels=labels_from_text(record.labels),
        expire_time=timestamp(record.expire_time),
        expires_soon=match.valid_until is not None and match.valid_until - now <= EXPIRES_SOON,
        revision=revision,
        secret_version=match.secret_version,
        valid=True,
        outcome=wire(Outcome.VALID),
        overlap_end_time=timestamp(None if match.is_current else match.valid_until),
        is_operator=caller.is_operator,
    )
