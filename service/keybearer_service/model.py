"""What the service is about: accounts, users, keys, verdicts, and the rules of time between them.

Frozen values without I/O. Every time is in microseconds since the epoch; None means never or not.
"""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from keybearer.access import NO_CONTEXT, AccessRule, Decision, Role, decide


class UserType(enum.IntEnum):
    """The numbers of `keybearer.v1.UserType`."""

    PERSON = 1
    SERVICE_ACCOUNT = 2


class KeyState(enum.IntEnum):
    """The numbers of `keybearer.v1.ApiKeyState`."""

    ACTIVE = 1
    DISABLED = 2
    EXPIRED = 3
    REVOKED = 4


class RevocationReason(enum.IntEnum):
    """The numbers of `keybearer.v1.RevocationReason`."""

    LOST = 1
    COMPROMISED = 2
    SUPERSEDED = 3
    NO_LONGER_USED = 4
    OWNER_DELETED = 5
    CREATOR_DELETED = 6
    REPORTED_BY_HOLDER = 7


REASONS_OF_ADMINS = frozenset(
    {
        RevocationReason.LOST,
        RevocationReason.COMPROMISED,
        RevocationReason.SUPERSEDED,
        RevocationReason.NO_LONGER_USED,
    }
)
"""What RevokeApiKey takes; the other reasons are the service's own words."""


class Outcome(enum.IntEnum):
    """The numbers of `keybearer.v1.ValidationOutcome`."""

    VALID = 1
    NOT_FOUND = 2
    REVOKED = 3
    EXPIRED = 4
    DISABLED = 5
    ROLE_INSUFFICIENT = 6
    SCOPE_INSUFFICIENT = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The one row that says which database this is."""

    epoch: str
    """Names this history of revisions."""
    revision: int
    """How many changes there were."""
    prefix: str
    retired_prefixes: tuple[str, ...]
    operator_account_id: str
    create_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A tenant."""

    id: str
    name: str
    create_time: int
    disable_time: int | None = None
    is_operator: bool = False
    row_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An owner of keys."""

    id: str
    account_id: str
    email: str
    display_name: str
    role: Role
    type: UserType
    create_time: int
    update_time: int
    delete_time: int | None = None
    row_version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The record of a key, without its secrets' digests."""

    id: str
    account_id: str
    owner_id: str
    name: str
    description: str
    role: Role
    scopes: tuple[str, ...]
    labels: dict[str, str] = field(default_factory=dict)
    create_time: int
    created_by: str
    update_time: int
    expire_time: int | None
    disable_time: int | None = None
    revoke_time: int | None = None
    revoked_by: str = ""
    revocation_reason: RevocationReason | None = None
    revocation_note: str = ""
    row_version: int = 1
    secret_version: int = 1
    secret_create_time: int
    secret_used: bool = False
    """Whether the current secret was ever seen to work; it then cannot be minted again."""
    overlap_end_time: int | None = None
    last_used_time: int | None = None
    use_count: int = 0
    old_secret_last_used_time: int | None = None
    # Read beside the row, never written with it:
    owner_email: str = ""
    owner_role: Role = Role.UNSPECIFIED
    created_by_email: str = ""

    @property
    def effective_role(self) -> Role:
        """The lower of the granted role and the owner's current role."""
        return min(self.role, self.owner_role)

    def state_at(self, now: int) -> KeyState:
        """Answer the state; REVOKED, then EXPIRED, then DISABLED wins."""
        return key_state(self.revoke_time, self.expire_time, self.disable_time, now)

    def overlaps_at(self, now: int) -> bool:
        """Tell whether an old secret lives beside the current one."""
        return self.overlap_end_time is not None and now < self.overlap_end_time


class StoredSecret(NamedTuple):
    """What is kept of a secret."""

    digest: bytes
    pepper_id: str
    version: int


_ROLES = {role.value: role for role in Role}  # a call of the enum costs three times as much


class TokenRecord(NamedTuple):
    """Everything a verdict needs, in the order of the one statement that reads it.

    A named tuple, not a dataclass: it is made from a row on every validation, in a quarter of the
    time.
    """

    key_id: str
    account_id: str
    owner_id: str
    key_name: str
    role: int
    scopes: str
    """Separated by blanks."""
    labels: str
    """A JSON object; empty for none."""
    expire_time: int | None
    disable_time: int | None
    revoke_time: int | None
    secret_version: int
    secret_used: int
    secret_create_time: int
    digest: bytes
    pepper_id: str
    old_digest: bytes | None
    old_pepper_id: str | None
    old_secret_version: int | None
    overlap_end_time: int | None
    owner_role: int
    owner_email: str
    owner_type: int
    owner_delete_time: int | None
    account_disable_time: int | None
    account_is_operator: int

    @property
    def effective_role(self) -> Role:
        """The lower of the granted role and the owner's current role."""
        return _ROLES[min(self.role, self.owner_role)]


class Match(NamedTuple):
    """A record together with the secret of it that was presented."""

    record: TokenRecord
    secret_version: int
    valid_until: int | None
    """When this secret stops working of itself: its key's expiry, or the end of its overlap."""
    is_current: bool
    """False for the old secret of a rotation."""

    def lives_at(self, now: int) -> bool:
        """Tell whether neither the key nor this secret of it has come to its end of itself."""
        return self.valid_until is None or now < self.valid_until


