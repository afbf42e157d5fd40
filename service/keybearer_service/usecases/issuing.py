"""Makes secrets: for every way in which a key gets one."""

from dataclasses import dataclass, replace

from keybearer.access import Role
from keybearer_service.domain import token_format, validators
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.errors import (
    FieldInvalid,
)
from keybearer_service.domain.model import ApiKey, StoredSecret, User
from keybearer_service.installation.keyring import Keyring
from keybearer_service.usecases.mutations import Mutation


@dataclass(frozen=True, slots=True)
class Expiration:
    """How long a key is to live: a moment, a span from now, or neither for ever."""

    at: int | None = None
    ttl: int | None = None

    def resolve(self, now: int) -> int | None:
        """Answer the moment of expiry; None means never.

        Raises:
            FieldInvalid: Not in the future, or beyond what a Timestamp holds.
        """
        if self.ttl is not None:
            if self.ttl <= 0:
                raise FieldInvalid("ttl", "must be more than 0")
            return validators.future("ttl", now + self.ttl, now)
        return None if self.at is None else validators.future("expire_time", self.at, now)


NEVER_EXPIRES = Expiration()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a key is to be."""

    name: str
    role: Role
    expiration: Expiration
    owner_id: str = ""
    """Empty means the caller."""
    description: str = ""
    scopes: tuple[str, ...] = ()
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key with the token that is shown once."""

    key: ApiKey
    token: str
    replayed: bool = False

    def __repr__(self) -> str:
        """Leave the token out."""
        return f"IssuedKey(key={self.key.id!r}, replayed={self.replayed})"


class KeyIssuer:
    """Makes secrets and puts them into rows: for every way in which a key gets one."""

    def __init__(self, keyring: Keyring, entropy: Entropy, prefix: str) -> None:
        """Take the peppers, the source of secrets, and the prefix of new tokens."""
        self._keyring = keyring
        self._entropy = entropy
        self._prefix = prefix

    def new_id(self) -> str:
        """Draw the id of a thing."""
        return self._entropy.base62(token_format.ID_LENGTH)

    def issue(
        self,
        mutation: Mutation,
        new: NewKey,
        *,
        owner: User,
        created_by: str,
    ) -> IssuedKey:
        """Insert a key of `owner` with its first secret."""
        now = mutation.now
        key = ApiKey(
            id=self.new_id(),
            account_id=owner.account_id,
            owner_id=owner.id,
            name=new.name,
            description=new.description,
            role=new.role,
            scopes=new.scopes,
            labels=new.labels,
            create_time=now,
            created_by=created_by,
            update_time=now,
            expire_time=new.expiration.resolve(now),
            secret_create_time=now,
        )
        token, secret = self._secret(mutation, key)
        mutation.tx.insert_api_key(key, secret)
        return IssuedKey(self._read_back(mutation, key.id), token)

    def renew(self, mutation: Mutation, key: ApiKey, *, overlap_end_time: int | None) -> IssuedKey:
        """Give a key its next secret; the current one lives on until `overlap_end_time`."""
        current, _ = mutation.tx.secrets_of(key.id)
        return self._put_next(
            mutation,
            replace(key, overlap_end_time=overlap_end_time, old_secret_last_used_time=None),
            None if overlap_end_time is None else current,
        )

    def reissue(self, mutation: Mutation, key: ApiKey) -> IssuedKey:
        """Put a fresh secret in the place of one whose answer was lost; an old one stays."""
        _, old = mutation.tx.secrets_of(key.id)
        keep = old if key.overlaps_at(mutation.now) else None
        issued = self._put_next(
            mutation, replace(key, overlap_end_time=key.overlap_end_time if keep else None), keep
        )
        return replace(issued, replayed=True)

    def _put_next(self, mutation: Mutation, key: ApiKey, old: StoredSecret | None) -> IssuedKey:
        renewed = replace(
            key,
            secret_version=key.secret_version + 1,
            secret_create_time=mutation.now,
            secret_used=False,
            update_time=mutation.now,
            row_version=key.row_version + 1,
        )
        token, secret = self._secret(mutation, renewed)
        mutation.tx.replace_secret(renewed, secret, old)
        return IssuedKey(self._read_back(mutation, key.id), token)

    def _secret(self, mutation: Mutation, key: ApiKey) -> tuple[str, StoredSecret]:
        secret = token_format.draw_secret(self._entropy)
        # The newest pepper that is not retired; `pepper add` makes a newer one at any time. One
        # that cannot be read, because its file belongs to somebody else, must not stop everybody.
        pepper_id = self._keyring.first_readable(
            one.id for one in mutation.tx.peppers() if one.retire_time is None
        )
        stored = StoredSecret(
            token_format.digest(self._keyring.pepper(pepper_id), key.account_id, key.id, secret),
            pepper_id,
            key.secret_version,
        )
        return token_format.write(self._prefix, key.id, secret), stored

    @staticmethod
    def _read_back(mutation: Mutation, key_id: str) -> ApiKey:
        key = mutation.tx.api_key(key_id)
        if key is None:
            raise LookupError(key_id)
        return key
