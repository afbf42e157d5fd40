"""The use cases of people whom a provider has named: sign in, and be signed out by the provider."""

import hmac
from dataclasses import dataclass, replace
from typing import Final

from keybearer._wire.enums import AuditAction, AuditTargetType, UserType
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import HOUR, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.identity import (
    Identity,
    Invitation,
    ProvenPerson,
    identity_mac,
    invitation_digest,
    parse_invitation_token,
)
from keybearer_service.domain.session import MAX_USER_AGENT, Session, new_session_token
from keybearer_service.domain.verdict import Caller
from keybearer_service.storage import Reader, Store
from keybearer_service.usecases.access import scope_of_sign_in
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.sessions import insert_session
from keybearer_service.validation.sessions import is_genuine
from keybearer_service.validation.validator import caller_of, match_of

STATE_KEPT_FOR: Final = HOUR
"""How long the state of a sign-in is remembered, which can be used for less than that."""
LOGOUT_KEPT_FOR: Final = HOUR
"""How long the id of a provider's logout is remembered, which is taken for less than that."""


class SignInRefused(Exception):
    """A person whom a provider has named gets no session. `reason` is for the audit log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInKeys:
    """The keys of the installation for what sign-ins store."""

    sessions: bytes
    identities: bytes
    invitations: bytes


class SignInManager:
    """Sign-ins at a provider."""

    def __init__(
        self, store: Store, mutations: Mutations, keys: SignInKeys, entropy: Entropy
    ) -> None:
        """Create the use cases.

        Args:
            store: Holds the sessions.
            mutations: Opens changes.
            keys: The keys of the installation.
            entropy: Draws ids and secrets.
        """
        self._store = store
        self._mutations = mutations
        self._keys = keys
        self._entropy = entropy

    def sign_in(
        self,
        call: CallContext,
        person: ProvenPerson,
        user_agent: str,
        *,
        invitation: str = "",
        email_account: str = "",
    ) -> str:
        """Open a session for a person whom a provider has named; return its token.

        A person who is nobody here yet is bound to the user of the invitation, or to the one with
        the verified address.

        Args:
            call: The sign-in; its rule says which role a session needs.
            person: The person.
            user_agent: The `User-Agent` header of the browser.
            invitation: The secret of an invitation; empty without one.
            email_account: The account in which a verified address names a user; empty for none.

        Raises:
            SignInRefused: The person is nobody here, or the invitation cannot be accepted.
            CredentialsInvalid: The user is deleted, or the account is disabled.
            RoleInsufficient: The user is no administrator.
        """
        token, parts = new_session_token(self._entropy)

        def identify(reader: Reader, now: Micros) -> Caller:
            if invitation:
                user_id = self._invited(reader, now, invitation, person)
            else:
                user_id = self._known(reader, person, email_account)
            match = match_of(reader.person_record(user_id), 0, call.rule, now, call)
            return caller_of(match, parts.key_id, Micros(min(person.auth_time, now)))

        with self._mutations.begin_sign_in(call, identify) as mutation:
            caller = call.identity
            if mutation.tx.identity(person.issuer, person.subject) is None:
                how = "invitation" if invitation else "verified-email"
                bind(mutation, self._keys.identities, caller, person, how)
            session = Session(
                id=parts.key_id,
                account_id=caller.account_id,
                user_id=caller.owner_id,
                issuer=person.issuer,
                subject=person.subject,
                provider_session=person.provider_session,
                auth_time=Micros(min(person.auth_time, mutation.now)),
                create_time=mutation.now,
                last_seen_time=mutation.now,
                peer=call.peer,
                user_agent=user_agent[:MAX_USER_AGENT],
                digest=b"",
            )
            changes = [
                FieldChange("method", "", "OIDC"),
                FieldChange("issuer", "", person.issuer),
            ]
            insert_session(mutation, self._keys.sessions, session, parts.secret, changes)
        return token

    def _known(self, reader: Reader, person: ProvenPerson, email_account: str) -> str:
        identity = reader.identity(person.issuer, person.subject)
        if identity is not None:
            if not is_genuine(self._keys.identities, identity):
                raise SignInRefused("IDENTITY_ALTERED")
            return identity.user_id
        if not email_account:
            raise SignInRefused("NOT_INVITED")
        if not person.is_email_verified:
            raise SignInRefused("EMAIL_NOT_VERIFIED")
        user = reader.user_by_email(scope_of_sign_in(email_account), person.email.lower())
        if user is None or user.type is not UserType.PERSON:
            raise SignInRefused("EMAIL_UNKNOWN")
        if reader.identity_of(user.id) is not None:
            raise SignInRefused("USER_HAS_IDENTITY")
        return user.id

    def _invited(self, reader: Reader, now: Micros, token: str, person: ProvenPerson) -> str:
        invitation = invitation_in(reader, now, self._keys.invitations, token)
        if invitation is None:
            raise SignInRefused("INVITATION_INVALID")
        assert_free(reader, person, invitation.user_id)
        return invitation.user_id

    def person_of(self, call: CallContext) -> tuple[str, str] | None:
        """Return issuer and subject of the session that calls; None for one of a token."""
        with self._store.read() as reader:
            session = reader.session(call.identity.session_id)
        return (session.issuer, session.subject) if session and session.issuer else None

    def use_state(self, call: CallContext, state: str) -> bool:
        """Remember that an answer of a provider was taken; return False when it was before."""
        with self._mutations.begin_for_provider(call) as mutation:
            until = Micros(mutation.now + STATE_KEPT_FOR)
            return mutation.tx.use_once("state", state, now=mutation.now, until=until)

    def end_at_provider(
        self,
        call: CallContext,
        issuer: str,
        *,
        logout_id: str,
        subject: str,
        provider_session: str,
    ) -> bool:
        """End the sessions that a provider has ended at its side.

        Args:
            call: The request of the provider, already checked.
            issuer: The provider.
            logout_id: What the provider calls this logout.
            subject: Whose sessions; empty when the provider names its session alone.
            provider_session: Of which session of the provider; empty for all of the subject.

        Returns:
            False when this logout was carried out before; then nothing is done.
        """
        with self._mutations.begin_for_provider(call) as mutation:
            until = Micros(mutation.now + LOGOUT_KEPT_FOR)
            if not mutation.tx.use_once("logout", logout_id, now=mutation.now, until=until):
                return False
            for session in mutation.tx.sessions_at(
                issuer, subject=subject, provider_session=provider_session
            ):
                mutation.tx.end_session(session.id, mutation.now)
                mutation.record(
                    AuditAction.SESSION_ENDED,
                    account_id=session.account_id,
                    target_type=AuditTargetType.SESSION,
                    target_id=session.id,
                    changes=[FieldChange("end_reason", "", "PROVIDER_LOGOUT")],
                )
        return True


def bind(mutation: Mutation, key: bytes, caller: Caller, person: ProvenPerson, how: str) -> None:
    """Bind a person at a provider to the caller's user, and use up the user's invitation.

    Args:
        mutation: The open change.
        key: The key of the installation for the MACs of identities.
        caller: The user; nobody may be bound to it yet.
        person: The person, who may be nobody here yet.
        how: What allows it, for the audit log.
    """
    identity = Identity(
        issuer=person.issuer,
        subject=person.subject,
        account_id=caller.account_id,
        user_id=caller.owner_id,
        bind_time=mutation.now,
        mac=b"",
    )
    mutation.tx.insert_identity(replace(identity, mac=identity_mac(key, identity)))
    mutation.tx.delete_invitation(caller.owner_id)
    mutation.record(
        AuditAction.IDENTITY_BOUND,
        account_id=caller.account_id,
        target_type=AuditTargetType.USER,
        target_id=caller.owner_id,
        changes=[
            FieldChange("issuer", "", person.issuer),
            FieldChange("subject", "", person.subject, caller.owner_id),
            FieldChange("bound_by", "", how),
        ],
    )


def assert_free(reader: Reader, person: ProvenPerson, user_id: str) -> None:
    """Raise unless a person and a user can be bound to each other.

    Raises:
        SignInRefused: One of the two is bound already.
    """
    if reader.identity(person.issuer, person.subject) is not None:
        raise SignInRefused("IDENTITY_TAKEN")
    if reader.identity_of(user_id) is not None:
        raise SignInRefused("USER_HAS_IDENTITY")


def invitation_in(reader: Reader, now: Micros, key: bytes, token: str) -> Invitation | None:
    """Return the invitation that a secret opens; None for one that is over, used or unknown.

    Args:
        reader: The open transaction.
        now: The moment.
        key: The key of the installation for invitations.
        token: The secret.
    """
    parsed = parse_invitation_token(token)
    invitation = None if parsed is None else reader.invitation(parsed.key_id)
    if parsed is None or invitation is None or now >= invitation.expire_time:
        return None
    epoch = reader.installation().epoch
    digest = invitation_digest(key, epoch, invitation, parsed.secret)
    return invitation if hmac.compare_digest(digest, invitation.digest) else None
