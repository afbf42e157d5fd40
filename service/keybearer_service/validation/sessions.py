"""Sessions as a credential: judged on every request, and again inside every change.

A session that was opened with the token of a key is judged as a call with that token would be, by
the same functions, and beside that by its own end. So a key that is revoked, disabled, expired or
rotated, and an owner who is deleted or demoted, end it without anybody remembering to.

A session that was opened at a provider is judged as the holder of a key of that user would be who
grants ADMIN and never ends, as long as the identity is bound to the user.
"""

import hmac

from keybearer.access import NO_CONTEXT, AccessRule, Context
from keybearer.models import Presented
from keybearer_service.domain.clock import Clock, Micros
from keybearer_service.domain.errors import CredentialsInvalid, ServiceError
from keybearer_service.domain.identity import Identity, identity_mac
from keybearer_service.domain.session import (
    SEEN_EVERY,
    Session,
    parse_session_token,
    session_digest,
)
from keybearer_service.domain.verdict import Caller, Match, TokenRecord
from keybearer_service.storage import Reader, Store, StoreError
from keybearer_service.telemetry.log_quotas import OutageLog
from keybearer_service.validation.validator import (
    ANY_KEY,
    NOBODY,
    caller_of,
    judge_caller_again,
    match_of,
)


class SessionValidator:
    """Knows callers by the tokens of their sessions."""

    def __init__(self, store: Store, key: bytes, identity_key: bytes, clock: Clock) -> None:
        """Create the validator.

        Args:
            store: Holds the sessions.
            key: The key of the installation for the digests of sessions.
            identity_key: Its key for the MACs of identities.
            clock: Judges what has ended.
        """
        self._store = store
        self._key = key
        self._identity_key = identity_key
        self._clock = clock
        self._outage = OutageLog("sessions_not_seen")

    def authenticate(self, presented: Presented) -> Caller:
        """Return who calls with this session, and record that it is in use.

        Raises:
            CredentialsInvalid: The token opens no session, the session has ended, or the token that
                was signed in with is no longer accepted.
            CredentialsExpired: The key that was signed in with has expired.
            StoreError: The store cannot be read; an outage ends no session.
        """
        parsed = parse_session_token(presented.token)
        with self._store.read() as reader:
            session = reader.session(NOBODY if parsed is None else parsed.key_id)
            epoch = reader.installation().epoch
            now = self._clock.now()
            if parsed is None or session is None:
                raise CredentialsInvalid
            digest = session_digest(self._key, epoch, session, parsed.secret)
            if not hmac.compare_digest(digest, session.digest) or not session.lives_at(now):
                raise CredentialsInvalid
            if not session.key_id:
                identity = reader.identity(session.issuer, session.subject)
                if identity is None or not is_genuine(self._identity_key, identity):
                    raise CredentialsInvalid
            match = match_of(
                _record_behind(reader, session), session.secret_version, ANY_KEY, now, presented
            )
        self._see(session, now)
        return caller_of(match, session_id=session.id, auth_time=session.auth_time)

    def _see(self, session: Session, now: Micros) -> None:
        if now < session.last_seen_time + SEEN_EVERY:
            return
        try:
            with self._store.write() as tx:
                tx.see_session(session.id, now)
            self._outage.recovered()
        except StoreError as error:
            # The session ends earlier than it should; what was asked can still be answered.
            self._outage.failed(error)


def is_open(reader: Reader, session: Session, rule: AccessRule, now: Micros) -> bool:
    """Return whether a session would be accepted, as far as its row and what is behind it say."""
    if not session.lives_at(now):
        return False
    try:
        match_of(_record_behind(reader, session), session.secret_version, rule, now, NO_CONTEXT)
    except ServiceError:
        return False
    return True


def judge_again(
    reader: Reader, caller: Caller, rule: AccessRule, now: Micros, context: Context
) -> Match:
    """Judge a caller, with a key or with a session, by what a transaction reads.

    Returns:
        The secret behind the caller, and its key, as they are now.

    Raises:
        CredentialsInvalid, CredentialsExpired: The credential no longer works.
        RoleInsufficient, ScopeInsufficient: The rule says no by now.
    """
    if not caller.session_id:
        return judge_caller_again(reader.lookup(caller.key_id), caller, rule, now, context)
    session = reader.session(caller.session_id)
    if session is None or not session.lives_at(now):
        raise CredentialsInvalid
    return judge_caller_again(_record_behind(reader, session), caller, rule, now, context)


def is_genuine(key: bytes, identity: Identity) -> bool:
    """Return whether this program wrote the row of an identity.

    Args:
        key: The key of the installation for identities.
        identity: The identity.
    """
    return hmac.compare_digest(identity_mac(key, identity), identity.mac)


def _record_behind(reader: Reader, session: Session) -> TokenRecord | None:
    if session.key_id:
        return reader.lookup(session.key_id)
    identity = reader.identity(session.issuer, session.subject)
    if identity is None or identity.user_id != session.user_id:
        return None
    return reader.person_record(identity.user_id)
