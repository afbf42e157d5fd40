"""The values of the client: frozen dataclasses instead of messages.

Times are timezone-aware datetimes in UTC. Enums carry the numbers of the protos; a number that this
version does not know becomes UNSPECIFIED. No `repr` contains a token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from keybearer._wire.enums import (
    ApiKeyState,
    AuditAction,
    AuditActorType,
    AuditTargetType,
    Outcome,
    RevocationReason,
    RevocationResult,
    UserType,
)
from keybearer.access import Role

__all__ = [
    "Account",
    "ApiKey",
    "ApiKeyState",
    "AuditAction",
    "AuditActor",
    "AuditActorType",
    "AuditChange",
    "AuditEvent",
    "AuditTarget",
    "AuditTargetType",
    "Caller",
    "DeletedUser",
    "Identity",
    "IssuedAccount",
    "IssuedKey",
    "KeyRevocation",
    "Outcome",
    "Presented",
    "RevocationReason",
    "RevocationResult",
    "RevokedKeys",
    "User",
    "UserType",
    "Verdict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A tenant."""

    id: str
    name: str
    create_time: datetime
    disable_time: datetime | None
    """None unless the account is disabled."""
    is_operator: bool
    """Whether the administrators of this account manage all accounts."""
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person or a service account that may own keys."""

    id: str
    account_id: str
    email: str
    """For display, never for authorisation."""
    display_name: str
    role: Role
    """The current role. No key of the user holds more."""
    type: UserType
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    """None unless the user was deleted."""
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The record of a key. It contains no secret and no part of one."""

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
    """None when the key never expires."""
    last_used_time: datetime | None
    """None when the key was never used. The time may lag by a few seconds."""
    use_count: int
    """Approximate."""
    secret_version: int
    overlap_end_time: datetime | None
    """None unless the old secret of a rotation is still accepted."""
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
    """A key with its secret: the result of create and rotate."""

    api_key: ApiKey
    token: str = field(repr=False)
    """The secret. The service returns it once and stores it nowhere."""
    replayed: bool
    """Whether an earlier attempt created the key and this one issued another token for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedAccount:
    """A new account with its first administrator and that user's key."""

    account: Account
    user: User
    api_key: ApiKey
    token: str = field(repr=False)
    """The secret of the key. The service returns it once and stores it nowhere."""
    replayed: bool
    """Whether an earlier attempt created the account and this one issued another token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedUser:
    """The effect of deleting a user, done or only planned."""

    user: User
    revoked_key_ids: tuple[str, ...]
    """Keys that were revoked; at most 10,000 of them are listed."""
    revoked_key_count: int
    created_for_others_key_ids: tuple[str, ...]
    """Live keys of other owners that this user created and whose secrets the user may know; at most
    10,000 of them are listed."""
    created_for_others_key_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRevocation:
    """What became of one key of several that were to be revoked."""

    key_id: str
    result: RevocationResult
    name: str
    """Empty, as the owner's address is, when there is no such key."""
    owner_email: str
    last_used_time: datetime | None
    """None when the key was never used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokedKeys:
    """The effect of revoking several keys, done or only planned."""

    revocations: tuple[KeyRevocation, ...]
    """In the order of the ids that were given."""
    next_page_token: str
    """With a filter: what a further call goes on with; empty at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who calls. `account_id` with `owner_id` identifies the caller; the rest describes the key."""

    key_id: str
    account_id: str
    owner_id: str
    effective_role: Role
    """The lower of the granted role and the owner's current role. This is the one that counts."""
    granted_role: Role
    scopes: tuple[str, ...] = ()
    key_name: str = ""
    """For display."""
    owner_email: str = ""
    """For display, never for authorisation."""
    owner_type: UserType = UserType.UNSPECIFIED
    labels: Mapping[str, str] = field(default_factory=dict)
    expire_time: datetime | None = None
    """None when the key never expires."""
    secret_version: int = 0


class Presented:
    """A credential as it was presented: what verifiers and guards judge. It cannot be changed.

    Args:
        token: The token, without `Bearer`. It stands in no `repr`.
        peer: The address that the call came from, without its port; empty when it is not known. A
            callable is called when the address is asked for.
    """

    # Not a dataclass: every guarded call makes one, and asking grpc for the peer takes longer than
    # the rest of a check.
    __slots__ = ("_peer", "_token")

    def __init__(self, token: str, peer: str | Callable[[], str] = "") -> None:
        self._token = token
        self._peer = peer

    @property
    def token(self) -> str:
        """The token, without `Bearer`."""
        return self._token

    @property
    def peer(self) -> str:
        """The address that the call came from, without its port; empty when it is not known.

        Nothing uses it yet: it is carried for address rules on keys.
        """
        return self._peer if isinstance(self._peer, str) else self._peer()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(peer={self.peer!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of a validation."""

    outcome: Outcome
    identity: Identity | None = None
    """Whose token it is; None when the service does not say."""
    cache_for: timedelta = timedelta()
    """How long the verdict may be reused under a lease, counted from when the request was sent."""
    revision: int = 0
    """The revision of the store at which the verdict was read, or an older one."""
    epoch: str = ""
    """The history that the revision belongs to; empty when an older service does not say."""

    @property
    def valid(self) -> bool:
        """Whether the token is accepted and the identity behind it is known."""
        return self.outcome is Outcome.VALID and self.identity is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A caller and its own key, as WhoAmI describes them."""

    identity: Identity
    expires_soon: bool
    """Whether the key expires within 30 days."""
    overlap_end_time: datetime | None
    """When the presented secret stops working; None unless it is the old one of a rotation."""
    is_operator: bool
    """Whether the account is the operator account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditActor:
    """Who made a change."""

    type: AuditActorType
    key_id: str
    user_id: str
    user_email: str
    """The e-mail address at that time, for display."""
    session_id: str = ""
    """The session of the console that acted; empty when it was none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTarget:
    """What was changed."""

    type: AuditTargetType
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditChange:
    """One field that was changed, as text."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One entry of the audit log."""

    id: str
    seq: int
    """The position in the chain of the installation: from 1, without gaps."""
    time: datetime
    account_id: str
    actor: AuditActor
    action: AuditAction
    target: AuditTarget
    changes: tuple[AuditChange, ...]
    request_id: str
    peer: str
    hash: bytes
