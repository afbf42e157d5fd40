"""What a store is: the contract that every backend meets.

Each sentence with a "must" has one test in `tests/storage/test_contract.py`, which every backend
runs. A store knows rows and transactions; it judges nothing and knows no token.

Three kinds of access:

- `lookup` and `lookup_many` answer the hot path in one statement.
- `read()` is a snapshot for everything else that only looks.
- `write()` is the one way to change anything but usage: the change, its audit event, its revision
  and its request record, together or not at all.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import Action, AuditEvent
from keybearer_service.domain.model import (
    Account,
    ApiKey,
    Installation,
    Invalidation,
    KeyState,
    Pepper,
    RequestRecord,
    RevocationReason,
    StoredSecret,
    SubjectKind,
    Use,
    User,
    UserType,
)
from keybearer_service.domain.verdict import TokenRecord

APPLICATION_ID = 0x6B627231
"""Marks a database file as ours: "kbr1"."""


class StoreError(Exception):
    """The root of what a store raises."""


class StoreLockedError(StoreError):
    """Locked or unreachable for longer than the busy timeout. Nothing was changed."""


class StoreFullError(StoreError):
    """No room on the disk. Nothing was changed."""


class CommitFailedError(StoreError):
    """COMMIT failed: the change may or may not be there. Only a fresh process can tell."""


class StoreUnusableError(StoreError):
    """The files are no store of ours, or not one this version can use. The text says why."""


class StoreClosedError(StoreError):
    """The store was closed."""


NEVER = 9223372036854775807
"""Where a key without an expiry stands in the order of expiries: after every other."""
UNUSED = -1
"""Where a key without a use stands in the order of uses: before every other."""

SortKey = tuple[int | str, str]
"""Where a page ended: the sorted value and the id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Which part of a list is wanted."""

    limit: int
    after: SortKey | None = None
    """Only what comes after this in the order of the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuery:
    """Which accounts; newest first."""

    scope: AccountScope
    name_contains: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserQuery:
    """Which users; newest first."""

    scope: AccountScope
    roles: tuple[Role, ...] = ()
    types: tuple[UserType, ...] = ()
    email_contains: str = ""
    show_deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyQuery:
    """Which keys, in which order."""

    scope: AccountScope
    now: int
    """The moment the states are judged at."""
    states: tuple[KeyState, ...] = ()
    owner_id: str = ""
    name_contains: str = ""
    expires_before: int | None = None
    unused_since: int | None = None
    order_by: str = "create_time"
    """create_time, expire_time (never comes last), name or last_used_time (never comes first)."""
    descending: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Which audit events; newest first."""

    scope: AccountScope
    actor_id: str = ""
    target_id: str = ""
    actions: tuple[Action, ...] = ()
    after: int | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """Which keys a set-based revocation met."""

    count: int
    ids: tuple[str, ...] = field(default=())
    """The first of them, up to the limit asked for."""


class Reader(Protocol):
    """One snapshot. Ids and digests are compared case-sensitively throughout.

    What takes a scope must not return things of an account that the scope does not cover.
    """

    def installation(self) -> Installation:
        """Answer the installation; must raise StoreUnusableError when there is none yet."""
        ...

    def lookup(self, key_id: str) -> TokenRecord | None:
        """Answer what a verdict about the key needs; must answer None for an unknown id."""
        ...

    def account(self, scope: AccountScope, account_id: str) -> Account | None:
        """Answer an account; must answer None for an unknown id."""
        ...

    def user(self, scope: AccountScope, user_id: str) -> User | None:
        """Answer a user, deleted ones too; must answer None for an unknown id."""
        ...

    def user_by_email(self, scope: AccountScope, email: str) -> User | None:
        """Answer the live user with this address in one account; must skip deleted ones."""
        ...

    def api_key(self, scope: AccountScope, key_id: str) -> ApiKey | None:
        """Answer a key with its owner's and creator's facts; must answer None for an unknown id."""
        ...

    def secrets_of(self, key_id: str) -> tuple[StoredSecret, StoredSecret | None]:
        """Answer the current and the old secret of a key that exists."""
        ...

    def list_accounts(self, query: AccountQuery, page: Page) -> Sequence[Account]:
        """Answer a page; must be stable under inserts between pages."""
        ...

    def list_users(self, query: UserQuery, page: Page) -> Sequence[User]:
        """Answer a page; must hold users of the scope only."""
        ...

    def list_api_keys(self, query: KeyQuery, page: Page) -> Sequence[ApiKey]:
        """Answer a page; must order ties by id and take `%` and `_` in names literally."""
        ...

    def list_audit_events(self, query: AuditQuery, page: Page) -> Sequence[AuditEvent]:
        """Answer a page, newest first."""
        ...

    def live_admins(self, scope: AccountScope) -> int:
        """Count the undeleted ADMIN users of the scope."""
        ...

    def unrevoked_keys(
        self, *, owner_id: str = "", created_by: str = "", not_owner_id: str = "", limit: int
    ) -> Revoked:
        """Count the unrevoked keys of an owner, or made by a user for other owners."""
        ...

    def request_record(self, user_id: str, request_id: str) -> RequestRecord | None:
        """Answer what is remembered of a request; must be None for another user's."""
        ...

    def peppers(self) -> Sequence[Pepper]:
        """Answer every pepper, newest first. Every mint asks, so no key is looked at."""
        ...

    def live_secrets(self, pepper_id: str) -> int:
        """Count the unrevoked secrets under a pepper, old ones of rotations too."""
        ...

    def changes_after(self, revision: int, limit: int) -> Sequence[Invalidation]:
        """Answer the changes with greater revisions; must be in rising order."""
        ...

    def oldest_change(self) -> int:
        """Answer the oldest revision still in the change table; the head plus one when empty."""
        ...

    def audit_head(self) -> tuple[int, bytes]:
        """Answer the last event's seq and hash; (0, 32 zero bytes) for an empty log."""
        ...

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditEvent]:
        """Answer events in the order of the chain."""
        ...

    def key_count(self) -> int:
        """Count all keys."""
        ...

    def live_keys(self, now: int, expiring_by: Sequence[int]) -> Sequence[int]:
        """Count the keys neither revoked nor expired at `now`; must leave out all others.

        Answers how many of them expire up to each moment of `expiring_by`, how many expire at all,
        and how many there are.
        """
        ...


