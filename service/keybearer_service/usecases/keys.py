"""The use cases of keys: create, read, list, update, disable, enable, rotate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from keybearer._wire.enums import (
    ApiKeyState,
    AuditAction,
)
from keybearer._wire.limits import MAX_SORTED_BY_LAST_USE
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Clock, Micros, after
from keybearer_service.domain.errors import (
    EtagMismatch,
    FieldInvalid,
    KeyExpired,
    KeyRevoked,
    RequestIdReused,
    ResourceNotFound,
)
from keybearer_service.domain.model import KEY_SETTINGS, ApiKey
from keybearer_service.storage import (
    NEVER,
    UNUSED,
    Foreseen,
    KeyQuery,
    Reader,
    SortKey,
    Store,
)
from keybearer_service.usecases import idempotency
from keybearer_service.usecases.access import assert_account_exists, reach_of
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.issuing import Expiration, IssuedKey, KeyIssuer, NewKey
from keybearer_service.usecases.key_writes import (
    foreseen_key,
    reachable_key,
    record_key,
    write_key,
)
from keybearer_service.usecases.mutations import Mutation, Mutations
from keybearer_service.usecases.pagination import Listed, PageTokens, reading_for
from keybearer_service.usecases.quotas import Quotas


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUpdate:
    """Which fields of a key change, and to what. `paths` says which of the fields count."""

    paths: frozenset[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The new values of the plain fields that are among the paths."""
    scopes: tuple[str, ...] = ()
    role: Role = Role.UNSPECIFIED
    expiration: Expiration | None = None
    overlap_end_time: Micros | None = None
    etag: str = ""


