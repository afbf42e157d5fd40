"""How much an account may hold, so that one account cannot fill the store of all."""

from dataclasses import dataclass

from keybearer_service.domain.errors import QuotaExceeded
from keybearer_service.storage import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """The most of something that each account may hold; 0 for no limit."""

    keys: int = 0
    """Keys that are not revoked; expired ones count."""
    users: int = 0
    """Users that are not deleted."""

    def assert_room_for_key(self, tx: Reader, account_id: str) -> None:
        """Raise unless the account may have one more key.

        Raises:
            QuotaExceeded: It may not.
        """
        if self.keys and tx.unrevoked_key_count(account_id) >= self.keys:
            raise QuotaExceeded(
                "max_keys_per_account", self.keys, "revoke keys that are expired or not needed"
            )

    def assert_room_for_user(self, tx: Reader, account_id: str) -> None:
        """Raise unless the account may have one more user.

        Raises:
            QuotaExceeded: It may not.
        """
        if self.users and tx.live_user_count(account_id) >= self.users:
            raise QuotaExceeded(
                "max_users_per_account", self.users, "delete users that are not needed"
            )


NO_QUOTAS = Quotas()
