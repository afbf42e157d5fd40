"""Verifiers that validate every token at keybearer.

A verifier says whose token it is. It never says whether a role or a scope suffices: that is decided
where the rule is, by `access.decide`.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from keybearer._client import requests
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.gathering import AsyncGatherer, Gatherer
from keybearer._client.outages import (
    PROBE_TIMEOUT,
    PROBE_TOKEN,
    OutageGate,
    probe_in_task,
    probe_in_thread,
)
from keybearer._wire.arguments import kind_of, seconds, text
from keybearer.models import Outcome, Presented, Verdict

DEFAULT_TIMEOUT: Final = 2.0
"""Seconds after which a check without an answer is given up."""


class RemoteVerifier:
    """Validates every token at keybearer, for threads.

    Checks that wait at the same time go together in one call.

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
        gate = OutageGate(client.endpoint.address)
        self._gatherer = Gatherer(
            gate,
            ask=self._ask,
            begin_probing=lambda: probe_in_thread(gate, self._probe),
            timeout=self._timeout,
        )

    def __repr__(self) -> str:
        return f"RemoteVerifier({self._client!r}, account_id={self._account_id!r})"

    def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential.

        Raises:
            VerifierUnavailableError: keybearer does not answer, is overloaded, or does not accept
                the credential of the client. This is never a verdict.
        """
        return self._gatherer.verify(presented.token)

    def _ask(self, tokens: Sequence[str], timeout: float) -> list[Verdict]:
        request = request_about(tokens, self._account_id)
        verdicts = self._client.run(request, timeout=timeout)
        return restrict_all_to_account(verdicts, self._account_id)

    def _probe(self) -> None:
        self._ask([PROBE_TOKEN], min(PROBE_TIMEOUT, self._timeout))


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
        self._gatherer = AsyncGatherer(
            self._gate, ask=self._ask, begin_probing=self._begin_probing, timeout=self._timeout
        )

    def __repr__(self) -> str:
        return f"AsyncRemoteVerifier({self._client!r}, account_id={self._account_id!r})"

    async def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential, as RemoteVerifier.verify does."""
        return await self._gatherer.verify(presented.token)

    async def _ask(self, tokens: Sequence[str], seconds: float) -> list[Verdict]:
        request = request_about(tokens, self._account_id)
        verdicts = await self._client.run(request, timeout=seconds)
        return restrict_all_to_account(verdicts, self._account_id)

    def _begin_probing(self) -> None:
        self._probing = probe_in_task(self._gate, self._probe) or self._probing

    async def _probe(self) -> None:
        await self._ask([PROBE_TOKEN], min(PROBE_TIMEOUT, self._timeout))


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


def request_about(tokens: Sequence[str], account_id: str) -> requests.Request[list[Verdict]]:
    """Return the request that validates up to 100 tokens.

    One token alone goes by ValidateToken, which costs less than a batch. The result has as many
    verdicts as the response, however many tokens there are.
    """
    if len(tokens) > 1:
        return requests.batch_validate_tokens(tokens, account_id=account_id)
    single = requests.validate_token(tokens[0], account_id=account_id)
    return requests.Request(
        single.path,
        single.message,
        single.response_type,
        lambda response: [single.read(response)],
        single.kind,
    )


def restrict_to_account(verdict: Verdict, account_id: str) -> Verdict:
    """Return the verdict, or NOT_FOUND when its identity belongs to another account.

    The restriction is checked here too, so that a wrong answer of a server lets nobody in.
    """
    identity = verdict.identity
    if identity is None or account_id in ("", "-", identity.account_id):
        return verdict
    return Verdict(outcome=Outcome.NOT_FOUND)


def restrict_all_to_account(verdicts: Sequence[Verdict], account_id: str) -> list[Verdict]:
    """Return verdicts, each as `restrict_to_account` does."""
    return [restrict_to_account(verdict, account_id) for verdict in verdicts]
