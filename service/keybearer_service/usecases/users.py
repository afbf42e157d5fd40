"""What can be done with users. A user's role bounds every key the user owns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.audit_event import Action, FieldChange, TargetType
from keybearer_service.domain.errors import EmailTaken, EtagMismatch, LastAdmin, ResourceNotFound
from keybearer_service.domain.model import RevocationReason, SubjectKind, User, UserType
from keybearer_service.storage import EmailConflictError, Reader, Revoked, Store, UserQuery
from keybearer_service.usecases.audit import ids_change
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.issuing import KeyIssuer
from keybearer_service.usecases.keys import etag_of
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.pagination import PageTokens

MAX_ANSWERED_IDS = 10_000
"""Ids in an answer of DeleteUser; with more, the answer would not fit into a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """What a user is to be."""

    email: str
    display_name: str
    role: Role
    type: UserType


@dataclass(frozen=True, slots=True, kw_only=True)
class UserUpdate:
    """What of a user is to become what."""

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
        self, store: Store, mutations: Mutations, issuer: KeyIssuer, page_tokens: PageTokens
    ) -> None:
        """Take what the use cases need."""
        self._store = store
        self._mutations = mutations
        self._issuer = issuer
        self._page_tokens = page_tokens

    def create(self, call: CallContext, account_id: str, new: NewUser) -> User:
        """Make a user.

        Raises:
            ResourceNotFound: No such account.
            EmailTaken: A live user of the account has the address.
            AuthorityExceeded: The role is above the caller's.
        """
        with self._mutations.begin(call) as mutation:
            mutation.assert_may_grant(new.role)
            if mutation.tx.account(account_id) is None:
                raise ResourceNotFound("account", account_id)
            user = insert_user(mutation, self._issuer, account_id, new)
            mutation.record(
                Action.USER_CREATED,
                account_id=account_id,
                target_type=TargetType.USER,
                target_id=user.id,
                changes=created_changes(user),
            )
            return user

    def get(self, call: CallContext, user_id: str) -> User:
        """Answer one user, deleted or not.

        Raises:
            ResourceNotFound: Unknown, or of an account the caller may not see.
        """
        with self._store.read() as reader:
            return _visible_user(call, reader, user_id)

    def list(self, query: UserQuery, page_size: int, page_token: str) -> tuple[Sequence[User], str]:
        """Answer a page of users and the token of the next one.

        Raises:
            FieldInvalid: A page size or token that is none.
            ResourceNotFound: An operator named an account that does not exist.
        """
        bound_to = ("users", query)
        page = self._page_tokens.page(page_size, page_token, bound_to)
        with self._store.read() as reader:
            if reader.account(query.account_id) is None:
                raise ResourceNotFound("account", query.account_id)
            found = reader.list_users(query, page)
        return self._page_tokens.split(
            found, page, bound_to, lambda user: (user.create_time, user.id)
        )

    def update(self, call: CallContext, user_id: str, update: UserUpdate) -> User:
        """Change the name or the role; a role counts from the next validation on.

        Raises:
            ResourceNotFound: Unknown, deleted, or not visible.
            LastAdmin: The account would be left without an administrator.
            EtagMismatch: Changed since it was read.
        """
        with self._mutations.begin(call) as mutation:
            user = _live_user(call, mutation.tx, user_id)
            if update.etag and update.etag != etag_of(user):
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
            if updated.role is not Role.ADMIN:
                _assert_not_last_admin(mutation, user)
            updated = replace(updated, update_time=mutation.now, row_version=user.row_version + 1)
            mutation.tx.update_user(updated)
            mutation.record(
                Action.USER_UPDATED,
                account_id=user.account_id,
                target_type=TargetType.USER,
                target_id=user.id,
                changes=_differences(user, updated),
            )
            if updated.role is not user.role:
                mutation.invalidate(SubjectKind.OWNER, user.id, user.account_id)
            return updated

    def delete(
        self, call: CallContext, user_id: str, *, validate_only: bool, revoke_created: bool
    ) -> Deletion:
        """Delete a user and revoke every key the user owns, in one transaction.

        Raises:
            ResourceNotFound: Unknown, deleted before, or not visible.
            LastAdmin: The account would be left without an administrator.
        """
        if validate_only:
            with self._store.read() as reader:
                user = _live_user(call, reader, user_id)
                if user.role is Role.ADMIN and reader.live_admins(user.account_id) == 1:
                    raise LastAdmin(user_id)
                return _deletion(reader, user, revoke_created=revoke_created)
        with self._mutations.begin(call) as mutation:
            user = _live_user(call, mutation.tx, user_id)
            _assert_not_last_admin(mutation, user)
            planned = _deletion(mutation.tx, user, revoke_created=revoke_created)
            deleted = replace(
                user,
                delete_time=mutation.now,
                update_time=mutation.now,
                row_version=user.row_version + 1,
            )
            mutation.tx.update_user(deleted)
            self._revoke_keys_of(mutation, call, user, revoke_created=revoke_created)
            mutation.record(
                Action.USER_DELETED,
                account_id=user.account_id,
                target_type=TargetType.USER,
                target_id=user.id,
                changes=ids_change("revoked_key_ids", planned.revoked.ids, planned.revoked.count),
            )
            return replace(planned, user=deleted)

    @staticmethod
    def _revoke_keys_of(
        mutation: Mutation, call: CallContext, user: User, *, revoke_created: bool
    ) -> None:
        mutation.tx.revoke_keys(
            owner_id=user.id,
            reason=RevocationReason.OWNER_DELETED,
            revoked_by=call.identity.owner_id,
            now=mutation.now,
        )
        mutation.invalidate(SubjectKind.OWNER, user.id, user.account_id)
        if not revoke_created:
            return
        others = mutation.tx.revoke_keys(
            created_by=user.id,
            not_owner_id=user.id,
            reason=RevocationReason.CREATOR_DELETED,
            revoked_by=call.identity.owner_id,
            now=mutation.now,
        )
        if others:
            # Their owners are many, and an operator's keys may be of any account: one change that
            # covers them all is cheaper for every watcher than one for each.
            mutation.invalidate(SubjectKind.EVERYTHING, "", user.account_id)


