"""The use cases that revoke keys: one, several, those that match, the one of a token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from keybearer._wire.enums import (
    REASONS_OF_CALLERS,
    AuditAction,
    RevocationReason,
    RevocationResult,
)
from keybearer._wire.limits import MAX_REVOKED_KEYS
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.domain.model import ApiKey
from keybearer_service.domain.verdict import Match
from keybearer_service.storage import Foreseen, KeyQuery, Store
from keybearer_service.usecases.access import reach_of
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.key_writes import foreseen_key, reachable_key, write_key
from keybearer_service.usecases.keys import KeyManager
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.validation.validator import Validator

REVOKED_WITHOUT_SIGN_IN = 10
"""Keys that a person may revoke at a time however long ago they signed in."""
MAX_SEARCHED_PAGES = 20
"""Pages of a list that one RevokeApiKeys looks through, each of at most LOOKED_AT rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRevocation:
    """What became of one key of several that were to be revoked."""

    id: str
    result: RevocationResult
    key: ApiKey | None
    """As it is now; None when there is no such key."""


class KeyRevoker:
    """Revokes keys of accounts."""

    def __init__(
        self, store: Store, mutations: Mutations, validator: Validator, keys: KeyManager
    ) -> None:
        self._store = store
        self._mutations = mutations
        self._validator = validator
        self._keys = keys

    def revoke(self, call: CallContext, key_id: str, reason: RevocationReason, note: str) -> ApiKey:
        """Revoke a key for good; a revoked one keeps the facts of its first revocation.

        Raises:
            ResourceNotFound: There is no such key.
            FieldInvalid: The reason is one that only the service itself gives.
        """
        _assert_reason_of_callers(reason)
        with self._mutations.begin(call, foreseen_key(call, key_id)) as mutation:
            key = reachable_key(mutation.tx, mutation.scope, key_id)
            if key.revoke_time is not None:
                return key
            return self._revoke(mutation, call, key, reason, note)

    def revoke_many(
        self,
        call: CallContext,
        key_ids: Sequence[str],
        reason: RevocationReason,
        note: str,
        *,
        validate_only: bool,
    ) -> Sequence[KeyRevocation]:
        """Revoke several keys, in one transaction.

        A key that is named twice counts once, and an id of nothing does not stop the others.

        Raises:
            FieldInvalid: No key or too many are named, or the reason is one that only the service
                itself gives.
            SignInAgain: It is more than a few, and the caller has to prove again who they are.
        """
        _assert_reason_of_callers(reason)
        wanted = list(dict.fromkeys(key_ids))
        if not 1 <= len(wanted) <= MAX_REVOKED_KEYS:
            raise FieldInvalid("ids", f"1 to {MAX_REVOKED_KEYS}")
        if validate_only:
            with self._store.read() as reader:
                scope = reach_of(call)
                return [_planned(key_id, reader.api_key(scope, key_id)) for key_id in wanted]
        with self._mutations.begin(call, _foreseen_keys(call, wanted)) as mutation:
            if len(wanted) > REVOKED_WITHOUT_SIGN_IN:
                mutation.assert_signed_in_lately()
            planned = [
                _planned(key_id, mutation.tx.api_key(mutation.scope, key_id)) for key_id in wanted
            ]
            return self._revoke_planned(mutation, call, planned, reason, note)

    def revoke_matching(
        self,
        call: CallContext,
        query: KeyQuery,
        page_token: str,
        reason: RevocationReason,
        note: str,
        *,
        validate_only: bool,
    ) -> tuple[Sequence[KeyRevocation], str]:
        """Revoke keys that match a query, at most `MAX_REVOKED_KEYS`, in one transaction.

        Returns:
            What became of them, and the token with which a further call goes on; empty at the end.

        Raises:
            FieldInvalid: The page token is not valid, or the reason is one that only the service
                itself gives.
            ResourceNotFound: An operator named an account that does not exist.
            SignInAgain: It is more than a few, and the caller has to prove again who they are.
            CallAbandoned: The caller no longer waits.
        """
        _assert_reason_of_callers(reason)
        found: list[ApiKey] = []
        for _ in range(MAX_SEARCHED_PAGES):
            page = self._keys.list(call, query, MAX_REVOKED_KEYS - len(found), page_token)
            found += page.items
            page_token = page.next_page_token
            if not page_token or len(found) == MAX_REVOKED_KEYS:
                break
        if validate_only or not found:
            return [_planned(key.id, key) for key in found], page_token
        wanted = [key.id for key in found]
        with self._mutations.begin(call, _foreseen_keys(call, wanted)) as mutation:
            if len(found) > REVOKED_WITHOUT_SIGN_IN:
                mutation.assert_signed_in_lately()
            now = [mutation.tx.api_key(mutation.scope, key_id) for key_id in wanted]
            planned = [
                _planned(key.id, key) for key in now if key and _matches(key, query, mutation.now)
            ]
            return self._revoke_planned(mutation, call, planned, reason, note), page_token

    def _revoke_planned(
        self,
        mutation: Mutation,
        call: CallContext,
        planned: Sequence[KeyRevocation],
        reason: RevocationReason,
        note: str,
    ) -> Sequence[KeyRevocation]:
        return [
            replace(one, key=self._revoke(mutation, call, one.key, reason, note))
            if one.key is not None and one.result is RevocationResult.REVOKED
            else one
            for one in planned
        ]

    def _revoke(
        self,
        mutation: Mutation,
        call: CallContext,
        key: ApiKey,
        reason: RevocationReason,
        note: str,
    ) -> ApiKey:
        revoked = replace(
            key,
            revoke_time=mutation.now,
            revoked_by=call.identity.owner_id,
            revocation_reason=reason,
            revocation_note=note,
        )
        return write_key(mutation, AuditAction.API_KEY_REVOKED, key, revoked)

    def revoke_token(self, call: CallContext, token: str) -> bool:
        """Revoke the secret that a token is, for its holder.

        The current secret revokes the key, the old one of a rotation ends the overlap. A token that
        opens nothing changes nothing, and is no error.

        Returns:
            Whether the token opens a key, or did before the key was revoked.
        """
        match = self._validator.match(token)
        if match is None:
            return False
        if match.record.revoke_time is None:
            self._revoke_match(call, match)
        return True

    def _revoke_match(self, call: CallContext, match: Match) -> None:
        with self._mutations.begin_for_holder(call, match) as mutation:
            key = mutation.tx.api_key(mutation.scope, match.record.key_id)
            if key is None or key.revoke_time is not None:
                return
            if match.secret_version == key.secret_version:
                revoked = replace(
                    key,
                    revoke_time=mutation.now,
                    revocation_reason=RevocationReason.REPORTED_BY_HOLDER,
                )
                write_key(mutation, AuditAction.API_KEY_REVOKED, key, revoked)
                return
            # Rotated since the match, or the old secret from the start: that secret ends.
            _, old = mutation.tx.secrets_of(key.id)
            if old is not None and old.version == match.secret_version:
                write_key(
                    mutation,
                    AuditAction.API_KEY_OVERLAP_ENDED,
                    key,
                    replace(key, overlap_end_time=None),
                )