class Writer(Reader, Protocol):
    """One write transaction. Nothing is visible to anybody before it commits."""

    def put_installation(self, installation: Installation) -> None:
        """Write the one row; replaces what was there."""
        ...

    def insert_account(self, account: Account) -> None:
        """Add an account."""
        ...

    def update_account(self, account: Account) -> None:
        """Write the account's name and disable_time and row_version."""
        ...

    def insert_user(self, user: User) -> None:
        """Add a user."""
        ...

    def update_user(self, user: User) -> None:
        """Write display_name, role, update_time, delete_time and row_version."""
        ...

    def insert_api_key(self, key: ApiKey, secret: StoredSecret) -> None:
        """Add a key with its first secret; must refuse an id that exists."""
        ...

    def update_api_key(self, key: ApiKey) -> None:
        """Write what an administrator may change; must not touch usage or secrets.

        Must erase the digest of an old secret whose overlap is over at `key.update_time`.
        """
        ...

    def replace_secret(self, key: ApiKey, current: StoredSecret, old: StoredSecret | None) -> None:
        """Write both secrets with `key`'s secret_version, secret times and overlap_end_time."""
        ...

    def revoke_keys(
        self,
        *,
        owner_id: str = "",
        created_by: str = "",
        not_owner_id: str = "",
        reason: RevocationReason,
        revoked_by: str,
        now: int,
    ) -> int:
        """Revoke every unrevoked key of an owner, or made by a user for others; answer how many."""
        ...

    def append_change(
        self, *, kind: SubjectKind, subject_id: str, account_id: str, now: int
    ) -> int:
        """Count one revision up and record what it makes stale; answer the new revision."""
        ...

    def append_audit(self, event: AuditEvent) -> None:
        """Add an event; must refuse a seq that exists."""
        ...

    def put_request_record(self, record: RequestRecord) -> None:
        """Remember a request; replaces the record of the same user and request_id."""
        ...

    def insert_pepper(self, pepper: Pepper) -> None:
        """Add a pepper."""
        ...

    def retire_pepper(self, pepper_id: str, now: int) -> None:
        """Mark a pepper as retired."""
        ...

    def prune(self, now: int) -> None:
        """Forget request records over 24 h old, and changes no resuming watcher may ask for."""
        ...


class Store(Protocol):
    """A database of accounts, users, keys and their history. Safe for use by many threads."""

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, int]:
        """Answer a key's record and the revision, of one snapshot; must see every commit answered.

        Raises:
            StoreLockedError: The store cannot be read; never a verdict.
        """
        ...

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], int]:
        """Answer the known ones of many keys and the revision, of one snapshot."""
        ...

    def version(self) -> int:
        """Answer a number that must differ, for the calling thread, after an answered commit.

        Commits of a process that is no server may be left out: they take no authority away.
        """
        ...

    def read(self) -> AbstractContextManager[Reader]:
        """Open a snapshot."""
        ...

    def write(self) -> AbstractContextManager[Writer]:
        """Open a write transaction; commit at the end of the block, roll back when it raises.

        Two writers must never lose each other's update. A block that raises must change nothing.

        Raises:
            StoreLockedError: Not to be had within the busy timeout.
            StoreFullError: No room; rolled back.
            CommitFailedError: COMMIT failed for another reason; the outcome is unknown.
        """
        ...

    def add_uses(self, uses: Sequence[Use]) -> None:
        """Add uses to the keys' counters, forward only; must touch no other column.

        Unknown and revoked keys must be skipped, and one bad item must not harm the others.
        """
        ...

    def check(self) -> Sequence[str]:
        """Look for damage; answer one sentence for each finding, none when all is well."""
        ...

    def backup(self, path: Path) -> None:
        """Write a consistent copy to a new file, while others go on reading and writing."""
        ...

    def close(self) -> None:
        """Release everything; any use afterwards must raise StoreClosedError."""
        ...
