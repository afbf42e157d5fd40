"""What the client answers with: frozen values instead of messages.

Times are timezone-aware datetimes in UTC. Enums carry the numbers of the protos; a number this
version does not know becomes UNSPECIFIED. Tokens are kept out of every repr.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keybearer.access import Role
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


class UserType(enum.IntEnum):
    """What kind of user this is."""

    UNSPECIFIED = 0
    PERSON = 1
    SERVICE_ACCOUNT = 2


class ApiKeyState(enum.IntEnum):
    """The state of a key. REVOKED wins over EXPIRED, EXPIRED over DISABLED."""

    UNSPECIFIED = 0
    ACTIVE = 1
    DISABLED = 2
    EXPIRED = 3
    REVOKED = 4


class RevocationReason(enum.IntEnum):
    """Why a key was revoked. The first four may be given; the others are the service's words."""

    UNSPECIFIED = 0
    LOST = 1
    COMPROMISED = 2
    SUPERSEDED = 3
    NO_LONGER_USED = 4
    OWNER_DELETED = 5
    CREATOR_DELETED = 6
    REPORTED_BY_HOLDER = 7


class Outcome(enum.IntEnum):
    """The verdict about a token. Whatever is not VALID is a denial."""

    UNSPECIFIED = 0
    VALID = 1
    NOT_FOUND = 2
    REVOKED = 3
    EXPIRED = 4
    DISABLED = 5
    ROLE_INSUFFICIENT = 6
    SCOPE_INSUFFICIENT = 7


class AuditAction(enum.IntEnum):
    """What happened."""

    UNSPECIFIED = 0
    INSTALLATION_CREATED = 1
    INSTALLATION_RESTORED = 2
    PEPPER_ADDED = 3
    PEPPER_RETIRED = 4
    ADMIN_TOKEN_ISSUED = 5
    ACCOUNT_CREATED = 6
    ACCOUNT_DISABLED = 7
    ACCOUNT_ENABLED = 8
    USER_CREATED = 9
    USER_UPDATED = 10
    USER_DELETED = 11
    API_KEY_CREATED = 12
    API_KEY_UPDATED = 13
    API_KEY_DISABLED = 14
    API_KEY_ENABLED = 15
    API_KEY_ROTATED = 16
    API_KEY_REMINTED = 17
    API_KEY_REVOKED = 18
    API_KEY_OVERLAP_ENDED = 19
    CALL_REFUSED = 20


class AuditActorType(enum.IntEnum):
    """What an actor is."""

    UNSPECIFIED = 0
    KEY = 1
    HOLDER = 2
    LOCAL_COMMAND = 3
    ANONYMOUS = 4


