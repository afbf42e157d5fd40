"""The use cases of identities: who signs in at a provider is which user here."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType, UserType
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid, ResourceNotFound
from keybearer_service.domain.identity import (
    Identity,
    Invitation,
    ProvenPerson,
    invitation_digest,
    new_invitation_token,
)
from keybearer_service.domain.model import Account, User
from keybearer_service.storage import Reader, Store
from keybearer_service.usecases.access import reach_of, scope_of_sign_in
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.sign_ins import SignInKeys, assert_free, bind, invitation_in

_NO_PERSON: Final = "a service account has keys; only people sign in"
_NO_ADMIN: Final = "only administrators sign in to the console; change the role first"


@dataclass(frozen=True, slots=True)
class Invited:
    """Whom an invitation is for."""

    user: User
    account: Account
    expire_time: Micros


@dataclass(frozen=True, slots=True)
class IssuedInvitation:
    """A new invitation with its secret, which is not stored."""

    user: User
    token: str
    expire_time: Micros


@dataclass(frozen=True, slots=True)
class SignInState:
    """How a user can sign in at the provider."""

    user: User
    identity: Identity | None
    invitation: Invitation | None
    """One that can still be accepted."""
    hindrance: str
    """Why the user signs in at no provider, as a part of a sentence; empty when nothing hinders."""


class IdentityManager:
    """The identities of users, and invitations."""

    def __init__(
        self,
        store: Store,
        mutations: Mutations,
        keys: SignInKeys,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        """Create the use cases.

        Args:
            store: Holds the identities.
            mutations: Opens changes.
            keys: The keys of the installation.
            clock: Judges what is over.
            entropy: Draws ids and secrets.
        """
        self._store = store
        self._mutations = mutations
        self._keys = keys
        self._clock = clock
        self._entropy = entropy

    def state_of(self, call: CallContext, user_id: str) -> SignInState:
        """Return how a user signs in.

        Raises:
            ResourceNotFound: There is no such live user in an account that the caller may touch.
        """
        with self._store.read() as reader:
            scope = reach_of(call)
            user = reader.user(scope, validators.required_id("id", user_id))
            if user is None or user.delete_time is not None:
                raise ResourceNotFound("user", user_id)
            invitation = reader.invitation_of(user.id)
            if invitation is not None and self._clock.now() >= invitation.expire_time:
                invitation = None
            identity = reader.identity_of(user.id)
            return SignInState(user, identity, invitation, _hindrance_of(user))

    def invite(self, call: CallContext, user_id: str) -> IssuedInvitation:
        """Let a person connect a sign-in with a user. The invitation before stops working.

        Raises:
            ResourceNotFound: There is no such live user.
            FieldInvalid: The user is a service account, is no administrator, or is connected.
            AuthorityExceeded: The user's role is above the caller's.
            SignInAgain: The caller has to prove again who they are.
        """
        token, parts = new_invitation_token(self._entropy)
        with self._mutations.begin(call) as mutation:
            mutation.assert_signed_in_lately()
            user = _live_user(mutation, user_id)
            mutation.assert_may_grant(user.role)
            _assert_can_be_invited(mutation.tx, user)
            invitation = Invitation(
                id=parts.key_id,
                account_id=user.account_id,
                user_id=user.id,
                created_by=call.identity.owner_id,
                create_time=mutation.now,
                digest=b"",
            )
            epoch = mutation.tx.installation().epoch
            digest = invitation_digest(self._keys.invitations, epoch, invitation, parts.secret)
            mutation.tx.put_invitation(replace(invitation, digest=digest))
            mutation.record(
                AuditAction.USER_INVITED,
                account_id=user.account_id,
                target_type=AuditTargetType.USER,
                target_id=user.id,
            )
        return IssuedInvitation(user, token, invitation.expire_time)

    def invited(self, token: str) -> Invited | None:
        """Return whom an invitation is for; None when it cannot be accepted.

        Args:
            token: The secret of the invitation, which is all that its holder shows.
        """
        with self._store.read() as reader:
            invitation = invitation_in(reader, self._clock.now(), self._keys.invitations, token)
            if invitation is None:
                return None
            scope = scope_of_sign_in(invitation.account_id)
            user = reader.user(scope, invitation.user_id)
            account = reader.account(scope, invitation.account_id)
        if user is None or account is None or user.delete_time is not None:
            return None
        return Invited(user, account, invitation.expire_time)

    def connect(self, call: CallContext, person: ProvenPerson) -> None:
        """Bind a person at a provider to the user who calls.

        Raises:
            SignInRefused: The person or the user is bound already.
            FieldInvalid: The user is a service account.
            SignInAgain: The caller has to prove again who they are.
        """
        with self._mutations.begin(call) as mutation:
            mutation.assert_signed_in_lately()
            user = _live_user(mutation, call.identity.owner_id)
            _assert_person(user)
            assert_free(mutation.tx, person, user.id)
            bind(mutation, self._keys.identities, call.identity, person, "administrator")

    def remove(self, call: CallContext, user_id: str) -> User:
        """Remove the identity and the invitation of a user, whose sessions end with them.

        Raises:
            ResourceNotFound: There is no such live user.
        """
        with self._mutations.begin(call) as mutation:
            user = _live_user(mutation, user_id)
            identity = mutation.tx.identity_of(user.id)
            if identity is None and mutation.tx.invitation_of(user.id) is None:
                return user
            mutation.tx.delete_invitation(user.id)
            changes = []
            if identity is not None:
                mutation.tx.delete_identity(user.id)
                changes = [
                    FieldChange("issuer", identity.issuer, ""),
                    FieldChange("subject", identity.subject, "", user.id),
                ]
            mutation.record(
                AuditAction.IDENTITY_REMOVED,
                account_id=user.account_id,
                target_type=AuditTargetType.USER,
                target_id=user.id,
                changes=changes,
            )
            return user

    def has_administrator(self, account_id: str, issuer: str) -> bool:
        """Return whether an administrator of an account can sign in at a provider."""
        with self._store.read() as reader:
            return reader.has_admin_identity(account_id, issuer)

    def leaves_nobody(
        self,
        account_id: str,
        *,
        issuer: str,
        without_keys: Collection[str] = (),
        without_user: str = "",
        without_identity_of: str = "",
    ) -> bool:
        """Return whether a change would leave nobody who can administer an account.

        Args:
            account_id: The account; the caller may touch it.
            issuer: The provider to sign in at; empty for none.
            without_keys: The keys that the change ends.
            without_user: The user who would be no administrator; empty for none.
            without_identity_of: The user whose identity the change takes away; empty for none.
        """
        with self._store.read() as reader:
            now = self._clock.now()
            if reader.has_admin_key(account_id, now, but=without_keys, but_of=without_user):
                return False
            gone = without_user or without_identity_of
            return not (issuer and reader.has_admin_identity(account_id, issuer, but=gone))


def _live_user(mutation: Mutation, user_id: str) -> User:
    user = mutation.tx.user(mutation.scope, validators.required_id("id", user_id))
    if user is None or user.delete_time is not None:
        raise ResourceNotFound("user", user_id)
    return user


def _assert_person(user: User) -> None:
    if user.type is not UserType.PERSON:
        raise FieldInvalid("id", _NO_PERSON)


def _hindrance_of(user: User) -> str:
    if user.type is not UserType.PERSON:
        return _NO_PERSON
    return "" if user.role is Role.ADMIN else _NO_ADMIN


def _assert_can_be_invited(reader: Reader, user: User) -> None:
    hindrance = _hindrance_of(user)
    if hindrance:
        raise FieldInvalid("id", hindrance)
    if reader.identity_of(user.id) is not None:
        raise FieldInvalid("id", "the user has a sign-in already; remove it first")
