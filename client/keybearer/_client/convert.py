"""Messages to models, and times to messages: what the service sends, read in one place.

An enum number that this version does not know becomes UNSPECIFIED.
"""

import enum
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keybearer.access import Role
from keybearer.models import (
    Account,
    ApiKey,
    ApiKeyState,
    AuditAction,
    AuditActor,
    AuditActorType,
    AuditChange,
    AuditEvent,
    AuditTarget,
    AuditTargetType,
    Caller,
    DeletedUser,
    Identity,
    IssuedAccount,
    IssuedKey,
    KeyRevocation,
    Outcome,
    RevocationReason,
    RevocationResult,
    RevokedKeys,
    User,
    UserType,
    Verdict,
)
from keybearer.v1 import (
    account_pb2,
    account_service_pb2,
    api_key_pb2,
    api_key_service_pb2,
    audit_event_pb2,
    token_service_pb2,
    user_pb2,
    user_service_pb2,
)

_Enum = TypeVar("_Enum", bound=enum.IntEnum)


def _enum(enum_class: type[_Enum], number: int) -> _Enum:
    """Return the member with a number; a number of a newer service becomes UNSPECIFIED."""
    try:
        return enum_class(number)
    except ValueError:
        return enum_class(0)


def datetime_of(stamp: Timestamp) -> datetime:
    """Return a timestamp as a datetime in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def _optional_time(message: Message, name: str) -> datetime | None:
    """Return a timestamp that may be absent."""
    return datetime_of(getattr(message, name)) if message.HasField(name) else None


def timestamp_of(moment: datetime) -> Timestamp:
    """Return a datetime as a timestamp.

    Raises:
        ValueError: The datetime has no timezone, so it names no moment.
    """
    if moment.tzinfo is None:
        raise ValueError("a datetime without a timezone names no moment; pass tzinfo=UTC")
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def duration_of(length: timedelta) -> Duration:
    """Return a timedelta as a duration."""
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def account_of(message: account_pb2.Account) -> Account:
    """Return an account."""
    return Account(
        id=message.id,
        name=message.name,
        create_time=datetime_of(message.create_time),
        disable_time=_optional_time(message, "disable_time"),
        is_operator=message.is_operator,
        etag=message.etag,
    )


def user_of(message: user_pb2.User) -> User:
    """Return a user."""
    return User(
        id=message.id,
        account_id=message.account_id,
        email=message.email,
        display_name=message.display_name,
        role=_enum(Role, message.role),
        type=_enum(UserType, message.type),
        create_time=datetime_of(message.create_time),
        update_time=datetime_of(message.update_time),
        delete_time=_optional_time(message, "delete_time"),
        etag=message.etag,
    )


def api_key_of(message: api_key_pb2.ApiKey) -> ApiKey:
    """Return the record of a key."""
    return ApiKey(
        id=message.id,
        account_id=message.account_id,
        name=message.name,
        description=message.description,
        owner_id=message.owner_id,
        owner_email=message.owner_email,
        role=_enum(Role, message.role),
        effective_role=_enum(Role, message.effective_role),
        scopes=tuple(message.scopes),
        labels=dict(message.labels),
        state=_enum(ApiKeyState, message.state),
        create_time=datetime_of(message.create_time),
        created_by=message.created_by,
        created_by_email=message.created_by_email,
        update_time=datetime_of(message.update_time),
        expire_time=_optional_time(message, "expire_time"),
        last_used_time=_optional_time(message, "last_used_time"),
        use_count=message.use_count,
        secret_version=message.secret_version,
        overlap_end_time=_optional_time(message, "overlap_end_time"),
        old_secret_last_used_time=_optional_time(message, "old_secret_last_used_time"),
        disable_time=_optional_time(message, "disable_time"),
        revoke_time=_optional_time(message, "revoke_time"),
        revoked_by=message.revoked_by,
        revocation_reason=_enum(RevocationReason, message.revocation_reason),
        revocation_note=message.revocation_note,
        etag=message.etag,
    )


def issued_key_of(
    message: api_key_service_pb2.CreateApiKeyResponse
    | api_key_service_pb2.RotateApiKeyResponse
    | token_service_pb2.RotateSelfResponse,
) -> IssuedKey:
    """Return a key with its secret."""
    return IssuedKey(
        api_key=api_key_of(message.api_key), token=message.token, replayed=message.replayed
    )


def issued_account_of(message: account_service_pb2.CreateAccountResponse) -> IssuedAccount:
    """Return a new account."""
    return IssuedAccount(
        account=account_of(message.account),
        user=user_of(message.user),
        api_key=api_key_of(message.api_key),
        token=message.token,
        replayed=message.replayed,
    )


def deleted_user_of(message: user_service_pb2.DeleteUserResponse) -> DeletedUser:
    """Return what deleting a user did."""
    return DeletedUser(
        user=user_of(message.user),
        revoked_key_ids=tuple(message.revoked_key_ids),
        revoked_key_count=message.revoked_key_count,
        created_for_others_key_ids=tuple(message.created_for_others_key_ids),
        created_for_others_key_count=message.created_for_others_key_count,
    )


def revoked_keys_of(message: api_key_service_pb2.RevokeApiKeysResponse) -> RevokedKeys:
    """Return what became of several keys."""
    return RevokedKeys(
        revocations=tuple(
            KeyRevocation(
                key_id=one.id,
                result=_enum(RevocationResult, one.result),
                name=one.name,
                owner_email=one.owner_email,
                last_used_time=_optional_time(one, "last_used_time"),
            )
            for one in message.revocations
        ),
        next_page_token=message.next_page_token,
    )


def _identity_of(
    message: token_service_pb2.ValidateTokenResponse | token_service_pb2.WhoAmIResponse,
) -> Identity | None:
    """Return the identity in a response, or None when it names nobody."""
    if not (message.key_id and message.account_id and message.owner_id):
        return None
    return Identity(
        key_id=message.key_id,
        account_id=message.account_id,
        owner_id=message.owner_id,
        effective_role=_enum(Role, message.effective_role),
        granted_role=_enum(Role, message.granted_role),
        scopes=tuple(message.scopes),
        key_name=message.key_name,
        owner_email=message.owner_email,
        owner_type=_enum(UserType, message.owner_type),
        labels=dict(message.labels),
        expire_time=_optional_time(message, "expire_time"),
        secret_version=message.secret_version,
    )


def verdict_of(message: token_service_pb2.ValidateTokenResponse, epoch: str = "") -> Verdict:
    """Return a verdict; one that contradicts itself becomes UNSPECIFIED, which is a denial.

    Args:
        message: The verdict.
        epoch: That of the batch it is from; empty when it came alone.
    """
    outcome = _enum(Outcome, message.outcome)
    identity = _identity_of(message)
    if message.valid is not (outcome is Outcome.VALID) or (message.valid and identity is None):
        return Verdict(outcome=Outcome.UNSPECIFIED)
    return Verdict(
        outcome=outcome,
        identity=identity,
        cache_for=message.cache_for.ToTimedelta(),
        revision=message.revision,
        epoch=epoch or message.epoch,
    )


def caller_of(message: token_service_pb2.WhoAmIResponse) -> Caller:
    """Return what a caller learns about its own key.

    Raises:
        ValueError: The response names no key.
    """
    identity = _identity_of(message)
    if identity is None:
        raise ValueError("the response of WhoAmI names no key")
    return Caller(
        identity=identity,
        expires_soon=message.expires_soon,
        overlap_end_time=_optional_time(message, "overlap_end_time"),
        is_operator=message.is_operator,
    )


def audit_event_of(message: audit_event_pb2.AuditEvent) -> AuditEvent:
    """Return an audit event."""
    return AuditEvent(
        id=message.id,
        seq=message.seq,
        time=datetime_of(message.time),
        account_id=message.account_id,
        actor=AuditActor(
            type=_enum(AuditActorType, message.actor.type),
            key_id=message.actor.key_id,
            user_id=message.actor.user_id,
            user_email=message.actor.user_email,
            session_id=message.actor.session_id,
        ),
        action=_enum(AuditAction, message.action),
        target=AuditTarget(type=_enum(AuditTargetType, message.target.type), id=message.target.id),
        changes=tuple(
            AuditChange(field=change.field, before=change.before, after=change.after)
            for change in message.changes
        ),
        request_id=message.request_id,
        peer=message.peer,
        hash=message.hash,
    )


def verdicts_of(batch: token_service_pb2.BatchValidateTokensResponse) -> list[Verdict]:
    """Return the verdicts of a batch, in order."""
    return [verdict_of(message, batch.epoch) for message in batch.responses]
