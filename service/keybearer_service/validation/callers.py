"""Who calls: the one way from a credential to a caller that a rule admits."""

from typing import Protocol

from keybearer.access import AccessRule
from keybearer_service.domain.verdict import Caller
from keybearer_service.validation.validator import judge_caller


class Authenticator(Protocol):
    """Knows callers by their tokens."""

    def authenticate(self, token: str) -> Caller:
        """Return the caller; see `Validator.authenticate`."""
        ...


class Admissible(Protocol):
    """A call whose caller is to be admitted."""

    rule: AccessRule
    caller: Caller | None


class Callers:
    """Authenticates callers and judges them. Every entry point admits its callers here."""

    def __init__(self, authenticator: Authenticator) -> None:
        """Take who knows them."""
        self._authenticate = authenticator.authenticate

    def admit(self, call: Admissible, token: str) -> Caller:
        """Return the caller behind a token, when the rule of the call admits it.

        Sets `call.caller` as soon as it is known, so that a refusal can be audited with its caller.

        Raises:
            CredentialsExpired, CredentialsInvalid: The token opens nothing.
            OperatorOnly, RoleInsufficient, ScopeInsufficient: The rule does not admit the caller.
            StoreError, StoreUnavailable: The store could not be asked; that refuses nobody.
        """
        caller = call.caller = self._authenticate(token)
        judge_caller(caller, call.rule)
        return caller
