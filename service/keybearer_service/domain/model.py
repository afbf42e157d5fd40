"""What the service is about: accounts, users, keys, verdicts, and the rules of time between them.

Frozen values without I/O. Every time is in microseconds since the epoch; None means never or not.
"""

import enum
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from keybearer._wire.enums import ApiKeyState, RevocationReason, UserType
from keybearer.access import Role
from keybearer_service.domain.clock import Micros


class Moment(NamedTuple):
    """What a snapshot of the store is of: a revision of one history."""

    epoch: str
    revision: int


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
    create_time: Micros


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A tenant."""

    id: str
    name: str
    create_time: Micros
    disable_time: Micros | None = None
    is_operator: bool = False
    row_version: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of the account."""
        return _etag(self.row_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An owner of keys."""

    id: str
    account_id: str
    email: str
    display_name: str
    role: Role
    type: UserType
    create_time: Micros
    update_time: Micros
    delete_time: Micros | None = None
    row_version: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change of the user."""
        return _etag(self.row_version)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySettings:
    """The plain fields of a key: administrators write them, and no verdict depends on them.

    They have the same name in messages, here and in the database. Conversions, use cases, rows and
    the audit log go through this list, so that a new field needs no line of theirs: it needs its
    field in the protos, here, a column, and an entry in `validators.KEY_SETTINGS`.
    """

    name: str
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)


KEY_SETTINGS = tuple(one.name for one in fields(KeySettings))


def settings_of(settings: KeySettings) -> dict[str, Any]:
    """Return the plain fields by name, and nothing that a subclass adds."""
    return {name: getattr(settings, name) for name in KEY_SETTINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey(KeySettings):
    """The record of a key, without its secrets' digests."""

    id: str
    account_id: str
    owner_id: str
    role: Role
    scopes: tuple[str, ...]
    create_time: Micros
    created_by: str
    update_time: Micros
    expire_time: Micros | None
    disable_time: Micros | None = None
    revoke_time: Micros | None = None
    revoked_by: str = ""
    revocation_reason: RevocationReason | None = None
    revocation_note: str = ""
    row_version: int = 1
    secret_version: int = 1
    secret_create_time: Micros
    secret_used: bool = False
    """Whether the current secret was ever seen to work; it then cannot be issued again."""
    overlap_end_time: Micros | None = None
    last_used_time: Micros | None = None
    use_count: int = 0
    old_secret_last_used_time: Micros | None = None
    # Read beside the row, never written with it:
    owner_email: str = ""
    owner_role: Role = Role.UNSPECIFIED
    created_by_email: str = ""

    @property
    def etag(self) -> str:
        """Changes with every change of the key; use of the key does not change it."""
        return _etag(self.row_version)

    @property
    def effective_role(self) -> Role:
        """The lower of the granted role and the owner's current role."""
        return min(self.role, self.owner_role)

    def state_at(self, now: Micros) -> ApiKeyState:
        """Return the state; REVOKED wins over EXPIRED, and EXPIRED over DISABLED."""
        return key_state(self.revoke_time, self.expire_time, self.disable_time, now)

    def overlaps_at(self, now: Micros) -> bool:
        """Return whether an old secret works beside the current one."""
        return self.overlap_end_time is not None and now < self.overlap_end_time


def _etag(row_version: int) -> str:
    return f'"{row_version}"'


class StoredSecret(NamedTuple):
    """What is kept of a secret."""

    digest: bytes
    pepper_id: str
    version: int


def key_state(
    revoke_time: Micros | None, expire_time: Micros | None, disable_time: Micros | None, now: Micros
) -> ApiKeyState:
    """Return the state that the three times make at `now`."""
    if revoke_time is not None:
        return ApiKeyState.REVOKED
    if expire_time is not None and now >= expire_time:
        return ApiKeyState.EXPIRED
    if disable_time is not None:
        return ApiKeyState.DISABLED
    return ApiKeyState.ACTIVE


class SubjectKind(enum.IntEnum):
    """What a change makes stale."""

    KEY = 1
    OWNER = 2
    ACCOUNT = 3
    EVERYTHING = 4


class Invalidation(NamedTuple):
    """One revision: which verdicts it makes stale."""

    revision: int
    time: Micros
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
    create_time: Micros


class SecretId(NamedTuple):
    """Which secret of which key; it tells nothing about the secret itself."""

    key_id: str
    version: int


class Use(NamedTuple):
    """Uses of one secret of one key, to be added to what is stored."""

    key_id: str
    secret_version: int
    last_used_time: Micros
    uses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pepper:
    """A pepper the store knows of. The pepper itself is a file."""

    id: str
    check: bytes
    """HMAC of a fixed text under the pepper: tells a wrong file from the right one."""
    create_time: Micros
    retire_time: Micros | None = None
    """Since when no unrevoked secret needs it, and none ever will."""
    is_announced: bool = False
    """Whether no secret may be issued under it yet, because not every node has its file."""


ANY_ACCOUNT = "-"
"""What an operator asks for to mean every account."""
