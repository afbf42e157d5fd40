"""What a store is: the contract that every backend meets.

Each "must" has a test in `tests/storage/test_contract.py`, which runs against every backend. A
store knows rows and transactions; it judges nothing and knows no token.

Kinds of access:

- `lookup` and `lookup_many` serve the hot path with one statement each.
- `changes_since` and `wait` serve the watchers.
- `read()` opens a snapshot for everything else that only looks.
- `write()` is the one way to change anything but usage: the change, its audit event, its revision
  and its request record are committed together or not at all.
- `claim_uses` rules out that a young secret is issued again, before a use of it is answered.
- `add_uses` and `prune` write what no decision waits for.

What holds everywhere:

- Ids, digests and e-mail addresses must be compared exactly, with their case.
- A filter named `..._contains` must find its text anywhere in the value, must ignore case for ASCII
  letters alone, and must take `%` and `_` literally.
- Text must be ordered by code point.
- Bounds of a query must be exclusive.
- A list must be stable: what is inserted between two pages moves nothing on the others.
- A list must look at a bounded number of rows for each page: see `Page.looked_at`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from keybearer._wire.enums import ApiKeyState, AuditAction, RevocationReason, UserType
from keybearer.access import Role
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_digests import AuditBase, BaseRow, CoveredRow, Head, Subject
from keybearer_service.domain.audit_event import AuditRecord, PersonalText
from keybearer_service.domain.clock import HOUR, MINUTE, Micros
from keybearer_service.domain.identity import Identity, Invitation
from keybearer_service.domain.model import (
    Account,
    ApiKey,
    Installation,
    Invalidation,
    Moment,
    Pepper,
    RequestRecord,
    SecretId,
    StoredSecret,
    SubjectKind,
    Use,
    User,
)
from keybearer_service.domain.session import Session
from keybearer_service.domain.verdict import TokenRecord

CHANGES_KEPT_FOR: Final = 10 * MINUTE
CHANGES_KEPT: Final = 100_000
"""Watchers may resume within this much history: section 4 of the wire contract."""
REQUESTS_KEPT_FOR: Final = 24 * HOUR
"""How long a request is remembered: section 3 of the wire contract."""
SESSIONS_KEPT_FOR: Final = 24 * HOUR
"""How long after its beginning a session is kept, which is dead long before."""
YOUNG: Final = 10 * MINUTE
"""A secret whose key was asked for less than this ago may be issued again, unless it was used."""
CLAIMED_FOR: Final = YOUNG + MINUTE
"""Uses of secrets younger than this are claimed: longer than YOUNG by what a change may take."""
CLAIM_WAIT_S: Final = 0.2
"""How long a claim waits for a change that may be issuing the same secret again."""
MAX_USES: Final = 1_000_000
"""The most uses that one item counts, as reported or stored."""
NO_AUDIT_HEAD: Final = (0, bytes(32))
"""The head of an empty audit log: the seq and hash that its first event follows."""
LOOKED_AT: Final = 5_000
"""Rows that a page of a list looks at: few enough to answer within 100 ms."""

T = TypeVar("T")


class StoreError(Exception):
    """The root of what a store raises."""


class StoreLockedError(StoreError):
    """The store is locked or cannot be reached. Nothing was changed."""


class StoreReadOnlyError(StoreLockedError):
    """The store takes no changes. Nothing was changed."""


class StoreFullError(StoreError):
    """There is no room on the disk. Nothing was changed."""


class StoreConflictError(StoreError):
    """A row has this id, or another value that must be unique. Nothing is changed."""


class EmailConflictError(StoreConflictError):
    """Another live user of the account has the e-mail address."""


class CommitFailedError(StoreError):
    """COMMIT failed: the change may or may not be there."""

    def __init__(self, text: str, *, is_fatal: bool = True) -> None:
        """Create the error.

        Args:
            text: What happened, for the log.
            is_fatal: Whether this process no longer knows what is stored, so that only a fresh one
                can go on writing.
        """
        super().__init__(text)
        self.is_fatal = is_fatal


class ClaimFailedError(CommitFailedError):
    """COMMIT failed when a use was recorded. Nothing else was changed, and nothing was answered."""


class ReadAbandonedError(StoreError):
    """A read was ended because its caller no longer waits."""


class StoreUnusableError(StoreError):
    """The store is not one of ours, is damaged, or is of another version. The text says which."""


class StoreDamagedError(StoreUnusableError):
    """A part of the store cannot be read, or holds what was never written. The text says which."""


class StoreClosedError(StoreError):
    """The store was closed."""


OnProgress = Callable[[int, int], None]
"""Is told how much of a long work is done, and how much there is in all, in whichever unit."""


OnStep = Callable[[str, int, int], None]
"""Is told what is counted, how much of it is done, and how much there is in all."""


def no_progress(_done: int, _total: int) -> None:
    """Ignore it."""


NEVER = 9223372036854775807
"""The sort value of a key without an expiry: after every other."""
UNUSED = -1
"""The sort value of a key without a use: before every other."""

SortKey = tuple[int | str, int | str]
"""Where a page ended: the sorted value and the id; of an audit event its time and its seq."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The wanted part of a list."""

    limit: int
    after: SortKey | None = None
    """Only what comes after this in the order of the list."""
    looked_at: int = LOOKED_AT
    """How many rows the store may look at. A page whose filters match few of them ends early: see
    `Found.rest`."""


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a store found of a page."""

    items: Sequence[T]
    """At most as many as the page may have, in the order of the list."""
    rest: SortKey | None = None
    """Where the list goes on when the page ended early, because enough rows were looked at; None at
    the end of the list. Such a page may have no items, and so may the rest."""


class Waiting(Protocol):
    """Somebody who waits for what is read."""

    @property
    def is_alive(self) -> bool:
        """Whether somebody still waits."""
        ...

    @property
    def remaining_s(self) -> float | None:
        """How many seconds the wait may still last; None without a bound."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuery:
    """The wanted accounts, newest first."""

    scope: AccountScope
    name_contains: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserQuery:
    """The wanted users, newest first."""

    scope: AccountScope
    roles: tuple[Role, ...] = ()
    types: tuple[UserType, ...] = ()
    email_contains: str = ""
    show_deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyQuery:
    """The wanted keys, and their order."""

    scope: AccountScope
    now: Micros
    """The moment at which the states are judged."""
    states: tuple[ApiKeyState, ...] = ()
    owner_id: str = ""
    name_contains: str = ""
    expires_before: Micros | None = None
    """A key that never expires does not match."""
    unused_since: Micros | None = None
    """A key without a use counts as used when it was created."""
    order_by: str = "create_time"
    """create_time, expire_time (never comes last), name or last_used_time (never comes first)."""
    descending: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """The wanted audit events, newest first: by time, and by seq at the same time."""

    scope: AccountScope
    actor_id: str = ""
    """The id of the key or of the user that acted."""
    target_id: str = ""
    """The id of the event's target, or one of the further ids that it is found by."""
    actions: tuple[AuditAction, ...] = ()
    after: Micros | None = None
    before: Micros | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """The keys that a set-based revocation concerns."""

    count: int
    ids: tuple[str, ...] = field(default=())
    """The first of them, up to the limit asked for."""


