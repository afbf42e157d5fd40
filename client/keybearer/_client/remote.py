"""Verifiers that validate every token at keybearer.

A verifier says whose token it is. It never says whether a role or a scope suffices: that is decided
where the rule is, by `access.decide`.
"""

import asyncio
from typing import Final

from keybearer._client import requests
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.outages import (
    PROBE_TIMEOUT,
    PROBE_TOKEN,
    OutageGate,
    probe_in_task,
    probe_in_thread,
)
from keybearer._wire.arguments import kind_of, seconds, text
from keybearer._wire.token_format import may_be_token
from keybearer.models import Outcome, Presented, Verdict

DEFAULT_TIMEOUT: Final = 2.0
"""Seconds after which a check without an answer is given up."""


class RemoteVerifier:
    """Validates every token at keybearer, for threads.

    Args:
        client: A client with the credential of a VALIDATOR.
        account_id: Empty means that only keys of the client's own account are accepted. A client of
            the operator account may give the id of another account, or `-` for any account.
        timeout: Seconds that a check may take.

    Raises:
        TypeError, ValueError: An argument has a wrong type or form; the message names it.
    """

    def __init__(
        self, client: KeybearerClient, *, account_id: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        assert_client(self, client, KeybearerClient)
        self._client = client
        self._account_id = text("account_id", account_id)
        self._timeout = seconds("timeout", timeout)
        self._gate = OutageGate(client.endpoint.address)

    def __repr__(self) -> str:
        return f"RemoteVerifier({self._client!r}, account_id={self._account_id!r})"

    def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential.

        Raises:
            VerifierUnavailableError: keybearer does not answer, is overloaded, or does not accept
                the credential of the client. This is never a verdict.
        """
        if not may_be_token(presented.token):
            return Verdict(outcome=Outcome.NOT_FOUND)
        self._gate.assert_closed()
        try:
            verdict = self._client.run(self._request(presented.token), timeout=self._timeout)
        except Exception as error:
            unavailable = self._gate.failed(error)
            probe_in_thread(self._gate, self._probe)
            raise unavailable from error
        self._gate.recovered()
        return restrict_to_account(verdict, self._account_id)

    def _request(self, token: str) -> requests.Request[Verdict]:
        return requests.validate_token(token, account_id=self._account_id)

    def _probe(self) -> None:
        self._client.run(self._request(PROBE_TOKEN), timeout=min(PROBE_TIMEOUT, self._timeout))


class AsyncRemoteVerifier:
    """The same as RemoteVerifier for asyncio."""

    def __init__(
        self,
        client: AsyncKeybearerClient,
        *,
        account_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        assert_client(self, client, AsyncKeybearerClient)
        self._client = client
        self._account_id = text("account_id", account_id)
        self._timeout = seconds("timeout", timeout)
        self._gate = OutageGate(client.endpoint.address)
        self._probing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"AsyncRemoteVerifier({self._client!r}, account_id={self._account_id!r})"

    async def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential, as RemoteVerifier.verify does."""
        if not may_be_token(presented.token):
            return Verdict(outcome=Outcome.NOT_FOUND)
        self._gate.assert_closed()
        try:
            verdict = await self._client.run(self._request(presented.token), timeout=self._timeout)
        except Exception as error:
            unavailable = self._gate.failed(error)
            self._probing = probe_in_task(self._gate, self._probe) or self._probing
            raise unavailable from error
        self._gate.recovered()
        return restrict_to_account(verdict, self._account_id)

    def _request(self, token: str) -> requests.Request[Verdict]:
        return requests.validate_token(token, account_id=self._account_id)

    async def _probe(self) -> None:
        timeout = min(PROBE_TIMEOUT, self._timeout)
        await self._client.run(self._request(PROBE_TOKEN), timeout=timeout)


def assert_client(
    verifier: object, client: object, wanted: type[KeybearerClient | AsyncKeybearerClient]
) -> None:
    """Reject a client that a verifier cannot use.

    Raises:
        TypeError: It is of another class.
        ValueError: It has no credential, without which it may not validate tokens.
    """
    name = type(verifier).__name__
    article = "an" if wanted is AsyncKeybearerClient else "a"
    if not isinstance(client, wanted):
        raise TypeError(f"{name} needs {article} {wanted.__name__}, not {kind_of(client)}")
    if client.token_source is None:
        raise ValueError(f"{name} needs a client with the token of a VALIDATOR, this one has none")


def restrict_to_account(verdict: Verdict, account_id: str) -> Verdict:
    """Return the verdict, or NOT_FOUND when its identity belongs to another account.

    The restriction is checked here too, so that a wrong answer of a server lets nobody in.
    """
    identity = verdict.identity
    if identity is None or account_id in ("", "-", identity.account_id):
        return verdict
    return Verdict(outcome=Outcome.NOT_FOUND)