def _foreseen_keys(call: CallContext, key_ids: Sequence[str]) -> Foreseen:
    for key_id in key_ids:
        yield from foreseen_key(call, key_id)


def _assert_reason_of_callers(reason: RevocationReason) -> None:
    if reason not in REASONS_OF_CALLERS:
        raise FieldInvalid(
            "reason", "one of LOST, COMPROMISED, SUPERSEDED, NO_LONGER_USED is required"
        )


def _planned(key_id: str, key: ApiKey | None) -> KeyRevocation:
    if key is None:
        return KeyRevocation(id=key_id, result=RevocationResult.NOT_FOUND, key=None)
    is_over = key.revoke_time is not None
    result = RevocationResult.ALREADY_REVOKED if is_over else RevocationResult.REVOKED
    return KeyRevocation(id=key_id, result=result, key=key)


def _matches(key: ApiKey, query: KeyQuery, now: Micros) -> bool:
    """Return whether a key that a query has found still matches it: it may be used by now."""
    if query.states and key.state_at(now) not in query.states:
        return False
    if query.owner_id and key.owner_id != query.owner_id:
        return False
    if query.name_contains.encode().lower() not in key.name.encode().lower():
        return False
    if query.expires_before is not None and (
        key.expire_time is None or key.expire_time >= query.expires_before
    ):
        return False
    used = key.create_time if key.last_used_time is None else key.last_used_time
    return query.unused_since is None or used < query.unused_since