class News(NamedTuple):
    """What was committed after a revision, read as one snapshot."""

    epoch: str
    """Names the history that the revisions belong to."""
    head: int
    """The newest revision."""
    oldest: int
    """The oldest revision whose change is still kept; `head + 1` when none is."""
    changes: Sequence[Invalidation]
    """In rising order and without gaps from `oldest` on."""

    def continues(self, revision: int) -> bool:
        """Return whether every change between a revision and the head is still kept."""
        return self.oldest - 1 <= revision <= self.head


class Reader(Protocol):
    """One snapshot: what is read in one block must be of one moment.

    What takes a scope must not return things of an account that the scope does not cover.
    """

    def revision(self) -> int:
        """Return the newest revision; must raise StoreUnusableError for no installation."""
        ...

    def installation(self) -> Installation:
        """Return the installation; must raise StoreUnusableError when there is none yet."""
        ...

    def lookup(self, key_id: str) -> TokenRecord | None:
        """Return what a verdict about the key needs; must return None for an unknown id."""
        ...

    def account(self, scope: AccountScope, account_id: str) -> Account | None:
        """Return an account; must return None for an unknown id."""
        ...

    def user(self, scope: AccountScope, user_id: str) -> User | None:
        """Return a user; must return deleted ones too, and None for an unknown id."""
        ...

    def user_by_email(self, scope: AccountScope, email: str) -> User | None:
        """Return the live user with this address in one account; must skip deleted ones."""
        ...

    def api_key(self, scope: AccountScope, key_id: str) -> ApiKey | None:
        """Return a key; must return None for an unknown id.

        Must fill in the owner's e-mail address and role and the creator's address as they are now.
        """
        ...

    def secrets_of(self, key_id: str) -> tuple[StoredSecret, StoredSecret | None]:
        """Return the current and the old secret; must raise KeyError for an unknown id."""
        ...

    def list_accounts(self, query: AccountQuery, page: Page) -> Found[Account]:
        """Return a page of accounts."""
        ...

    def list_users(self, query: UserQuery, page: Page) -> Found[User]:
        """Return a page of users; must hold users of the scope only."""
        ...

    def list_api_keys(self, query: KeyQuery, page: Page) -> Found[ApiKey]:
        """Return a page of keys.

        Must hold keys of the one account only, must order ties by id, and must find the states that
        `ApiKey.state_at` returns.
        """
        ...

    def list_audit_events(self, query: AuditQuery, page: Page) -> Found[AuditRecord]:
        """Return a page of audit events."""
        ...

    def live_admins(self, scope: AccountScope) -> int:
        """Count the ADMIN users of the scope; must leave out deleted ones."""
        ...

    def unrevoked_key_count(self, account_id: str) -> int:
        """Count the unrevoked keys of an account, at the same cost however many there are."""
        ...

    def live_user_count(self, account_id: str) -> int:
        """Count the users of an account; must leave out deleted ones."""
        ...

    def unrevoked_keys(
        self, *, owner_id: str = "", created_by: str = "", not_owner_id: str = "", limit: int
    ) -> Revoked:
        """Count the unrevoked keys of an owner, or created by a user for other owners.

        Must return at most `limit` ids, and the full count.
        """
        ...

    def request_record(self, user_id: str, request_id: str) -> RequestRecord | None:
        """Return what is remembered of a request; must be None for another user's.

        A record older than REQUESTS_KEPT_FOR may still be there until the next `prune`.
        """
        ...

    def session(self, session_id: str) -> Session | None:
        """Return a session, alive or not; must return None for an unknown id."""
        ...

    def sessions_at(
        self, issuer: str, *, subject: str = "", provider_session: str = ""
    ) -> Sequence[Session]:
        """Return the sessions of a provider's subject, or of its session, oldest first.

        Must leave out those that were ended; must return none when both are empty.
        """
        ...

    def person_record(self, user_id: str) -> TokenRecord | None:
        """Return what a verdict about a user needs who acts without a key.

        Must be the record of a key of that user with the role ADMIN that never ends, whose id is
        empty; must be None for an unknown user.
        """
        ...

    def identity(self, issuer: str, subject: str) -> Identity | None:
        """Return who somebody at a provider is here; must return None when nobody was bound."""
        ...

    def identity_of(self, user_id: str) -> Identity | None:
        """Return the identity that is bound to a user; must return None when none is."""
        ...

    def invitation(self, invitation_id: str) -> Invitation | None:
        """Return an invitation, expired or not; must return None for an unknown id."""
        ...

    def invitation_of(self, user_id: str) -> Invitation | None:
        """Return the invitation of a user, expired or not; must return None without one."""
        ...

    def has_admin_key(
        self, account_id: str, now: Micros, *, but: Collection[str] = (), but_of: str = ""
    ) -> bool:
        """Return whether an account has a key that acts as ADMIN at `now`.

        Must leave out the keys `but`, the keys of the user `but_of`, those that are revoked,
        expired or disabled, and those of users who are no ADMIN or are deleted.
        """
        ...

    def has_admin_identity(self, account_id: str, issuer: str, *, but: str = "") -> bool:
        """Return whether an ADMIN of an account who is not deleted has an identity of an issuer.

        Must leave out the user `but`.
        """
        ...

    def sessions(
        self, scope: AccountScope, *, user_id: str = "", since: Micros, limit: int
    ) -> Sequence[Session]:
        """Return sessions that began at `since` or later and were not ended, newest first.

        Must hold those of the scope only, and with a user those of that user; at most `limit`.
        """
        ...

    def peppers(self) -> Sequence[Pepper]:
        """Return every pepper; must be newest first."""
        ...

    def live_secrets(self, pepper_id: str, now: Micros) -> int:
        """Count the secrets under a pepper that can still open their key at `now` or later.

        Must count old secrets whose overlap is not over, and those of disabled keys; must leave out
        those of revoked and of expired keys.
        """
        ...

    def audit_head(self) -> tuple[int, bytes]:
        """Return the last event's seq and hash; must be NO_AUDIT_HEAD for an empty log."""
        ...

    def audit_chain(self, after_seq: int, limit: int) -> Sequence[AuditRecord]:
        """Return events; must be in rising order of their seq."""
        ...

    def first_event_since(self, time: Micros) -> int | None:
        """Return the seq of the first event at a time or later; must be None for no such event."""
        ...

    def audit_base(self) -> AuditBase | None:
        """Return where the log begins; must be None as long as nothing was pruned."""
        ...

    def base_row(self, kind: int, row_id: str) -> BaseRow | None:
        """Return what the last pruned event about a row said; must be None for no such event."""
        ...

    def base_rows(self, after: tuple[int, str], limit: int) -> Sequence[BaseRow]:
        """Return base rows behind a kind and an id; must be in rising order of these two."""
        ...

    def pruning_event(self, key_id: str) -> AuditRecord | None:
        """Return the last event API_KEYS_PRUNED that is found by a key; must be None for none."""
        ...

    def personal_texts(self, digests: Sequence[bytes]) -> dict[bytes, PersonalText]:
        """Return the personal texts of some digests; must leave out unknown ones."""
        ...

    def personal_digest(self, user_id: str, text: str) -> bytes | None:
        """Return the digest under which a text of a user is stored; must be None for no such text.

        Must not find the text of another user.
        """
        ...

    def personal_texts_of(self, user_id: str) -> Sequence[PersonalText]:
        """Return every personal text of a user, erased ones too."""
        ...

    def events_with_texts(self, user: User) -> int:
        """Count the events of the first version about a user or with the user's address."""
        ...

    def covered_row(self, subject: Subject) -> CoveredRow | None:
        """Return the columns of a row that its digest covers; must return None for no such row."""
        ...

    def covered_rows(self, table: str, after_id: str, limit: int) -> Sequence[CoveredRow]:
        """Return the rows of accounts, users, api_keys or peppers behind an id, as `covered_row`.

        Must be in rising order of their ids.
        """
        ...

    def last_event(self, subject: Subject, action: AuditAction | None = None) -> AuditRecord | None:
        """Return the newest event about a subject; must return None when there is none.

        With an action it must be the newest event of that action.
        """
        ...

    def creation_event(self, account_id: str) -> AuditRecord | None:
        """Return the event that created an account, or created the installation with it."""
        ...

    def targets_without_rows(self, after_seq: int, until_seq: int) -> Sequence[Subject]:
        """Return the accounts, users and keys without a row that events in a range are about."""
        ...

    def head(self) -> Head | None:
        """Return the head; must return None when none was ever written."""
        ...

    def key_count(self) -> int:
        """Count all keys."""
        ...

    def has_more_keys_than(self, scope: AccountScope, count: int) -> bool:
        """Return whether the one account of the scope has more than so many keys.

        Must not look at more of them than that.
        """
        ...

    def live_keys(self, now: Micros, expiring_by: Sequence[Micros]) -> Sequence[int]:
        """Count the keys neither revoked nor expired at `now`; must leave out all others.

        Returns:
            How many of them expire up to and including each moment of `expiring_by`, how many
            expire at all, and how many there are.
        """
        ...


