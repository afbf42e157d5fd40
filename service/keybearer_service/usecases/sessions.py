"""The use cases of sessions: sign in with the token of a key, and sign out."""

from collections.abc import Sequence
from dataclasses import replace

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.session import (
    MAX_USER_AGENT,
    Session,
    new_session_token,
    session_digest,
)
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.mutations import Mutation, Mutations


class SessionManager:
    """The sessions of people."""

    def __init__(self, mutations: Mutations, key: bytes, entropy: Entropy) -> None:
        """Create the use cases.

        Args:
            mutations: Opens changes.
            key: The key of the installation for the digests of sessions.
            entropy: Draws ids and secrets.
        """
        self._mutations = mutations
        self._key = key
        self._entropy = entropy

    def open(self, call: CallContext, user_agent: str, *, provider_failed: bool = False) -> str:
        """Open a session for a caller who proved a key; return the token of the session.

        Args:
            call: The sign-in; its rule says which role a session needs.
            user_agent: What the browser says of itself.
            provider_failed: Whether a token was taken because the provider cannot be reached.

        Raises:
            ServiceError: The key is no longer accepted, or its role is too low by now.
        """
        caller = call.identity
        token, parts = new_session_token(self._entropy)
        with self._mutations.begin(call) as mutation:
            session = Session(
                id=parts.key_id,
                account_id=caller.account_id,
                user_id=caller.owner_id,
                key_id=caller.key_id,
                secret_version=caller.match.secret_version,
                auth_time=mutation.now,
                create_time=mutation.now,
                last_seen_time=mutation.now,
                peer=call.peer,
                user_agent=user_agent[:MAX_USER_AGENT],
                digest=b"",
            )
            changes = [FieldChange("method", "", "TOKEN")]
            if provider_failed:
                changes.append(FieldChange("provider", "", "unreachable"))
            insert_session(mutation, self._key, session, parts.secret, changes)
        return token

    def end(self, call: CallContext) -> None:
        """End the session that calls.

        Raises:
            CredentialsInvalid, CredentialsExpired: It has ended by itself.
        """
        caller = call.identity
        with self._mutations.begin(call) as mutation:
            mutation.tx.end_session(caller.session_id, mutation.now)
            mutation.record(
                AuditAction.SIGNED_OUT,
                account_id=caller.account_id,
                target_type=AuditTargetType.SESSION,
                target_id=caller.session_id,
            )


def insert_session(
    mutation: Mutation, key: bytes, session: Session, secret: str, changes: Sequence[FieldChange]
) -> None:
    """Insert a new session with the digest of its secret, and have it audited.

    Args:
        mutation: The open change.
        key: The key of the installation for the digests of sessions.
        session: The session; its own digest is not read.
        secret: The secret.
        changes: How it was opened, for the audit log.
    """
    epoch = mutation.tx.installation().epoch
    digest = session_digest(key, epoch, session, secret)
    mutation.tx.insert_session(replace(session, digest=digest))
    mutation.record(
        AuditAction.SIGNED_IN,
        account_id=session.account_id,
        target_type=AuditTargetType.SESSION,
        target_id=session.id,
        changes=changes,
    )
