"""The identity of the caller, in the context of the call that is being handled."""

from contextvars import ContextVar

from keybearer.models import Identity


class NoIdentityError(LookupError):
    """Nobody is identified: the code runs outside a guarded call, or in a public method."""


_current: ContextVar[Identity | None] = ContextVar("keybearer_identity", default=None)
enter_identity = _current.set
"""Sets the identity and returns what `leave_identity` needs."""
leave_identity = _current.reset


def current_identity() -> Identity:
    """Return who makes the call that is being handled.

    Raises:
        NoIdentityError: Nobody is identified.
    """
    identity = _current.get()
    if identity is None:
        raise NoIdentityError("no identity: the method is public, or nothing guards this code")
    return identity
