"""Questions about tokens and the verdicts about them, between their messages and the model."""

from collections.abc import Callable, Sequence

from keybearer._wire.enums import Outcome
from keybearer._wire.limits import MAX_BATCH
from keybearer.access import Role
from keybearer.models import Presented
from keybearer.v1 import token_service_pb2
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import DAY, Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import Moment
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


def questions(
    authorize: Callable[[str, str], AccountScope],
    request: token_service_pb2.BatchValidateTokensRequest,
) -> list[Question]:
    """Read the questions of a batch.

    Args:
        authorize: Returns the accounts that a question is about; it gets the account that is named
            there, and the name of the field for errors. It is called once for each account.
        request: The batch.

    Raises:
        FieldInvalid: There are no questions, or more than 100, or one of them is ill-formed.
    """
    if not 1 <= len(request.requests) <= MAX_BATCH:
        raise FieldInvalid("requests", f"1 to {MAX_BATCH}")
    scopes: dict[str, AccountScope] = {}
    found = []
    for index, one in enumerate(request.requests):
        named = one.account_id
        if named not in scopes:
            scopes[named] = authorize(named, f"requests[{index}].account_id")
        found.append(question(scopes[named], one, f"requests[{index}]."))
    return found


def write_verdicts(
    verdicts: Sequence[Verdict], response: token_service_pb2.BatchValidateTokensResponse
) -> None:
    """Write verdicts of one moment into an empty message, which names their epoch once."""
    for verdict in verdicts:
        one = response.responses.add()
        write_verdict(verdict, one)
        response.epoch = one.epoch
        one.ClearField("epoch")


def write_verdict(verdict: Verdict, response: token_service_pb2.ValidateTokenResponse) -> None:
    """Write a verdict into an empty message.

    Runs on every validation, so it skips what most keys do not have and sets field by field: to
    construct a message with all of them takes twice as long.
    """
    response.outcome = wire(verdict.outcome)
    response.epoch, response.revision = verdict.moment
    fill(response.cache_for, verdict.cache_for)
    match = verdict.match
    if match is None:
        return
    record = match.record
    response.valid = verdict.outcome is Outcome.VALID
    response.key_id = record.key_id
    response.key_name = record.key_name
    response.account_id = record.account_id
    response.owner_id = record.owner_id
    response.owner_email = record.owner_email
    response.owner_type = wire(record.owner_type)
    response.granted_role = wire(record.role)
    response.effective_role = wire(record.effective_role)
    response.secret_version = match.secret_version
    if record.scopes:
        response.scopes.extend(record.scopes.split())
    if record.labels:
        response.labels.update(labels_from_text(record.labels))
    if record.expire_time is not None:
        fill(response.expire_time, record.expire_time)


def identity_to_proto(
    caller: Caller, moment: Moment, now: Micros
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
        revision=moment.revision,
        epoch=moment.epoch,
        secret_version=match.secret_version,
        valid=True,
        outcome=wire(Outcome.VALID),
        overlap_end_time=timestamp(None if match.is_current else match.valid_until),
        is_operator=caller.is_operator,
    )
