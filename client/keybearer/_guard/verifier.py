"""What every guard needs: a verifier, which says whose token it is."""

from typing import Protocol

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
