"""Who calls: the one way from a credential to a caller that a rule admits."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from keybearer.access import AccessRule
from keybearer.models import Presented
from keybearer_service.domain.verdict import Caller
from keybearer_service.validation.validator import judge_caller


class Authenticator(Protocol):
    """Knows callers by their tokens."""

    def authenticate(self, presented: Presented) -> Caller:
        """Return the caller; see `Validator.authenticate`."""
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
    """Callers whose tokens are looked up on one thread for all of them."""

    def __init__(
        self, authenticator: Authenticator, run: Callable[[Callable[[], Caller]], Caller]
    ) -> None:
        """Create the callers.

        Args:
            authenticator: Knows callers by their tokens.
            run: Runs its argument on that thread, and returns or raises what it does.
        """
        super().__init__(authenticator)
        here = self._authenticate
        self._authenticate = lambda presented: run(partial(here, presented))