Foreseen = Iterable[Callable[[Reader], object]]
"""What is going to be read: functions that each call one method of a Reader."""


class Writer(Reader, Protocol):
    """One write transaction; must see its own writes, which nobody else sees before the commit.

    A method that inserts must raise StoreConflictError for an id that is taken, and must never
    replace a row unless it says so. After an error nothing more may be written in the block.

    What a method without a result raises may come later, where the block reads next or at its end,
    unless the method says that it raises.
    """

    def put_installation(self, installation: Installation) -> None:
        """Write the one row; must replace the one before."""
        ...

    def insert_account(self, account: Account) -> None:
        """Insert an account."""
        ...

    def update_account(self, account: Account) -> None:
        """Write the account's name, disable_time and row_version; must write nothing else."""
        ...

    def insert_user(self, user: User) -> None:
        """Insert a user.

        Raises:
            EmailConflictError: Another live user of the account has the address. The store itself
                must refuse this, whatever was read before.
        """
        ...

    def update_user(self, user: User) -> None:
        """Write display_name, role, update_time, delete_time and row_version; must write no more.

        Raises:
            EmailConflictError: The user was deleted, is to live again, and its address is taken.
        """
        ...

    def insert_api_key(self, key: ApiKey, secret: StoredSecret) -> None:
        """Insert a key with its first secret and the key's own `secret_used`."""
        ...

    def update_api_key(self, key: ApiKey) -> None:
        """Write what an administrator may change; must touch neither usage nor secrets.

        Must erase an old secret whose overlap is over at `key.update_time`.
        """
        ...

    def replace_secret(self, key: ApiKey, current: StoredSecret, old: StoredSecret | None) -> None:
        """Write both secrets and the key's secret_version, times of secrets and `secret_used`."""
        ...

    def replace_unused_secret(
        self, key: ApiKey, current: StoredSecret, old: StoredSecret | None
    ) -> bool:
        """Do the same where the secret before was never used; return whether it was done.

        "Never used" and "the version before" must be conditions of the write, not of an earlier
        read: of this and `claim_uses` for one secret, in whichever process, one alone succeeds.
        """
        ...

    def revoke_keys(
        self,
        *,
        owner_id: str = "",
        created_by: str = "",
        not_owner_id: str = "",
        reason: RevocationReason,
        revoked_by: str,
        now: Micros,
    ) -> Sequence[CoveredRow]:
        """Revoke the unrevoked keys of an owner, or created by a user for others.

        Must return the rows of all these keys as it left them, in the order of their ids.
        Must leave the facts of earlier revocations as they are, and must erase old secrets whose
        overlap is over at `now`.
        """
        ...

    def delete_revoked_keys(self, key_ids: Sequence[str]) -> Sequence[CoveredRow]:
        """Delete those of some keys that are revoked, with everything that counts their uses.

        Must return the rows as they were, in the order of their ids.
        """
        ...

    def append_change(
        self, *, kind: SubjectKind, subject_id: str, account_id: str, now: Micros
    ) -> int:
        """Record what becomes stale, and return the new revision; must be the last one plus one."""
        ...

    def append_audit(self, record: AuditRecord, found_by: Sequence[str] = ()) -> None:
        """Insert an event; must raise StoreConflictError for a seq or an id that is taken.

        A list of the events about one of the ids of `found_by` must hold the event too.
        """
        ...

    def delete_audit_events(self, until_seq: int) -> int:
        """Delete the events up to a seq, and by what else they are found; return how many."""
        ...

    def put_audit_base(self, base: AuditBase) -> None:
        """Write the base; must replace the one before."""
        ...

    def put_base_row(self, row: BaseRow) -> None:
        """Write a base row; must replace that of the same kind and id."""
        ...

    def delete_base_row(self, kind: int, row_id: str) -> None:
        """Delete a base row; must do nothing when there is none."""
        ...

    def insert_personal_text(self, text: PersonalText) -> None:
        """Insert a personal text; must raise StoreConflictError for a digest that is taken."""
        ...

    def erase_personal_text(self, digest: bytes, erasure: bytes) -> None:
        """Erase a text and its salt, and write the proof; must leave the digest and the user."""
        ...

    def erase_user(self, user_id: str, now: Micros) -> None:
        """Write ERASED over the address and the name of a user, a new update_time and row_version.

        Must write nothing else.
        """
        ...

    def put_head(self, head: Head) -> None:
        """Write the head; must replace the one before."""
        ...

    def put_request_record(self, record: RequestRecord) -> None:
        """Remember a request; must replace the record of the same user and request_id."""
        ...

    def insert_session(self, session: Session) -> None:
        """Insert a session."""
        ...

    def see_session(self, session_id: str, now: Micros) -> None:
        """Write the last_seen_time of a session, which must only move forward."""
        ...

    def end_session(self, session_id: str, now: Micros) -> None:
        """Write the end_time of a session that has none; must leave an earlier one as it is."""
        ...

    def insert_identity(self, identity: Identity) -> None:
        """Bind an identity to a user.

        Raises:
            StoreConflictError: The identity is bound already, or the user has one.
        """
        ...

    def delete_identity(self, user_id: str) -> None:
        """Delete the identity of a user, if there is one."""
        ...

    def put_invitation(self, invitation: Invitation) -> None:
        """Insert an invitation; must replace the one that the user has."""
        ...

    def delete_invitation(self, user_id: str) -> None:
        """Delete the invitation of a user, if there is one."""
        ...

    def use_once(self, kind: str, value: str, *, now: Micros, until: Micros) -> bool:
        """Remember a value until a moment; return False when it is remembered already.

        Must forget it afterwards, at a `prune`; the kinds do not know each other's values.
        """
        ...

    def insert_pepper(self, pepper: Pepper) -> None:
        """Insert a pepper."""
        ...

    def retire_pepper(self, pepper_id: str, now: Micros) -> None:
        """Mark a pepper as retired."""
        ...

    def activate_pepper(self, pepper_id: str) -> None:
        """Mark a pepper as one that is no longer only announced."""
        ...