class AuditTargetType(enum.IntEnum):
    """What was changed."""

    UNSPECIFIED = 0
    INSTALLATION = 1
    ACCOUNT = 2
    USER = 3
    API_KEY = 4
    METHOD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A tenant."""

    id: str
    name: str
    create_time: datetime
    disable_time: datetime | None
    """Present while the account is disabled."""
    is_operator: bool
    """Whether its administrators manage accounts."""
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who may own keys."""

    id: str
    account_id: str
    email: str
    """For display, never for authorisation."""
    display_name: str
    role: Role
    """The current role; it bounds every key the user owns."""
    type: UserType
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    """Present when the user was deleted."""
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The record of a key. It holds no secret, nor part of one."""

    id: str
    account_id: str
    name: str
    description: str
    owner_id: str
    owner_email: str
    """For display."""
    role: Role
    """The granted role."""
    effective_role: Role
    """The lower of the granted role and the owner's current role."""
    scopes: tuple[str, ...]
    labels: Mapping[str, str]
    state: ApiKeyState
    create_time: datetime
    created_by: str
    """The id of the user that created the key."""
    created_by_email: str
    """For display."""
    update_time: datetime
    expire_time: datetime | None
    """None: it never expires."""
    last_used_time: datetime | None
    """None: never used. May lag by a few seconds."""
    use_count: int
    """Approximate."""
    secret_version: int
    overlap_end_time: datetime | None
    """Present while an old secret lives beside the current one."""
    old_secret_last_used_time: datetime | None
    disable_time: datetime | None
    revoke_time: datetime | None
    revoked_by: str
    """The id of the user that revoked the key; empty when a holder did."""
    revocation_reason: RevocationReason
    revocation_note: str
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A key with its secret: what create and rotate answer."""

    api_key: ApiKey
    token: str = field(repr=False)
    """The secret. It is shown this one time and stored nowhere."""
    replayed: bool
    """Whether an earlier try had made the key and a later one minted this token for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedAccount:
    """A new account with its first administrator and that user's key."""

    account: Account
    user: User
    api_key: ApiKey
    token: str = field(repr=False)
    """The secret of the key. It is shown this one time and stored nowhere."""
    replayed: bool
    """Whether an earlier try had made the account and a later one minted this token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedUser:
    """What deleting a user did, or would do."""

    user: User
    revoked_key_ids: tuple[str, ...]
    """At most 10,000 of the keys that were revoked."""
    revoked_key_count: int
    created_for_others_key_ids: tuple[str, ...]
    """At most 10,000 of the live keys of other owners that this user made and may know."""
    created_for_others_key_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who calls. `account_id` with `owner_id` is the caller; the rest describes the key."""

    key_id: str
    account_id: str
    owner_id: str
    effective_role: Role
    """The role that counts: the lower of the granted role and the owner's current role."""
    granted_role: Role
    scopes: tuple[str, ...] = ()
    key_name: str = ""
    """For display."""
    owner_email: str = ""
    """For display, never for authorisation."""
    owner_type: UserType = UserType.UNSPECIFIED
    labels: Mapping[str, str] = field(default_factory=dict)
    expire_time: datetime | None = None
    """None: the key never expires."""
    secret_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer about a token."""

    outcome: Outcome
    identity: Identity | None = None
    """Whose token it is; None when that is not told."""
    cache_for: timedelta = timedelta()
    """How long the answer may be reused under a lease, counted from when the question was sent."""
    revision: int = 0
    """The revision of the store the verdict was read at, or an older one."""

    @property
    def valid(self) -> bool:
        """Whether the token opens its key and met what was asked."""
        return self.outcome is Outcome.VALID and self.identity is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a caller learns about its own key."""

    identity: Identity
    expires_soon: bool
    """Whether the key expires within 30 days."""
    overlap_end_time: datetime | None
    """When the secret that was used stops working, if it is the old one of a rotation."""
    is_operator: bool
    """Whether the account is the operator account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditActor:
    """Who did it."""

    type: AuditActorType
    key_id: str
    user_id: str
    user_email: str
    """The address at that moment, for display."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTarget:
    """What it was done to."""

    type: AuditTargetType
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditChange:
    """One field that changed, as text."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One entry of the audit log."""

    id: str
    seq: int
    """Position in the chain of the installation, from 1, without gaps."""
    time: datetime
    account_id: str
    actor: AuditActor
    action: AuditAction
    target: AuditTarget
    changes: tuple[AuditChange, ...]
    request_id: str
    peer: str
    hash: bytes


_Enum = TypeVar("_Enum", bound=enum.IntEnum)


def _enum(enum_class: type[_Enum], number: int) -> _Enum:
    """Read an enum number; one from a newer service becomes UNSPECIFIED."""
    try:
        return enum_class(number)
    except ValueError:
        return enum_class(0)


