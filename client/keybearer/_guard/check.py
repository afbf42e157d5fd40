"""Judges a call: from a presented credential and a rule to an identity or a denial.

The default is a denial: a verdict that is not VALID, an outcome that this version does not know, a
method without a rule, and every exception.
"""

import logging
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from keybearer._guard.verifier import AsyncVerifier, Verifier
from keybearer._wire import denial
from keybearer._wire.bearer import token_in_metadata
from keybearer._wire.denial import CREDENTIALS_MISSING, NO_RULE, Denial
from keybearer._wire.enums import Outcome
from keybearer._wire.peer import host_of
from keybearer.access import AccessRule, Decision, Role, decide
from keybearer.errors import KeybearerError
from keybearer.models import Identity, Presented, Verdict

log = logging.getLogger(__name__)

SourceT = TypeVar("SourceT")
Read = Callable[[SourceT], Presented | None]
"""Reads the credential out of a call; None when there is not exactly one well-formed credential."""

# Constants of their own: looking up a member of an enum takes 0.1 microseconds in Python 3.11.
_VALID = Outcome.VALID
_ALLOWED = Decision.ALLOWED


def presented_in_call(context: Any) -> Presented | None:
    """Read the credential of a gRPC call, for threads and for asyncio.

    Args:
        context: The servicer context.
    """
    token = token_in_metadata(context.invocation_metadata())
    return None if token is None else Presented(token, lambda: host_of(context.peer()))


def check(
    verifier: Verifier, rule: AccessRule | None, read: Read[SourceT], source: SourceT
) -> Identity | Denial:
    """Judge a call. This never raises: an error is a denial.

    Args:
        verifier: Finds the identity behind the credential.
        rule: What is required; without a rule nobody may call.
        read: Reads the credential. It is called here, so that its errors are denials too.
        source: What `read` reads from.
    """
    try:
        if rule is None:
            return NO_RULE
        presented = read(source)
        if presented is None:
            return CREDENTIALS_MISSING
        return _judge(presented, verifier.verify(presented), rule)
    except Exception as error:  # noqa: BLE001 - whatever happened, the call is denied
        return denial_of(error)


async def check_async(
    verifier: AsyncVerifier, rule: AccessRule | None, read: Read[SourceT], source: SourceT
) -> Identity | Denial:
    """Judge a call, as `check` does, with a verifier for asyncio."""
    try:
        if rule is None:
            return NO_RULE
        presented = read(source)
        if presented is None:
            return CREDENTIALS_MISSING
        return _judge(presented, await verifier.verify(presented), rule)
    except Exception as error:  # noqa: BLE001 - whatever happened, the call is denied
        return denial_of(error)


def denial_of(error: Exception) -> Denial:
    """Return the denial of a call that could not be judged. It reveals nothing of the error.

    Every error that keybearer returns to the guard is an outage for the caller, also
    UNAUTHENTICATED: that is about the guard's own credential.
    """
    if isinstance(error, KeybearerError):
        return denial.verifier_unavailable(error.retry_after)
    reference = uuid.uuid4().hex[:16]
    log.error("a guard failed and denied the call, reference %s", reference, exc_info=error)
    return denial.internal(reference)


def _judge(presented: Presented, verdict: Verdict, rule: AccessRule) -> Identity | Denial:
    identity = verdict.identity
    if verdict.outcome is _VALID and identity is not None:
        decision = decide(rule, identity.effective_role, identity.scopes, presented)
        if decision is _ALLOWED:
            return identity
        return denial.denial_of(Outcome[decision.name], rule, identity.effective_role)
    role = Role.UNSPECIFIED if identity is None else identity.effective_role
    return denial.denial_of(verdict.outcome, rule, role)
