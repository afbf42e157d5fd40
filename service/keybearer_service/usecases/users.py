"""The use cases of users. A user's role bounds every key that the user owns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keybearer._wire.enums import AuditAction, AuditTargetType, RevocationReason, UserType
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_digests import CoveredRow
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.errors import EmailTaken, EtagMismatch, LastAdmin, ResourceNotFound
from keybearer_service.domain.model import SubjectKind, User
from keybearer_service.storage import (
    EmailConflictError,
    Reader,
    Revoked,
    Store,
    UserQuery,
)
from keybearer_service.usecases.access import assert_account_exists, reach_of
from keybearer_service.usecases.audit import ids_change
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.issuing import KeyIssuer
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.pagination import Listed, PageTokens, reading_for
from keybearer_service.usecases.quotas import Quotas

MAX_ANSWERED_IDS = 10_000
"""Ids in a response of DeleteUser; with more, it would not fit into a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """What a new user is to be."""

    email: str
    display_name: str
    role: Role
    type: UserType


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdate:
    """Which fields of a user change, and to what."""

    paths: frozenset[str]
    display_name: str = ""
    role: Role = Role.UNSPECIFIED
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What deleting a user did, or would do."""

    user: User
    revoked: Revoked
    created_for_others: Revoked


UPDATABLE = frozenset({"display_name", "role"})


class UserManager:
    """The users of accounts."""

    def __init__(
        self,
        store: Store,
        mutations: Mutations,
        issuer: KeyIssuer,
        page_tokens: PageTokens,
        quotas: Quotas,
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._issuer = issuer
        self._page_tokens = page_tokens
        self._quotas = quotas

    def create(self, call: CallContext, scope: AccountScope, new: NewUser) -> User:
        """Create a user in the account of the scope.

        Raises:
            ResourceNotFound: There is no such account.
            EmailTaken: A live user of the account has the address.
            AuthorityExceeded: The role is above the caller's.
            QuotaExceeded: The account has as many users as it may have.
            SignInAgain: It is an administrator, and the caller has to prove again who they are.
        """
        with self._mutations.begin(call) as mutation:
            mutation.assert_may_grant(new.role)
            if new.role is Role.ADMIN:
                # With `oidc_bind = verified-email` that is all they need to sign in.
                mutation.assert_signed_in_lately()
            assert_account_exists(mutation.tx, scope)
            self._quotas.assert_room_for_user(mutation.tx, scope.only)
            user = insert_user(mutation, self._issuer, scope, new)
            mutation.record(
                AuditAction.USER_CREATED,
                account_id=user.account_id,
                target_type=AuditTargetType.USER,
                target_id=user.id,
                changes=created_changes(user),
            )
            return user

    def get(self, call: CallContext, user_id: str) -> User:
        """Return one user, deleted or not.

        Raises:
            ResourceNotFound: There is no such user in an account that the caller may touch.
        """
        with self._store.read() as reader:
            return _reachable_user(reader, reach_of(call), user_id)

    def by_email(self, call: CallContext, scope: AccountScope, email: str) -> User | None:
        """Return the live user of an account with an address in lower case; None for no such one.

        Raises:
            CallAbandoned: The caller no longer waits.
        """
        with reading_for(call, self._store) as reader:
            return reader.user_by_email(scope, email)

    def list(
        self, call: CallContext, query: UserQuery, page_size: int, page_token: str
    ) -> Listed[User]:
        """Return a page of users.

        Raises:
            FieldInvalid: The page size or the page token is not valid.
            ResourceNotFound: An operator named an account that does not exist.
            CallAbandoned: The caller no longer waits.
        """
        bound_to = ("users", query)
        page = self._page_tokens.page(page_size, page_token, bound_to)
        with reading_for(call, self._store) as reader:
            assert_account_exists(reader, query.scope)
            found = reader.list_users(query, page)
        return self._page_tokens.listed(
            found, page, bound_to, lambda user: (user.create_time, user.id)
        )

    def update(self, call: CallContext, user_id: str, update: UserUpdate) -> User:
        """Update the name or the role; a role counts from the next validation on.

        Raises:
            ResourceNotFound: There is no such live user.
            LastAdmin: The account would be left without an administrator.
            EtagMismatch: The user has changed since the etag was read.
            AuthorityExceeded: The role that the user would have is above the caller's.
            SignInAgain: The role is raised, and the caller has to prove again who they are.
        """
        with self._mutations.begin(call) as mutation:
            user = _live_user(mutation.tx, mutation.scope, user_id)
            if update.etag and update.etag != user.etag:
                raise EtagMismatch
            updated = replace(
                user,
                display_name=update.display_name
                if "display_name" in update.paths
                else user.display_name,
                role=update.role if "role" in update.paths else user.role,
            )
            if updated == user:
                return user
            mutation.assert_may_grant(updated.role)
            if updated.role > user.role:
                mutation.assert_signed_in_lately()
            if updated.role is not Role.ADMIN:
                _assert_not_last_admin(mutation.tx, mutation.scope, user)
            updated = replace(updated, update_time=mutation.now, row_version=user.row_version + 1)
            mutation.tx.update_user(updated)
            mutation.record(
                AuditAction.USER_UPDATED,
                account_id=user.account_id,
                target_type=AuditTargetType.USER,
                target_id=user.id,
                changes=_differences(user, updated),
            )
            if updated.role is not user.role:
                mutation.invalidate(SubjectKind.OWNER, user.id, user.account_id)
            return updated

    def delete(
        self, call: CallContext, user_id: str, *, validate_only: bool, revoke_created: bool
    ) -> Deletion:
        """Delete a user and revoke every key that the user owns, in one transaction.

        The identity of the user goes too, so that the person can be somebody else's user.

        Raises:
            ResourceNotFound: There is no such live user.
            LastAdmin: The account would be left without an administrator.
        """
        if validate_only:
            with self._store.read() as reader:
                scope = reach_of(call)
                user = _live_user(reader, scope, user_id)
                _assert_not_last_admin(reader, scope, user)
                return _deletion(reader, user, revoke_created=revoke_created)
        with self._mutations.begin(call) as mutation:
            user = _live_user(mutation.tx, mutation.scope, user_id)
            _assert_not_last_admin(mutation.tx, mutation.scope, user)
            planned = _deletion(mutation.tx, user, revoke_created=revoke_created)
            deleted = replace(
                user,
                delete_time=mutation.now,
                update_time=mutation.now,
                row_version=user.row_version + 1,
            )
            mutation.tx.update_user(deleted)
            mutation.tx.delete_identity(user.id)
            mutation.tx.delete_invitation(user.id)
            revoked = self._revoke_keys_of(mutation, call, user, revoke_created=revoke_created)
            _record_deletion(mutation, user, revoked)
            return replace(planned, user=deleted)

    @staticmethod
    def _revoke_keys_of(
        mutation: Mutation, call: CallContext, user: User, *, revoke_created: bool
    ) -> Sequence[CoveredRow]:
        owned = mutation.tx.revoke_keys(
            owner_id=user.id,
            reason=RevocationReason.OWNER_DELETED,
            revoked_by=call.identity.owner_id,
            now=mutation.now,
        )
        mutation.invalidate(SubjectKind.OWNER, user.id, user.account_id)
        if not revoke_created:
            return owned
        others = mutation.tx.revoke_keys(
            created_by=user.id,
            not_owner_id=user.id,
            reason=RevocationReason.CREATOR_DELETED,
            revoked_by=call.identity.owner_id,
            now=mutation.now,
        )
        if others:
            # These keys have many owners, and an operator's may be of any account. One change that
            # covers them all costs every watcher less than one for each.
            mutation.invalidate(SubjectKind.EVERYTHING, "", user.account_id)
        return sorted((*owned, *others), key=lambda row: str(row.columns["id"]))


def insert_user(mutation: Mutation, issuer: KeyIssuer, scope: AccountScope, new: NewUser) -> User:
    """Insert a user into the one account of the scope.

    Raises:
        EmailTaken: A live user of the account has the address.
    """
    if mutation.tx.user_by_email(scope, new.email) is not None:
        raise EmailTaken
    user = User(
        id=issuer.new_id(),
        account_id=scope.only,
        email=new.email,
        display_name=new.display_name,
        role=new.role,
        type=new.type,
        create_time=mutation.now,
        update_time=mutation.now,
    )
    try:
        mutation.tx.insert_user(user)
    except EmailConflictError as error:
        raise EmailTaken from error
    return user


def created_changes(user: User) -> Sequence[FieldChange]:
    """Return the fields of a new user, as changes of an audit event."""
    return (
        FieldChange("email", "", user.email, user.id),
        FieldChange("display_name", "", user.display_name, user.id),
        FieldChange("role", "", user.role.name),
        FieldChange("type", "", user.type.name),
    )


def _differences(before: User, after: User) -> Sequence[FieldChange]:
    changes = []
    if before.display_name != after.display_name:
        changes.append(
            FieldChange("display_name", before.display_name, after.display_name, after.id)
        )
    if before.role is not after.role:
        changes.append(FieldChange("role", before.role.name, after.role.name))
    return changes


def _record_deletion(mutation: Mutation, user: User, revoked: Sequence[CoveredRow]) -> None:
    ids_by_account: dict[str, list[str]] = {}
    for row in revoked:
        account_id, key_id = str(row.columns["account_id"]), str(row.columns["id"])
        ids_by_account.setdefault(account_id, []).append(key_id)
    all_ids = [str(row.columns["id"]) for row in revoked]
    mutation.record(
        AuditAction.USER_DELETED,
        account_id=user.account_id,
        target_type=AuditTargetType.USER,
        target_id=user.id,
        changes=ids_change("revoked_key_ids", all_ids),
        revoked=revoked,
        found_by=all_ids,
    )
    # An operator makes keys in other accounts, whose administrators see their own log alone.
    for account_id in sorted(ids_by_account.keys() - {user.account_id}):
        ids = ids_by_account[account_id]
        mutation.record(
            AuditAction.API_KEYS_REVOKED,
            account_id=account_id,
            target_type=AuditTargetType.USER,
            target_id=user.id,
            changes=(
                FieldChange("revocation_reason", "", RevocationReason.CREATOR_DELETED.name),
                *ids_change("revoked_key_ids", ids),
            ),
            found_by=ids,
        )


def _deletion(reader: Reader, user: User, *, revoke_created: bool) -> Deletion:
    owned = reader.unrevoked_keys(owner_id=user.id, limit=MAX_ANSWERED_IDS)
    created = reader.unrevoked_keys(
        created_by=user.id, not_owner_id=user.id, limit=MAX_ANSWERED_IDS
    )
    revoked = owned
    if revoke_created:
        revoked = Revoked(
            count=owned.count + created.count, ids=(owned.ids + created.ids)[:MAX_ANSWERED_IDS]
        )
    return Deletion(user, revoked, created)


def _reachable_user(reader: Reader, scope: AccountScope, user_id: str) -> User:
    user = reader.user(scope, validators.required_id("id", user_id))
    if user is None:
        raise ResourceNotFound("user", user_id)
    return user


def _live_user(reader: Reader, scope: AccountScope, user_id: str) -> User:
    user = _reachable_user(reader, scope, user_id)
    if user.delete_time is not None:
        raise ResourceNotFound("user", user_id)
    return user


def _assert_not_last_admin(reader: Reader, scope: AccountScope, user: User) -> None:
    own_account = scope.narrowed_to(user.account_id)
    if user.role is Role.ADMIN and reader.live_admins(own_account) == 1:
        raise LastAdmin(user.id)