def time_of(stamp: Timestamp) -> datetime:
    """Read a timestamp as a datetime in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def _optional_time(message: Message, name: str) -> datetime | None:
    """Read a timestamp that may be absent."""
    return time_of(getattr(message, name)) if message.HasField(name) else None


def stamp_of(moment: datetime) -> Timestamp:
    """Write a datetime as a timestamp.

    Raises:
        ValueError: It has no timezone, so it names no moment.
    """
    if moment.tzinfo is None:
        raise ValueError("a datetime without a timezone names no moment; pass tzinfo=UTC")
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def duration_of(length: timedelta) -> Duration:
    """Write a timedelta as a duration."""
    duration = Duration()
    duration.FromTimedelta(length)
    return duration


def account_of(message: account_pb2.Account) -> Account:
    """Read an account."""
    return Account(
        id=message.id,
        name=message.name,
        create_time=time_of(message.create_time),
        disable_time=_optional_time(message, "disable_time"),
        is_operator=message.is_operator,
        etag=message.etag,
    )


def user_of(message: user_pb2.User) -> User:
    """Read a user."""
    return User(
        id=message.id,
        account_id=message.account_id,
        email=message.email,
        display_name=message.display_name,
        role=_enum(Role, message.role),
        type=_enum(UserType, message.type),
        create_time=time_of(message.create_time),
        update_time=time_of(message.update_time),
        delete_time=_optional_time(message, "delete_time"),
        etag=message.etag,
    )


def api_key_of(message: api_key_pb2.ApiKey) -> ApiKey:
    """Read the record of a key."""
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
        create_time=time_of(message.create_time),
        created_by=message.created_by,
        created_by_email=message.created_by_email,
        update_time=time_of(message.update_time),
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
    """Read a key with its secret."""
    return IssuedKey(
        api_key=api_key_of(message.api_key), token=message.token, replayed=message.replayed
    )


def issued_account_of(message: account_service_pb2.CreateAccountResponse) -> IssuedAccount:
    """Read a new account."""
    return IssuedAccount(
        account=account_of(message.account),
        user=user_of(message.user),
        api_key=api_key_of(message.api_key),
        token=message.token,
        replayed=message.replayed,
    )


def deleted_user_of(message: user_service_pb2.DeleteUserResponse) -> DeletedUser:
    """Read what deleting a user did."""
    return DeletedUser(
        user=user_of(message.user),
        revoked_key_ids=tuple(message.revoked_key_ids),
        revoked_key_count=message.revoked_key_count,
        created_for_others_key_ids=tuple(message.created_for_others_key_ids),
        created_for_others_key_count=message.created_for_others_key_count,
    )


def _identity_of(
    message: token_service_pb2.ValidateTokenResponse | token_service_pb2.WhoAmIResponse,
) -> Identity | None:
    """Read whose token it is; None when the answer names nobody."""
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


def verdict_of(message: token_service_pb2.ValidateTokenResponse) -> Verdict:
    """Read a verdict; one that contradicts itself becomes UNSPECIFIED, a denial."""
    outcome = _enum(Outcome, message.outcome)
    identity = _identity_of(message)
    if message.valid is not (outcome is Outcome.VALID) or (message.valid and identity is None):
        return Verdict(outcome=Outcome.UNSPECIFIED)
    return Verdict(
        outcome=outcome,
        identity=identity,
        cache_for=message.cache_for.ToTimedelta(),
        revision=message.revision,
    )


def caller_of(message: token_service_pb2.WhoAmIResponse) -> Caller:
    """Read what a caller learns about its own key.

    Raises:
        ValueError: The answer names nobody.
    """
    identity = _identity_of(message)
    if identity is None:
        raise ValueError("the answer of WhoAmI names no key")
    return Caller(
        identity=identity,
        expires_soon=message.expires_soon,
        overlap_end_time=_optional_time(message, "overlap_end_time"),
        is_operator=message.is_operator,
    )


def audit_event_of(message: audit_event_pb2.AuditEvent) -> AuditEvent:
    """Read an audit event."""
    return AuditEvent(
        id=message.id,
        seq=message.seq,
        time=time_of(message.time),
        account_id=message.account_id,
        actor=AuditActor(
            type=_enum(AuditActorType, message.actor.type),
            key_id=message.actor.key_id,
            user_id=message.actor.user_id,
            user_email=message.actor.user_email,
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


def verdicts_of(messages: Iterable[token_service_pb2.ValidateTokenResponse]) -> list[Verdict]:
    """Read verdicts, in order."""
    return [verdict_of(message) for message in messages]
