"""Create and rotate that survive a lost answer, although nothing recoverable is stored.

A request that carries a request_id is remembered by what it did, never by what it answered. The
same request with a greater attempt mints a fresh secret for the same key, as long as the one that
got lost was certainly never used.
"""

from dataclasses import dataclass, replace

from keybearer_service.domain.errors import ReplayImpossible, RequestIdReused
from keybearer_service.domain.model import ApiKey, KeyState, RequestRecord
from keybearer_service.storage import REQUESTS_KEPT_FOR
from keybearer_service.usecases.mutations import Mutation
from keybearer_service.validation.usage import YOUNG


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What makes a request recognisable when it comes again."""

    request_id: str
    attempt: int
    body_hash: bytes
    """Of the method and the whole request but its attempt."""


@dataclass(frozen=True, slots=True)
class Replay:
    """An earlier try that may be answered with a fresh secret."""

    record: RequestRecord
    key: ApiKey


def find(mutation: Mutation, user_id: str, request: IdempotencyKey | None) -> Replay | None:
    """Answer the earlier try of the same request by the same user, None when this is the first.

    Raises:
        RequestIdReused: The request_id was used with another body.
        ReplayImpossible: What the earlier try did cannot be answered again.
    """
    if request is None:
        return None
    record = mutation.tx.request_record(user_id, request.request_id)
    if record is None or mutation.now - record.create_time > REQUESTS_KEPT_FOR:
        return None
    if record.body_hash != request.body_hash:
        raise RequestIdReused(record.key_id)
    key = mutation.tx.api_key(record.key_id)
    if (
        key is None
        # A delayed duplicate of a try that was answered: its caller holds that answer's token.
        or request.attempt <= record.attempt
        or key.state_at(mutation.now) is not KeyState.ACTIVE
        or key.secret_version != record.secret_version
        or mutation.now - record.create_time >= YOUNG
        or key.secret_used
    ):
        raise ReplayImpossible(record.key_id)
    return Replay(record, key)


def remember(
    mutation: Mutation,
    user_id: str,
    request: IdempotencyKey | None,
    key: ApiKey,
    replay: Replay | None,
) -> None:
    """Write down what this try did. A replay keeps the time of the first try."""
    if request is None:
        return
    if replay is not None:
        record = replace(replay.record, attempt=request.attempt, secret_version=key.secret_version)
    else:
        record = RequestRecord(
            user_id=user_id,
            request_id=request.request_id,
            body_hash=request.body_hash,
            attempt=request.attempt,
            key_id=key.id,
            secret_version=key.secret_version,
            create_time=mutation.now,
        )
    mutation.tx.put_request_record(record)
