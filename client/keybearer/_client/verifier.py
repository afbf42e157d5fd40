"""Who is behind a token: the question every guard asks.

A verifier answers the identity of a token, never whether a role or a scope suffices: that is judged
where the rule is, by `access.decide`.
"""

import logging
from typing import Final, Protocol

from keybearer._client import requests
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer.errors import VerifierUnavailableError
from keybearer.models import Outcome, Verdict

log = logging.getLogger(__name__)

MAX_TOKEN_LENGTH: Final = 512
"""Nothing longer is a token, section 2 of the wire contract."""
DEFAULT_TIMEOUT: Final = 2.0
"""Seconds after which a check that got no answer is given up."""
RETRY_AFTER: Final = 1.0
"""Seconds after which a caller may try again when keybearer could not be asked."""


class Verifier(Protocol):
    """Answers whose token it is, for threads."""

    def verify(self, token: str) -> Verdict:
        """Answer the verdict about a token, or about whatever stood in its place.

        Raises:
            VerifierUnavailableError: There is no verdict; that is never one.
        """
        ...


class AsyncVerifier(Protocol):
    """Answers whose token it is, for asyncio."""

    async def verify(self, token: str) -> Verdict:
        """Answer the verdict about a token, or about whatever stood in its place.

        Raises:
            VerifierUnavailableError: There is no verdict; that is never one.
        """
        ...


class RemoteVerifier:
    """Asks keybearer about every token, every time.

    Args:
        client: With the credential of a VALIDATOR.
        account_id: Empty: only keys of the client's own account are known. `-`: those of any
            account, and an id: those of that one; both for clients of the operator account.
        timeout: Seconds a check may take.
    """

    def __init__(
        self, client: KeybearerClient, *, account_id: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self._client = client
        self._account_id = account_id
        self._timeout = timeout
        self._trouble = Trouble()

    def verify(self, token: str) -> Verdict:
        """Answer the verdict about a token.

        Raises:
            VerifierUnavailableError: keybearer could not be asked, for whatever reason: it does not
                answer, it is overloaded, or it does not accept our own credential.
        """
        if not may_be_token(token):
            return Verdict(outcome=Outcome.NOT_FOUND)
        question = requests.validate_token(token, account_id=self._account_id)
        try:
            verdict = self._client.run(question, timeout=self._timeout)
        except Exception as error:
            raise self._trouble.begins(error) from error
        self._trouble.ends()
        return of_account(verdict, self._account_id)


class AsyncRemoteVerifier:
    """Asks keybearer about every token, every time; as RemoteVerifier, for asyncio."""

    def __init__(
        self,
        client: AsyncKeybearerClient,
        *,
        account_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._client = client
        self._account_id = account_id
        self._timeout = timeout
        self._trouble = Trouble()

    async def verify(self, token: str) -> Verdict:
        """Answer the verdict about a token.

        Raises:
            VerifierUnavailableError: As `RemoteVerifier.verify`.
        """
        if not may_be_token(token):
            return Verdict(outcome=Outcome.NOT_FOUND)
        question = requests.validate_token(token, account_id=self._account_id)
        try:
            verdict = await self._client.run(question, timeout=self._timeout)
        except Exception as error:
            raise self._trouble.begins(error) from error
        self._trouble.ends()
        return of_account(verdict, self._account_id)


class Trouble:
    """Whether keybearer could be asked the last time; logged when it changes, not at every call."""

    def __init__(self) -> None:
        self._present = False

    def begins(self, error: Exception) -> VerifierUnavailableError:
        """Answer the error to raise."""
        if not self._present:
            self._present = True
            log.warning("keybearer cannot be asked, every caller is denied: %s", error)
        return VerifierUnavailableError(
            "the credential cannot be checked right now", retry_after=RETRY_AFTER
        )

    def ends(self) -> None:
        """Note that it could be asked."""
        if self._present:
            self._present = False
            log.warning("keybearer can be asked again")


def may_be_token(token: str) -> bool:
    """Tell whether asking makes sense; what is certainly no token is not sent."""
    return len(token) <= MAX_TOKEN_LENGTH and is_one_word(token)


def is_one_word(token: str) -> bool:
    """Tell whether this is one value, of characters that a header may have."""
    if " " in token or "," in token:
        return False
    return bool(token) and token.isascii() and token.isprintable()


def of_account(verdict: Verdict, account_id: str) -> Verdict:
    """Refuse an identity of another account than the one asked about, whoever answered it."""
    identity = verdict.identity
    if identity is None or account_id in ("", "-", identity.account_id):
        return verdict
    return Verdict(outcome=Outcome.NOT_FOUND)
