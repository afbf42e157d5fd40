"""Verifiers that reuse verdicts under a lease: what guards use by default.

    auth = AuthInterceptor(CachingVerifier(KeybearerClient("keybearer:443", token=token)))

A verifier keeps verdicts and follows a stream of changes. It reuses a verdict only while the server
has confirmed, within the last two seconds, that the verifier missed no change. A change that takes
authority away arrives within milliseconds. Without the stream, every check validates its token at
the server. If keybearer cannot be reached, VerifierUnavailableError is raised; an outage is never
treated as a verdict. No setting changes this.
"""

import asyncio
import functools
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from keybearer._cache.engine import CacheStats, Engine, Metadata
from keybearer._cache.verdict_cache import SECOND
from keybearer._client.client import AsyncKeybearerClient, KeybearerClient
from keybearer._client.gathering import AsyncGatherer, Gatherer
from keybearer._client.remote import DEFAULT_TIMEOUT, assert_client
from keybearer._client.token_source import AsyncTokenSource, current_token, current_token_async
from keybearer._wire.arguments import count, seconds, text
from keybearer._wire.bearer import authorization_of
from keybearer.errors import VerifierUnavailableError
from keybearer.models import Outcome, Presented, Verdict

DEFAULT_MAX_ENTRIES: Final = 10_000
_CREDENTIAL_TIMEOUT: Final = 5.0

if hasattr(time, "CLOCK_BOOTTIME"):
    now_ns: Callable[[], int] = functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    """Nanoseconds of a clock that continues while the machine sleeps, where there is one."""
else:
    now_ns = time.monotonic_ns