UPDATABLE = frozenset({*KEY_SETTINGS, "scopes", "role", "expiration", "overlap_end_time"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBefore:
    """What a request of the caller with a certain request_id did before."""

    key: ApiKey
    attempt: int
    """The greatest attempt that was carried out."""
    is_reissuable: bool
    """Whether a greater one would get a fresh secret."""


class KeyManager:
    """The keys of accounts."""

    def __init__(
        self,
        store: Store,
        mutations: Mutations,
        issuer: KeyIssuer,
        page_tokens: PageTokens,
        quotas: Quotas,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._store = store
        self._mutations = mutations
        self._issuer = issuer
        self._page_tokens = page_tokens
        self._quotas = quotas

    # --- reading ----------------------------------------------------------------------------------

    def get(self, call: CallContext, key_id: str) -> ApiKey:
        """Return one key.

        Raises:
            ResourceNotFound: There is no such key in an account that the caller may touch.
        """
        with self._store.read() as reader:
            return reachable_key(reader, reach_of(call), key_id)

    def list(
        self, call: CallContext, query: KeyQuery, page_size: int, page_token: str
    ) -> Listed[ApiKey]:
        """Return a page of keys.

        Raises:
            FieldInvalid: The page size or the page token is not valid, or the account has too many
                keys for this order.
            ResourceNotFound: An operator named an account that does not exist.
            CallAbandoned: The caller no longer waits.
        """
        bound_to = ("keys", replace(query, now=Micros(0)))
        page = self._page_tokens.page(page_size, page_token, bound_to)
        with reading_for(call, self._store) as reader:
            assert_account_exists(reader, query.scope)
            if query.order_by == "last_used_time":
                _assert_few_keys(reader, query.scope)
            found = reader.list_api_keys(query, page)
        return self._page_tokens.listed(found, page, bound_to, _SORT_KEYS[query.order_by])

    def made_before(self, call: CallContext, request_id: str) -> MadeBefore | None:
        """Return what an earlier request of the caller did; None when there was none."""
        with self._store.read() as reader:
            record = reader.request_record(call.identity.owner_id, request_id)
            if record is None:
                return None
            key = reader.api_key(reach_of(call), record.key_id)
            if key is None:
                return None
            is_reissuable = idempotency.may_reissue(record, key, self._clock.now())
            return MadeBefore(key=key, attempt=record.attempt, is_reissuable=is_reissuable)

    # --- issuing ----------------------------------------------------------------------------------

    def create(
        self, call: CallContext, scope: AccountScope, new: NewKey, request: IdempotencyKey | None
    ) -> IssuedKey:
        """Create a key, or reissue the token of the one that an earlier attempt created.

        Raises:
            FieldInvalid: A key in another account than the caller's has no owner.
            ResourceNotFound: There is no such account, or the owner is no live user of it.
            AuthorityExceeded: The role is above the caller's.
            QuotaExceeded: The account has as many keys as it may have.
            SignInAgain: The caller has to prove again who they are.
            RequestIdReused, ReplayImpossible: See `idempotency.find`.
        """
        caller = call.identity
        if not new.owner_id and not scope.covers(caller.account_id):
            raise FieldInvalid("owner_id", "required for a key in another account than one's own")
        owner_id = new.owner_id or caller.owner_id
        foreseen = (
            *idempotency.foreseen(caller.owner_id, request),
            lambda reader: assert_account_exists(reader, scope),
            lambda reader: reader.user(scope, owner_id),
            lambda reader: self._quotas.assert_room_for_key(reader, scope.only),
            lambda reader: reader.peppers(),
        )
        with self._mutations.begin(call, foreseen) as mutation:
            mutation.assert_signed_in_lately()
            replay = idempotency.find(mutation, caller.owner_id, request)
            if replay is not None:
                return self._reissue(mutation, call, replay, request)
            mutation.assert_may_grant(new.role)
            assert_account_exists(mutation.tx, scope)
            owner = mutation.tx.user(scope, owner_id)
            if owner is None or owner.delete_time is not None:
                raise ResourceNotFound("user", owner_id)
            self._quotas.assert_room_for_key(mutation.tx, owner.account_id)
            issued = self._issuer.issue(mutation, new, owner=owner, created_by=caller.owner_id)
            idempotency.remember(mutation, caller.owner_id, request, issued.key, None)
            record_key(mutation, AuditAction.API_KEY_CREATED, None, issued.key, request)
            return issued

    def rotate(
        self, call: CallContext, key_id: str, overlap: int, request: IdempotencyKey | None
    ) -> IssuedKey:
        """Rotate the secret of a key; the old one stays valid for `overlap` microseconds.

        Raises:
            ResourceNotFound: There is no such key.
            KeyRevoked, KeyExpired: The key can no longer be used.
            AuthorityExceeded: The role of the key is above the caller's.
            SignInAgain: The caller has to prove again who they are.
            RequestIdReused, ReplayImpossible: See `idempotency.find`.
        """
        with self._mutations.begin(call, _foreseen_rotation(call, key_id, request)) as mutation:
            mutation.assert_signed_in_lately()
            replay = idempotency.find(mutation, call.identity.owner_id, request)
            if replay is not None:
                return self._reissue(mutation, call, replay, request)
            key = reachable_key(mutation.tx, mutation.scope, key_id)
            _assert_alive(key, mutation.now)
            mutation.assert_may_grant(key.role)
            return self._rotate(mutation, call, key, overlap, request)

    def rotate_self(
        self, call: CallContext, overlap: int, request: IdempotencyKey | None
    ) -> IssuedKey:
        """Rotate the secret of the calling key; its role, scopes and expiry stay.

        Raises:
            RequestIdReused, ReplayImpossible: See `idempotency.find`.
        """
        foreseen = _foreseen_rotation(call, call.identity.key_id, request)
        with self._mutations.begin(call, foreseen) as mutation:
            replay = idempotency.find(mutation, call.identity.owner_id, request)
            if replay is not None:
                if replay.key.id != call.identity.key_id:
                    # Another key of the user sent this request, and it was about that key.
                    raise RequestIdReused(replay.key.id)
                return self._reissue(mutation, call, replay, request)
            key = reachable_key(mutation.tx, mutation.scope, call.identity.key_id)
            return self._rotate(mutation, call, key, overlap, request)

    def _rotate(
        self,
        mutation: Mutation,
        call: CallContext,
        key: ApiKey,
        overlap: int,
        request: IdempotencyKey | None,
    ) -> IssuedKey:
        end = None
        if overlap:
            end = after(mutation.now, overlap)
            end = end if key.expire_time is None else min(end, key.expire_time)
        issued = self._issuer.renew(mutation, key, overlap_end_time=end)
        idempotency.remember(mutation, call.identity.owner_id, request, issued.key, None)
        record_key(mutation, AuditAction.API_KEY_ROTATED, key, issued.key, request)
        return issued

    def _reissue(
        self,
        mutation: Mutation,
        call: CallContext,
        replay: idempotency.Replay,
        request: IdempotencyKey | None,
    ) -> IssuedKey:
        # Who may no longer grant the role of the key may not get a fresh secret of it either.
        if replay.key.id != call.identity.key_id:
            mutation.assert_may_grant(replay.key.role)
        issued = self._issuer.reissue(mutation, replay.key)
        idempotency.remember(mutation, call.identity.owner_id, request, issued.key, replay)
        record_key(mutation, AuditAction.API_KEY_REMINTED, replay.key, issued.key, request)
        return issued

    # --- changing ---------------------------------------------------------------------------------

    def update(self, call: CallContext, key_id: str, update: KeyUpdate) -> ApiKey:
        """Update the fields that the paths name.

        Raises:
            ResourceNotFound: There is no such key.
            EtagMismatch: The key has changed since the etag was read.
            KeyRevoked: The key is revoked.
            KeyExpired: The expiry of an expired key is among the fields.
            AuthorityExceeded: The role that the key would have is above the caller's.
            SignInAgain: The key would be allowed more, and the caller has to prove again who they
                are.
            FieldInvalid: A value does not fit the key.
        """
        with self._mutations.begin(call, foreseen_key(call, key_id)) as mutation:
            key = reachable_key(mutation.tx, mutation.scope, key_id)
            if update.etag and update.etag != key.etag:
                raise EtagMismatch
            state = key.state_at(mutation.now)
            if state is ApiKeyState.REVOKED:
                raise KeyRevoked(key_id)
            if state is ApiKeyState.EXPIRED and "expiration" in update.paths:
                raise KeyExpired(key_id)
            updated = _updated(key, update, mutation.now)
            mutation.assert_may_grant(updated.role)
            if updated.role > key.role or set(updated.scopes) - set(key.scopes):
                mutation.assert_signed_in_lately()
            return write_key(mutation, AuditAction.API_KEY_UPDATED, key, updated)

    def disable(self, call: CallContext, key_id: str) -> ApiKey:
        """Disable a key; a disabled one stays as it is.

        Raises:
            ResourceNotFound: There is no such key.
            KeyRevoked: The key is revoked.
        """
        return self._switch(
            call,
            key_id,
            AuditAction.API_KEY_DISABLED,
            lambda key, now: (
                key if key.disable_time is not None else replace(key, disable_time=now)
            ),
        )

    def enable(self, call: CallContext, key_id: str) -> ApiKey:
        """Enable a key; an enabled one stays as it is.

        Raises:
            ResourceNotFound: There is no such key.
            KeyRevoked: The key is revoked.
            SignInAgain: The caller has to prove again who they are.
        """
        return self._switch(
            call,
            key_id,
            AuditAction.API_KEY_ENABLED,
            lambda key, _: replace(key, disable_time=None),
        )

    def _switch(
        self,
        call: CallContext,
        key_id: str,
        action: AuditAction,
        switched: Callable[[ApiKey, Micros], ApiKey],
    ) -> ApiKey:
        with self._mutations.begin(call, foreseen_key(call, key_id)) as mutation:
            key = reachable_key(mutation.tx, mutation.scope, key_id)
            if key.revoke_time is not None:
                raise KeyRevoked(key_id)
            if action is AuditAction.API_KEY_ENABLED:
                mutation.assert_signed_in_lately()
            return write_key(mutation, action, key, switched(key, mutation.now))

    def end_overlap(self, call: CallContext, key_id: str) -> ApiKey:
        """End the old secret of a rotation now; a key without one stays as it is.

        Raises:
            ResourceNotFound: There is no such key.
            KeyRevoked: The key is revoked.
        """
        return self._switch(
            call,
            key_id,
            AuditAction.API_KEY_OVERLAP_ENDED,
            lambda key, now: replace(key, overlap_end_time=None) if key.overlaps_at(now) else key,
        )


def _foreseen_rotation(call: CallContext, key_id: str, request: IdempotencyKey | None) -> Foreseen:
    yield from idempotency.foreseen(call.identity.owner_id, request)
    yield from foreseen_key(call, key_id)
    yield lambda reader: reader.secrets_of(key_id)
    yield lambda reader: reader.peppers()


def _assert_few_keys(reader: Reader, scope: AccountScope) -> None:
    if reader.has_more_keys_than(scope, MAX_SORTED_BY_LAST_USE):
        raise FieldInvalid(
            "order_by",
            f"last_used_time is for accounts of at most {MAX_SORTED_BY_LAST_USE:,} keys; to find "
            "keys that are not used, filter by unused_since",
        )


def _assert_alive(key: ApiKey, now: Micros) -> None:
    state = key.state_at(now)
    if state is ApiKeyState.REVOKED:
        raise KeyRevoked(key.id)
    if state is ApiKeyState.EXPIRED:
        raise KeyExpired(key.id)


def _updated(key: ApiKey, update: KeyUpdate, now: Micros) -> ApiKey:
    paths = update.paths
    role = validators.role("api_key.role", update.role) if "role" in paths else key.role
    scopes = update.scopes if "scopes" in paths else key.scopes
    updated = replace(
        key,
        **update.settings,
        role=role,
        scopes=validators.scopes("api_key.scopes", scopes, role),
    )
    if update.expiration is not None:
        expire_time = update.expiration.resolve(now)
        updated = replace(updated, expire_time=expire_time)
        if expire_time is not None and updated.overlaps_at(expire_time):
            # An old secret is never valid for longer than its key.
            updated = replace(updated, overlap_end_time=expire_time)
    if "overlap_end_time" in paths:
        updated = replace(updated, overlap_end_time=_earlier_overlap_end(key, update, now))
    return updated


def _earlier_overlap_end(key: ApiKey, update: KeyUpdate, now: Micros) -> Micros:
    field = "api_key.overlap_end_time"
    if not key.overlaps_at(now) or key.overlap_end_time is None:
        raise FieldInvalid(field, "the key has no old secret to end")
    if update.overlap_end_time is None:
        raise FieldInvalid(field, "required when the mask names it")
    end = validators.future(field, update.overlap_end_time, now)
    if end > key.overlap_end_time:
        raise FieldInvalid(field, "an overlap can be shortened, not lengthened")
    return end


_SORT_KEYS: dict[str, Callable[[ApiKey], SortKey]] = {
    "create_time": lambda key: (key.create_time, key.id),
    "expire_time": lambda key: (NEVER if key.expire_time is None else key.expire_time, key.id),
    "name": lambda key: (key.name, key.id),
    "last_used_time": lambda key: (
        UNUSED if key.last_used_time is None else key.last_used_time,
        key.id,
    ),
}