def insert_user(mutation: Mutation, issuer: KeyIssuer, account_id: str, new: NewUser) -> User:
    """Insert a user.

    Raises:
        EmailTaken: A live user of the account has the address.
    """
    if mutation.tx.user_by_email(account_id, new.email) is not None:
        raise EmailTaken
    user = User(
        id=issuer.new_id(),
        account_id=account_id,
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
    """Tell what a new user is."""
    return (
        FieldChange("email", "", user.email),
        FieldChange("display_name", "", user.display_name),
        FieldChange("role", "", user.role.name),
        FieldChange("type", "", user.type.name),
    )


def _differences(before: User, after: User) -> Sequence[FieldChange]:
    changes = []
    if before.display_name != after.display_name:
        changes.append(FieldChange("display_name", before.display_name, after.display_name))
    if before.role is not after.role:
        changes.append(FieldChange("role", before.role.name, after.role.name))
    return changes


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


def _visible_user(call: CallContext, reader: Reader, user_id: str) -> User:
    user = reader.user(validators.required_id("id", user_id))
    if user is None:
        raise ResourceNotFound("user", user_id)
    call.assert_visible(user.account_id, "user", user_id)
    return user


def _live_user(call: CallContext, reader: Reader, user_id: str) -> User:
    user = _visible_user(call, reader, user_id)
    if user.delete_time is not None:
        raise ResourceNotFound("user", user_id)
    return user


def _assert_not_last_admin(mutation: Mutation, user: User) -> None:
    if user.role is Role.ADMIN and mutation.tx.live_admins(user.account_id) == 1:
        raise LastAdmin(user.id)
