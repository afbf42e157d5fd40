"""New secrets, for every way in which a key gets one."""

from dataclasses import dataclass, replace

from keybearer.access import Role
from keybearer_service.domain import token_format, validators
from keybearer_service.domain.clock import Micros, after
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import FieldInvalid, ReplayImpossible
from keybearer_service.domain.model import ApiKey, KeySettings, StoredSecret, User, settings_of
from keybearer_service.installation.keyring import Keyring
from keybearer_service.usecases.mutations import Mutation


@dataclass(frozen=True, slots=True)
class Expiration:
    """When a key expires: at a moment, after a span from now (both in microseconds), or never."""

    at: Micros | None = None
    ttl: int | None = None

    def resolve(self, now: Micros) -> Micros | None:
        """Return the moment of expiry; None means never.

        Raises:
            FieldInvalid: The moment is not in the future, or does not fit into a Timestamp.
        """
        if self.ttl is not None:
            if self.ttl <= 0:
                raise FieldInvalid("ttl", "must be more than 0")
            return validators.future("ttl", after(now, self.ttl), now)
        return None if self.at is None else validators.future("expire_time", self.at, now)


NEVER_EXPIRES = Expiration()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey(KeySettings):
    """What a new key is to be."""

    role: Role
    expiration: Expiration
    owner_id: str = ""
    """Empty means the caller."""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key with its token, which is shown once."""

    key: ApiKey
    token: str
    replayed: bool = False

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"IssuedKey(key={self.key.id!r}, replayed={self.replayed})"


class KeyIssuer:
    """Draws secrets and writes their rows, for every way in which a key gets one."""

    def __init__(self, keyring: Keyring, entropy: Entropy, prefix: str) -> None:
        self._keyring = keyring
        self._entropy = entropy
        self._prefix = prefix

    def new_id(self) -> str:
        """Draw an id."""
        return self._entropy.base62(token_format.ID_LENGTH)

    def issue(
        self,
        mutation: Mutation,
        new: NewKey,
        *,
        owner: User,
        created_by: str,
    ) -> IssuedKey:
        """Insert a key of `owner` with its first secret, and return it with its token."""
        now = mutation.now
        key = ApiKey(
            id=self.new_id(),
            account_id=owner.account_id,
            owner_id=owner.id,
            role=new.role,
            scopes=new.scopes,
            create_time=now,
            created_by=created_by,
            update_time=now,
            expire_time=new.expiration.resolve(now),
            secret_create_time=now,
            **settings_of(new),
        )
        token, secret = self._secret(mutation, key)
        mutation.tx.insert_api_key(key, secret)
        return IssuedKey(self._read_back(mutation, key.id), token)

    def renew(
        self, mutation: Mutation, key: ApiKey, *, overlap_end_time: Micros | None
    ) -> IssuedKey:
        """Issue the next secret of a key; the current one stays valid until `overlap_end_time`."""
        current, _ = mutation.tx.secrets_of(key.id)
        renewed, token, secret = self._next(
            mutation,
            replace(key, overlap_end_time=overlap_end_time, old_secret_last_used_time=None),
        )
        old = None if overlap_end_time is None else current
        mutation.tx.replace_secret(renewed, secret, old)
        return IssuedKey(self._read_back(mutation, key.id), token)

    def reissue(self, mutation: Mutation, key: ApiKey) -> IssuedKey:
        """Replace a secret that was lost with its response; the old one of a rotation stays.

        Raises:
            ReplayImpossible: The secret was used.
        """
        _, old = mutation.tx.secrets_of(key.id)
        keep = old if key.overlaps_at(mutation.now) else None
        renewed, token, secret = self._next(
            mutation, replace(key, overlap_end_time=key.overlap_end_time if keep else None)
        )
        if not mutation.tx.replace_unused_secret(renewed, secret, keep):
            raise ReplayImpossible(key.id)
        return IssuedKey(self._read_back(mutation, key.id), token, replayed=True)

    def _next(self, mutation: Mutation, key: ApiKey) -> tuple[ApiKey, str, StoredSecret]:
        """Draw the next secret of a key; return the key with it, the token and what is stored."""
        renewed = replace(
            key,
            secret_version=key.secret_version + 1,
            secret_create_time=mutation.now,
            secret_used=False,
            update_time=mutation.now,
            row_version=key.row_version + 1,
        )
        return renewed, *self._secret(mutation, renewed)

    def _secret(self, mutation: Mutation, key: ApiKey) -> tuple[str, StoredSecret]:
        secret = token_format.draw_secret(self._entropy)
        # The newest pepper that is not retired; `pepper add` makes a newer one at any time. One
        # that cannot be read, because its file belongs to somebody else, must not stop everybody.
        pepper_id = self._keyring.first_readable(
            one.id
            for one in mutation.tx.peppers()
            if one.retire_time is None and not one.is_announced
        )
        stored = StoredSecret(
            token_format.digest(self._keyring.pepper(pepper_id), key.account_id, key.id, secret),
            pepper_id,
            key.secret_version,
        )
        return token_format.write(self._prefix, key.id, secret), stored

    @staticmethod
    def _read_back(mutation: Mutation, key_id: str) -> ApiKey:
        key = mutation.tx.api_key(mutation.scope, key_id)
        if key is None:
            raise LookupError(key_id)
        return key
