"""What every guard needs: a verifier, which says whose token it is."""

import inspect
from typing import Protocol

from keybearer._wire.arguments import kind_of
from keybearer.models import Presented, Verdict


class Verifier(Protocol):
    """Finds the identity behind a credential, for threads."""

    def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential.

        The token may be any text: a verifier does not rely on its form.

        Raises:
            VerifierUnavailableError: There is no verdict, which is never a verdict itself.
        """
        ...


class AsyncVerifier(Protocol):
    """Finds the identity behind a credential, for asyncio."""

    async def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential, as Verifier.verify does.

        Raises:
            VerifierUnavailableError: There is no verdict, which is never a verdict itself.
        """
        ...


def assert_verifier(guard: object, verifier: object, *, is_async: bool) -> None:
    """Reject what is no verifier, or one of the wrong kind.

    Args:
        guard: What is given the verifier.
        verifier: What it was given.
        is_async: Whether the guard needs a verifier for asyncio.

    Raises:
        TypeError: It is none.
    """
    name, kind = type(guard).__name__, "asyncio" if is_async else "threads"
    verify = getattr(verifier, "verify", None)
    if not callable(verify) or isinstance(verifier, type):
        example = "AsyncCachingVerifier(client)" if is_async else "CachingVerifier(client)"
        raise TypeError(f"{name} needs a verifier, such as {example}, not {kind_of(verifier)}")
    if inspect.iscoroutinefunction(verify) is not is_async:
        other = "threads" if is_async else "asyncio"
        raise TypeError(f"{name} needs a verifier for {kind}, this one is for {other}")