class Snapshots(Protocol):
    """Whatever can be read in snapshots."""

    def read(self, caller: Waiting | None = None) -> AbstractContextManager[Reader]:
        """Open a snapshot, as `Store.read`."""
        ...


class Store(Protocol):
    """A database of accounts, users, keys and their history. Safe for use by many threads."""

    # --- the hot path -----------------------------------------------------------------------------

    def lookup(self, key_id: str) -> tuple[TokenRecord | None, Moment]:
        """Return a key's record and the moment that it is of; both must be of one snapshot.

        Must see every commit that was acknowledged before the call, by whichever process.

        Raises:
            StoreLockedError: The store cannot be read; this is never a verdict.
        """
        ...

    def lookup_many(self, key_ids: Sequence[str]) -> tuple[dict[str, TokenRecord], Moment]:
        """Return the records of the known ids and the moment, as `lookup` does.

        Must leave out unknown ids, and must return the moment when no id is asked for.
        """
        ...

    def caller_version(self) -> int | None:
        """Return a number that must differ, for the calling thread, after an acknowledged commit.

        As long as it stays, a thread may remember who a caller is. The commits of a process that is
        no server may be left out: they take no authority away.

        Returns:
            None where it costs as much to ask as to look the caller up.
        """
        ...

    # --- transactions -----------------------------------------------------------------------------

    def read(self, caller: Waiting | None = None) -> AbstractContextManager[Reader]:
        """Open a snapshot.

        Args:
            caller: Who waits for what is read. A statement of the block must end soon after that
                one has gone or its time is over: a store may ask `is_alive` while a statement runs,
                or have the database end it after `remaining_s`. Without one nothing ends early.

        Raises:
            ReadAbandonedError: By what is read in the block: the caller no longer waits.
        """
        ...

    def write(self, foreseen: Foreseen = ()) -> AbstractContextManager[Writer]:
        """Open a write transaction; commit at the end of the block, roll back when it raises.

        Args:
            foreseen: What the block is going to read. A store over a network may read it together
                with taking its lock. It must change nothing else: the block reads the same whatever
                was foreseen, and sees what it has written itself.

        The store takes its ordering lock before the block runs. From then on no other write runs,
        in any process, so that blocks must come one after another and must see all that was
        committed before. A conflict with another writer must appear before the block runs: the
        store waits and tries again, and raises StoreLockedError after a while. So no block must
        ever run twice. Inside the block trouble is an error, and a block that raises must change
        nothing.

        Raises:
            StoreLockedError: The lock was not to be had; the block has not run.
            StoreFullError: There is no room; rolled back.
            StoreConflictError: A row of the block is there already; rolled back.
            CommitFailedError: COMMIT failed for another reason; the outcome is unknown.
        """
        ...

    def claim_uses(self, secrets: Sequence[SecretId], now: Micros) -> bool:
        """Record that young secrets are in use, before that is answered.

        Where several processes serve, this must be committed when it returns, with "still the
        current secret of its key" as a condition of the write. Once it has returned True,
        `replace_unused_secret` must return False for each of the secrets, in every process.

        Args:
            secrets: Current secrets of their keys, as far as the caller has read.
            now: The time.

        Returns:
            Whether all of them still are. When one is not, the others may have been recorded, and
            the caller judges again from a fresh read.

        Raises:
            StoreFullError, StoreReadOnlyError: It cannot be written, and nothing can be issued
                either. This process issues none of the secrets again; the caller repeats the write
                with `add_uses`.
            StoreLockedError: A change has held the store for CLAIM_WAIT_S, and it may be issuing
                one of these secrets again.
            ClaimFailedError: COMMIT failed for another reason.
        """
        ...

    def add_uses(self, uses: Sequence[Use]) -> None:
        """Add uses to the counters of their keys.

        Must touch no column but those of usage. Times must only move forward and must not be before
        the key was created. A use of the current secret must set `secret_used`, which nothing but
        this and `claim_uses` sets on a key that is stored; a use of the old secret must set its own
        time alone. Unknown
        and revoked keys must be skipped, and one bad item must not harm the others. An item counts
        for 1 to MAX_USES uses.
        """
        ...

    # --- changes ----------------------------------------------------------------------------------

    def changes_since(self, revision: int, limit: int) -> News:
        """Return the changes of the next `limit` revisions after one; must be one snapshot.

        Must see every commit that was acknowledged before the call. The changes must be in rising
        order, and none that is kept may be left out.

        Raises:
            StoreUnusableError: The store was never initialised.
            StoreLockedError: The store cannot be read.
        """
        ...

    @property
    def poll_interval_s(self) -> float | None:
        """How often to look for changes, in seconds; None when `wait` notices those of all servers.

        Whoever waits no longer than this and then reads must see every change in that time.
        """
        ...

    def wait(self, timeout_s: float | None) -> None:
        """Wait for a commit of `write`; one thread at a time may wait.

        Must return once a commit of this store was acknowledged, also when that was before the
        call, once `wake` was called, or after the timeout. It may return early; a wake-up that is
        lost costs no more than `poll_interval_s`.
        """
        ...

    def wake(self) -> None:
        """Make the thread that waits return."""
        ...

    # --- care -------------------------------------------------------------------------------------

    @property
    def damage(self) -> str:
        """What was met of damage since the store was opened; empty for none.

        It must stay once it was met: what is damaged does not mend itself, and a part of the store
        that can still be read does not make it whole.
        """
        ...

    def prune(self, now: Micros, limit: int) -> int:
        """Delete what nobody may ask for any more, and return how many rows that were.

        Must delete at most `limit` request records older than REQUESTS_KEPT_FOR, at most `limit`
        sessions older than SESSIONS_KEPT_FOR, at most `limit` invitations older than
        INVITATION_LIVES_FOR, at most `limit` values of `use_once` whose moment has come, and at
        most `limit` of the oldest changes, of those that are both older than CHANGES_KEPT_FOR and
        not among the newest CHANGES_KEPT. Must return 0 when nothing is left to delete.
        """
        ...

    def check(self) -> Sequence[str]:
        """Look for rows that contradict each other; return a sentence for each finding.

        Must find rows that point to missing rows, changes that are missing or do not end at the
        revision, audit events that are missing between others, a count of an account's keys that is
        wrong, unrevoked keys of deleted users, and triggers and views that are not of the schema.
        Must return nothing for a whole store. What needs the audit key is checked elsewhere:
        hashes, the head, and rows against the events about them.
        """
        ...

    def backup(self, path: Path, on_progress: OnProgress = no_progress) -> None:
        """Write a copy of one moment to a new file, while others go on reading and writing.

        The file is the same whichever backend wrote it: a file store that `restore` can open. It
        must be on the disk when this returns, and gone when it raises. How long it takes must not
        depend on what others write meanwhile. Must raise FileExistsError for a path that exists.

        Args:
            path: The file.
            on_progress: Told how much is done. What it raises breaks the copy off.

        Raises:
            StoreFullError: There is no room for the file.
        """
        ...

    def close(self) -> None:
        """Release everything; any use afterwards must raise StoreClosedError."""
        ...


