"""The use cases of sessions: sign in with the token of a key, and sign out."""

from dataclasses import replace

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.session import (
    MAX_USER_AGENT,
    Session,
    new_session_token,
    session_digest,
)
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.mutations import Mutations


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

    def open(self, call: CallContext, user_agent: str) -> str:
        """Open a session for a caller who proved a key; return the token of the session.

        Args:
            call: The sign-in; its rule says which role a session needs.
            user_agent: What the browser says of itself.

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
                create_time=mutation.now,
                last_seen_time=mutation.now,
                peer=call.peer,
                user_agent=user_agent[:MAX_USER_AGENT],
                digest=b"",
            )
            epoch = mutation.tx.installation().epoch
            digest = session_digest(self._key, epoch, session, parts.secret)
            mutation.tx.insert_session(replace(session, digest=digest))
            mutation.record(
                AuditAction.SIGNED_IN,
                account_id=session.account_id,
                target_type=AuditTargetType.SESSION,
                target_id=session.id,
            )
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
