"""The accounts whose things may be touched, as a value that queries ask for."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AccountScope:
    """One account of the installation, or all of them.

    Every query for things of an account takes a scope instead of an account id, so that a query
    without a decision about authority does not pass the type checker. `usecases.access` makes the
    scopes of callers, `of_installation` those of code that serves no caller; a test lists who
    makes one.
    """

    account_id: str | None
    """None means every account."""
    reason: str = field(default="", compare=False)
    """Why code that serves no caller may touch every account."""

    @classmethod
    def of_installation(cls, reason: str) -> "AccountScope":
        """Return a scope over every account, for code that serves no caller.

        Args:
            reason: Why it may touch them.
        """
        return cls(None, reason)

    @property
    def only(self) -> str:
        """The id of the one account.

        Raises:
            LookupError: The scope covers every account.
        """
        if self.account_id is None:
            raise LookupError("the scope covers every account, and one is needed")
        return self.account_id

    def covers(self, account_id: str) -> bool:
        """Return whether things of an account may be touched."""
        return self.account_id is None or self.account_id == account_id

    def narrowed_to(self, account_id: str) -> "AccountScope":
        """Return the scope of one of the accounts that are covered.

        Raises:
            LookupError: The account is not covered.
        """
        if not self.covers(account_id):
            raise LookupError(f"the scope does not cover the account {account_id}")
        return AccountScope(account_id)
