"""Who calls: the one way from a credential to a caller that a rule admits."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from keybearer.access import AccessRule
from keybearer.models import Presented
from keybearer_service.domain.errors import StoreUnavailable
from keybearer_service.domain.verdict import Caller
from keybearer_service.validation.validator import MAX_TRIES, judge_caller


class Authenticator(Protocol):
    """Knows callers by their tokens."""

    def authenticate(self, presented: Presented) -> Caller:
        """Return the caller; see `Validator.authenticate`."""
        ...


class SplitAuthenticator(Authenticator, Protocol):
    """Does in two steps what `authenticate` does in one."""

    def identify(self, presented: Presented) -> Caller:
        """Return the caller, and count nothing; see `Validator.identify`."""
        ...

    def count(self, caller: Caller) -> bool:
        """Count the use of a caller's key; see `Validator.count`."""
        ...


class Admissible(Protocol):
    """A call whose caller is to be admitted."""

    rule: AccessRule
    caller: Caller | None


class Callers:
    """Authenticates callers and judges them. Every entry point admits its callers here."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticate: Callable[[Presented], Caller] = authenticator.authenticate

    def admit(self, call: Admissible, presented: Presented) -> Caller:
        """Return the caller behind a credential, when the rule of the call admits it.

        Sets `call.caller` as soon as it is known, so that a refusal can be audited with its caller.

        Raises:
            CredentialsExpired, CredentialsInvalid: The token opens nothing.
            OperatorOnly, RoleInsufficient, ScopeInsufficient: The rule does not admit the caller.
            StoreError, StoreUnavailable: The store could not be asked; that refuses nobody.
        """
        caller = call.caller = self._authenticate(presented)
        judge_caller(caller, call.rule, presented)
        return caller


class SharedCallers(Callers):
    """Callers whose tokens are looked up on one thread for all of them.

    Their uses are counted on the thread of the call, since that may wait for the store.
    """

    def __init__(
        self, authenticator: SplitAuthenticator, run: Callable[[Callable[[], Caller]], Caller]
    ) -> None:
        """Create the callers.

        Args:
            authenticator: Knows callers by their tokens.
            run: Runs its argument on that thread, and returns or raises what it does.
        """
        super().__init__(authenticator)
        self._identify = authenticator.identify
        self._count = authenticator.count
        self._run = run
        self._authenticate = self._authenticate_there

    def _authenticate_there(self, presented: Presented) -> Caller:
        for _ in range(MAX_TRIES):
            caller = self._run(partial(self._identify, presented))
            if self._count(caller):
                return caller
        raise StoreUnavailable