class CachingVerifier:
    """Validates a token once a minute, and learns within milliseconds when its verdict changes.

    Threads may share it, and it works in the child of a fork. The first check opens the connection.
    Use it as a context manager, or `close` it.

    Args:
        client: A client with the credential of a VALIDATOR. The verifier takes the address and the
            credential from it, opens its own connection, and does not close the client.
        account_id: Empty means that only keys of the client's own account are accepted. A client of
            the operator account may give the id of another account, or `-` for any account.
        timeout: Seconds that a check may take when it has to validate the token.
        max_entries: How many positive verdicts are kept, at about a kilobyte each.
        clock: For tests: returns nanoseconds of a clock that never steps.

    Raises:
        TypeError, ValueError: An argument has a wrong type or form; the message names it.
    """

    def __init__(
        self,
        client: KeybearerClient,
        *,
        account_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        assert_client(self, client, KeybearerClient)
        source = client.token_source

        def authorize() -> Metadata:
            return () if source is None else (authorization_of(current_token(source)),)

        self._engine = Engine(
            client.endpoint,
            account_id=text("account_id", account_id),
            timeout=seconds("timeout", timeout),
            max_entries=count("max_entries", max_entries, least=1),
            authorize=authorize,
            clock=clock,
        )
        self._find = self._engine.verdicts.find
        self._clock = clock
        self._gatherer = Gatherer(
            self._engine.gate,
            ask=self._engine.ask,
            begin_probing=self._engine.begin_probing,
            timeout=self._engine.timeout,
            now=lambda: clock() / SECOND,
        )
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __repr__(self) -> str:
        return f"CachingVerifier({self._engine!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential.

        Raises:
            VerifierUnavailableError: keybearer cannot be reached, and no kept verdict may be
                reused. An outage is never a verdict.
        """
        began = self._clock()
        token = presented.token
        try:
            verdict = self._find(token, began)
        except UnicodeEncodeError:
            return Verdict(outcome=Outcome.NOT_FOUND)
        if verdict is not None:
            return verdict
        return self._gatherer.verify(token)

    def wait_for_lease(self, timeout: float) -> bool:
        """Wait until verdicts may be reused, and return whether they may.

        This is for the start of a service whose first requests must be fast. Checks do not need it.

        Args:
            timeout: Seconds to wait at most.
        """
        return self._engine.wait_for_lease(timeout)

    def stats(self) -> CacheStats:
        """Return counts and the state of the lease, for metrics."""
        return self._engine.stats()

    def describe(self) -> dict[str, Any]:
        """Return the state in plain values, for a health page. It contains no token."""
        return {**self._engine.describe(), "waiting": self._gatherer.waiting}

    def close(self) -> None:
        """End the stream and close the connection. Later checks raise VerifierUnavailableError."""
        self._finalizer()


class AsyncCachingVerifier:
    """The same as CachingVerifier for asyncio. A kept verdict is returned without waiting.

    The stream has its own thread, so a busy event loop does not delay changes. Use the verifier
    within one event loop. The client's token source may be a coroutine function.
    """

    def __init__(
        self,
        client: AsyncKeybearerClient,
        *,
        account_id: str = "",
        timeout: float = DEFAULT_TIMEOUT,
        max_entries: int = DEFAULT_MAX_ENTRIES,
        clock: Callable[[], int] = now_ns,
    ) -> None:
        assert_client(self, client, AsyncKeybearerClient)
        self._credential = credential = _LoopCredential(client.token_source)
        self._engine = engine = Engine(
            client.endpoint,
            account_id=text("account_id", account_id),
            timeout=seconds("timeout", timeout),
            max_entries=count("max_entries", max_entries, least=1),
            authorize=self._credential.authorize,
            clock=clock,
        )
        self._find = engine.verdicts.find
        self._clock = clock

        async def ask(tokens: Sequence[str], seconds: float) -> list[Verdict]:
            return await engine.ask_async(tokens, seconds, credential.get)

        self._gatherer = AsyncGatherer(
            engine.gate,
            ask=ask,
            begin_probing=engine.begin_probing,
            timeout=engine.timeout,
            now=lambda: clock() / SECOND,
        )
        self._finalizer = weakref.finalize(self, self._engine.close)

    def __repr__(self) -> str:
        return f"AsyncCachingVerifier({self._engine!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def verify(self, presented: Presented) -> Verdict:
        """Return the verdict about a credential, as CachingVerifier.verify does."""
        began = self._clock()
        token = presented.token
        try:
            verdict = self._find(token, began)
        except UnicodeEncodeError:
            return Verdict(outcome=Outcome.NOT_FOUND)
        if verdict is not None:
            return verdict
        return await self._gatherer.verify(token)

    async def wait_for_lease(self, timeout: float) -> bool:  # noqa: ASYNC109 - as CachingVerifier
        """Wait until verdicts may be reused, and return whether they may; see CachingVerifier."""
        await self._credential.get()
        return await asyncio.to_thread(self._engine.wait_for_lease, timeout)

    def stats(self) -> CacheStats:
        """Return counts and the state of the lease, for metrics."""
        return self._engine.stats()

    def describe(self) -> dict[str, Any]:
        """Return the state in plain values, for a health page. It contains no token."""
        return {**self._engine.describe(), "waiting": self._gatherer.waiting}

    async def close(self) -> None:
        """End the stream and close the connection. Later checks raise VerifierUnavailableError."""
        await asyncio.to_thread(self._finalizer)


class _LoopCredential:
    """The credential of a source that may belong to an event loop, for the loop and for threads."""

    def __init__(self, source: AsyncTokenSource | None) -> None:
        self._source = source
        self._loop: asyncio.AbstractEventLoop | None = None

    async def get(self) -> Metadata:
        """Return the metadata that presents the credential.

        Raises:
            VerifierUnavailableError: The source does not give it.
        """
        self._loop = asyncio.get_running_loop()
        if self._source is None:
            return ()
        try:
            return (authorization_of(await current_token_async(self._source)),)
        except Exception as error:
            raise VerifierUnavailableError(
                "the verifier's own credential is not available"
            ) from error

    def authorize(self) -> Metadata:
        """Return the same metadata on another thread.

        Raises:
            VerifierUnavailableError: The event loop of the source does not run.
        """
        if self._source is None or isinstance(self._source, str):
            return () if self._source is None else (authorization_of(self._source),)
        if self._loop is None or not self._loop.is_running():
            raise VerifierUnavailableError(
                "the verifier's own credential is not available: its event loop does not run"
            )
        metadata = asyncio.run_coroutine_threadsafe(self.get(), self._loop)
        return metadata.result(_CREDENTIAL_TIMEOUT)