@dataclass(frozen=True, slots=True)
class Departure:
    """That an installation leaves its file for a database elsewhere."""

    move_id: str
    """Names the move in the audit log of that database."""
    target: str
    """The URL of that database."""
    is_done: bool = False
    """Whether the installation is there for certain."""


@runtime_checkable
class FileStore(Store, Protocol):
    """A store that is one file on this machine.

    One with a departure must be refused by whoever opens it, and must take no more writes, unless
    it was opened for the move alone.
    """

    @property
    def departure(self) -> Departure | None:
        """The move that the file is marked with; None for a file that may be served."""
        ...

    def mark(self, departure: Departure | None) -> None:
        """Mark the file, or take its mark away.

        Once this has returned, no write that began before it is without its commit, and none
        begins any more.
        """
        ...

    @property
    def size_bytes(self) -> int:
        """The size of the file and of what stands beside it."""
        ...

    @property
    def application_id(self) -> int:
        """The number in the file's header that marks it as a database of keybearer."""
        ...

    def fold_log(self) -> bool:
        """Move what stands beside the file into it, and empty that.

        Returns:
            Whether it is empty now; others may be reading it.
        """
        ...

    def check_file(self) -> Sequence[str]:
        """Check every page of the file; return a sentence for each finding."""
        ...


