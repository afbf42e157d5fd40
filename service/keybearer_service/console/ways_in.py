"""Whether anybody can still administer an account, once something was taken away."""

from collections.abc import Collection

from keybearer.access import Role
from keybearer_service.domain.model import ApiKey, User
from keybearer_service.usecases.identities import IdentityManager


class WaysIn:
    """Knows the ways in to the administration of accounts, with the provider that is set."""

    def __init__(self, identities: IdentityManager, issuer: str) -> None:
        """Create it.

        Args:
            identities: Knows who has a key or a sign-in.
            issuer: The provider to sign in at; empty for none.
        """
        self._identities = identities
        self._issuer = issuer

    @property
    def has_provider(self) -> bool:
        """Whether people sign in at a provider."""
        return bool(self._issuer)

    def has_sign_in(self, account_id: str) -> bool:
        """Return whether an administrator of an account can sign in at the provider."""
        return bool(self._issuer) and self._identities.has_administrator(account_id, self._issuer)

    def none_without_keys(self, keys: Collection[ApiKey]) -> bool:
        """Return whether nobody could administer an account of some keys without them."""
        ids = [key.id for key in keys]
        return any(
            self._identities.leaves_nobody(account_id, issuer=self._issuer, without_keys=ids)
            for account_id in {key.account_id for key in keys if key.effective_role is Role.ADMIN}
        )

    def none_without_user(self, user: User) -> bool:
        """Return whether nobody could administer the account if a user were no administrator."""
        return user.role is Role.ADMIN and self._identities.leaves_nobody(
            user.account_id, issuer=self._issuer, without_user=user.id
        )

    def none_without_sign_in_of(self, user: User) -> bool:
        """Return whether nobody could administer the account without the sign-in of a user."""
        return self._identities.leaves_nobody(
            user.account_id, issuer=self._issuer, without_identity_of=user.id
        )
