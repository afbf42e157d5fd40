"""Create and rotate can be repeated safely after a lost response, although no secret is stored.

A request with a request_id is remembered by what it did, never by its response. The same request
with a greater attempt issues a fresh secret for the same key, as long as the lost one was certainly
never used. `find` looks at that first; `KeyIssuer.reissue` makes it a condition of what it writes.
"""

from dataclasses import dataclass, replace

from keybearer._wire.enums import ApiKeyState
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.errors import ReplayImpossible, RequestIdReused
from keybearer_service.domain.model import ApiKey, RequestRecord
from keybearer_service.storage import REQUESTS_KEPT_FOR, YOUNG, Foreseen
from keybearer_service.usecases.mutations import Mutation


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What identifies a request when it is repeated."""

    request_id: str
    attempt: int
    body_hash: bytes
    """Over the method and the whole request except its attempt."""


@dataclass(frozen=True, slots=True)
class Replay:
    """An earlier attempt whose secret may be reissued."""

    record: RequestRecord
    key: ApiKey


def foreseen(user_id: str, request: IdempotencyKey | None) -> Foreseen:
    """Return what `find` is going to read, unless there was an earlier attempt."""
    if request is not None:
        yield lambda reader: reader.request_record(user_id, request.request_id)


def find(mutation: Mutation, user_id: str, request: IdempotencyKey | None) -> Replay | None:
    """Return the earlier attempt of the same request by the same user, None when there was none.

    Raises:
        RequestIdReused: The user has used the request_id with another body.
        ReplayImpossible: The secret of the earlier attempt cannot be reissued.
    """
    if request is None:
        return None
    record = mutation.tx.request_record(user_id, request.request_id)
    if record is None or mutation.now - record.create_time > REQUESTS_KEPT_FOR:
        return None
    if record.body_hash != request.body_hash:
        raise RequestIdReused(record.key_id)
    key = mutation.tx.api_key(mutation.scope, record.key_id)
    # A delayed duplicate of an attempt that was answered: the caller has the token.
    is_duplicate = request.attempt <= record.attempt
    if key is None or is_duplicate or not may_reissue(record, key, mutation.now):
        raise ReplayImpossible(record.key_id)
    return Replay(record, key)


def may_reissue(record: RequestRecord, key: ApiKey, now: Micros) -> bool:
    """Return whether a greater attempt of a request would get a fresh secret of its key."""
    return (
        key.state_at(now) is ApiKeyState.ACTIVE
        and key.secret_version == record.secret_version
        and now - record.create_time < YOUNG
        and not key.secret_used
    )


def remember(
    mutation: Mutation,
    user_id: str,
    request: IdempotencyKey | None,
    key: ApiKey,
    replay: Replay | None,
) -> None:
    """Remember what this attempt did. A replay keeps the time of the first attempt."""
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