class ProofMode(StrEnum):
    """Whether a node has its database prove that no standby has taken its place."""

    AUTO = "auto"
    """As long as the database has synchronous standbys, without which nothing can be proved."""
    ON = "on"
    """Always: a database that has lost its synchronous standbys is not believed."""
    OFF = "off"
    """Never: the operator makes sure that a replaced server no longer answers."""


@dataclass(frozen=True, slots=True)
class Node:
    """A process that serves from a database that many share."""

    name: str
    peppers: frozenset[str]
    """Of the peppers that are announced, the ids of those whose files it has."""


@runtime_checkable
class ServerStore(Store, Protocol):
    """A store that is a database on a server of its own."""

    def join(
        self, name: str, holds: Callable[[Pepper], bool], proof: ProofMode = ProofMode.AUTO
    ) -> None:
        """Be one of the nodes from now on, until the store is closed.

        From then on reads of keys and of changes, and writes, must raise StoreLockedError while the
        clock of this machine is more than 1 s off that of the database, or has not been compared
        for 10 s.

        Args:
            name: What the node is called, for people.
            holds: Returns whether this node has the file of a pepper.
            proof: Whether the database has to prove that it is the real one.

        Raises:
            StoreUnusableError: The clock is off already, or there are no synchronous standbys and
                the proof is always wanted.
            StoreLockedError: The database cannot be reached.
        """
        ...

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that have been heard of within 10 s."""
        ...

    @property
    def proofs_begun(self) -> int:
        """How many times this node has begun to prove that it reads the real database.

        A database with synchronous standbys may be replaced by one of them without noticing, and
        goes on answering reads. It can no longer commit: a node that has joined proves by a commit,
        twice a second, that its server was not replaced. Reads of keys and of changes must raise
        StoreLockedError when the newest proof began more than 2 s ago, or is of another server.
        """
        ...

    def is_proven_since(self, begun: int) -> bool:
        """Return whether a proof has succeeded that began after that many; always without standbys.

        Args:
            begun: What `proofs_begun` was.
        """
        ...

    @property
    def clock_offset_s(self) -> float:
        """How far the clock of the database is ahead of this machine's; 0 before `join`."""
        ...

    def receive(self, file: Path, on_step: OnStep) -> AbstractContextManager[Writer]:
        """Open a write transaction that begins with every row of a file in this empty store.

        Must compare every row that it reads back with that of the file. All of it must be committed
        together with the block, or not at all.

        Args:
            file: A file store, in which nobody writes meanwhile.
            on_step: Told how much is done. What it raises ends the transaction.

        Raises:
            StoreConflictError: This store holds an installation; the block has not run.
            StoreDamagedError: Rows that were read back differ; the block has not run.
            StoreError: As from `write`.
        """
        ...
