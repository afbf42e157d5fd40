"""The use cases of sessions: sign in with the token of a key, look at sessions, end them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keybearer._wire.enums import AuditAction, AuditTargetType
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.audit_event import FieldChange
from keybearer_service.domain.clock import Clock, after
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import ResourceNotFound
from keybearer_service.domain.session import (
    MAX_USER_AGENT,
    Session,
    new_session_token,
    session_digest,
)
from keybearer_service.storage import SESSIONS_KEPT_FOR, Store
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.pagination import reading_for
from keybearer_service.validation.sessions import is_open

MAX_LISTED_SESSIONS = 200
"""The newest of an account, or of a user."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is accepted, and whose it is."""

    session: Session
    user_email: str


class SessionManager:
    """The sessions of people."""

    def __init__(
        self, store: Store, mutations: Mutations, key: bytes, clock: Clock, entropy: Entropy
    ) -> None:
        """Create the use cases.

        Args:
            store: Holds the sessions.
            mutations: Opens changes.
            key: The key of the installation for the digests of sessions.
            clock: Judges which sessions are open.
            entropy: Draws ids and secrets.
        """
        self._store = store
        self._clock = clock
        self._mutations = mutations
        self._key = key
        self._entropy = entropy

    def open(self, call: CallContext, user_agent: str, *, provider_failed: bool = False) -> str:
        """Open a session for a caller who proved a key; return the token of the session.

        Args:
            call: The sign-in; its rule says which role a session needs.
            user_agent: The `User-Agent` header of the browser.
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

    def list_open(
        self, call: CallContext, scope: AccountScope, user_id: str = ""
    ) -> Sequence[OpenSession]:
        """Return the sessions of an account, or of one user of it, that are accepted now.

        Newest first, and at most `MAX_LISTED_SESSIONS`.

        Raises:
            CallAbandoned: The caller no longer waits.
        """
        with reading_for(call, self._store) as reader:
            now = self._clock.now()
            found = reader.sessions(
                scope,
                user_id=user_id,
                since=after(now, -SESSIONS_KEPT_FOR),
                limit=MAX_LISTED_SESSIONS,
            )
            users = {one.user_id: reader.user(scope, one.user_id) for one in found}
            return [
                OpenSession(session, user.email)
                for session in found
                if (user := users[session.user_id]) is not None
                and is_open(reader, session, call.rule, now)
            ]

    def end_other(self, call: CallContext, session_id: str) -> None:
        """End a session of an account that the caller may touch; one that has ended stays as it is.

        Raises:
            ResourceNotFound: There is no such session.
        """
        with self._mutations.begin(call) as mutation:
            session = mutation.tx.session(session_id)
            if session is None or not mutation.scope.covers(session.account_id):
                raise ResourceNotFound("session", session_id)
            if session.end_time is not None:
                return
            mutation.tx.end_session(session_id, mutation.now)
            mutation.record(
                AuditAction.SESSION_ENDED,
                account_id=session.account_id,
                target_type=AuditTargetType.SESSION,
                target_id=session_id,
                found_by=(session.user_id,),
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