class Verdict(NamedTuple):
    """The answer about a token."""

    outcome: Outcome
    revision: int
    cache_for: int
    """Microseconds; 0 means not at all."""
    match: Match | None
    """None for NOT_FOUND: then nothing is told."""


MAX_CACHE_FOR = 60_000_000
"""A positive verdict may be reused for 60 s, under a lease: section 3 of the wire contract."""
MAX_NEGATIVE_CACHE_FOR = 1_000_000
"""A negative one for 1 s: a new key must not be refused for long because it was probed before."""


def key_state(
    revoke_time: int | None, expire_time: int | None, disable_time: int | None, now: int
) -> KeyState:
    """Answer the state that the three times make at `now`."""
    if revoke_time is not None:
        return KeyState.REVOKED
    if expire_time is not None and now >= expire_time:
        return KeyState.EXPIRED
    if disable_time is not None:
        return KeyState.DISABLED
    return KeyState.ACTIVE


_STATE_OUTCOMES = {
    KeyState.REVOKED: Outcome.REVOKED,
    KeyState.EXPIRED: Outcome.EXPIRED,
    KeyState.DISABLED: Outcome.DISABLED,
}
_DECISION_OUTCOMES = {
    Decision.ALLOWED: Outcome.VALID,
    Decision.ROLE_INSUFFICIENT: Outcome.ROLE_INSUFFICIENT,
    Decision.SCOPE_INSUFFICIENT: Outcome.SCOPE_INSUFFICIENT,
}

_OF_LIVE_KEYS = (Outcome.VALID, Outcome.ROLE_INSUFFICIENT, Outcome.SCOPE_INSUFFICIENT)


def outcome_at(record: TokenRecord, rule: AccessRule, now: int) -> Outcome:
    """Judge a key whose whole secret matched: state first, then role, then scopes.

    A deleted owner's keys are revoked in the transaction of the deletion; should such a row ever
    be read unrevoked, it is a denial all the same.
    """
    if record.owner_delete_time is not None:
        return Outcome.REVOKED
    state = key_state(record.revoke_time, record.expire_time, record.disable_time, now)
    if state is not KeyState.ACTIVE:
        return _STATE_OUTCOMES[state]
    if record.account_disable_time is not None:
        return Outcome.DISABLED
    return _DECISION_OUTCOMES[
        decide(rule, record.effective_role, record.scopes.split(), NO_CONTEXT)
    ]


def cache_for_at(outcome: Outcome, valid_until: int | None, now: int) -> int:
    """Answer for how long a verdict may be reused, in microseconds: never past its own end."""
    if outcome in _OF_LIVE_KEYS:
        # The others than VALID are about the question, not the identity, and only that is kept.
        limit = MAX_CACHE_FOR if outcome is Outcome.VALID else MAX_NEGATIVE_CACHE_FOR
        return limit if valid_until is None else max(0, min(limit, valid_until - now))
    return MAX_NEGATIVE_CACHE_FOR


class ActorType(enum.IntEnum):
    """The numbers of `keybearer.v1.AuditActorType`."""

    KEY = 1
    HOLDER = 2
    LOCAL_COMMAND = 3
    ANONYMOUS = 4


class TargetType(enum.IntEnum):
    """The numbers of `keybearer.v1.AuditTargetType`."""

    INSTALLATION = 1
    ACCOUNT = 2
    USER = 3
    API_KEY = 4
    METHOD = 5


class Action(enum.IntEnum):
    """The numbers of `keybearer.v1.AuditAction`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who did it."""

    type: ActorType
    key_id: str = ""
    user_id: str = ""
    user_email: str = ""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field, as text, before and after."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One entry of the audit log."""

    id: str
    seq: int
    time: int
    account_id: str
    actor: Actor
    action: Action
    target_type: TargetType
    target_id: str
    changes: tuple[FieldChange, ...]
    request_id: str
    peer: str
    hash: bytes


class SubjectKind(enum.IntEnum):
    """What a change makes stale."""

    KEY = 1
    OWNER = 2
    ACCOUNT = 3
    EVERYTHING = 4


class Change(NamedTuple):
    """One revision: which verdicts it makes stale."""

    revision: int
    time: int
    account_id: str
    kind: SubjectKind
    subject_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What is remembered of a create or rotate with a request_id, for 24 hours. No secret."""

    user_id: str
    request_id: str
    body_hash: bytes
    attempt: int
    key_id: str
    secret_version: int
    create_time: int


class Use(NamedTuple):
    """Uses of one secret of one key, to be added to what is stored."""

    key_id: str
    secret_version: int
    last_used_time: int
    uses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pepper:
    """A pepper the store knows of. The pepper itself is a file."""

    id: str
    check: bytes
    """HMAC of a fixed text under the pepper: tells a wrong file from the right one."""
    create_time: int
    retire_time: int | None = None
    """Since when no unrevoked secret needs it, and none ever will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls: an identity that was proven, judged at one moment."""

    key_id: str
    account_id: str
    owner_id: str
    owner_email: str
    role: Role
    """The effective role."""
    is_operator: bool
    """Whether the account is the operator account."""
    match: Match
