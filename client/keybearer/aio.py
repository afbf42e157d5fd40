"""The guard of a `grpc.aio.server`: an interceptor in front of it, and handlers know who calls.

client = AsyncKeybearerClient("keybearer:443", token=token)
server = grpc.aio.server(interceptors=[AsyncAuthInterceptor(AsyncCachingVerifier(client))])
"""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor

from keybearer._guard.check import check_async, denial_of, presented_in_call
from keybearer._guard.handlers import (
    DEFAULT_REJUDGE_AFTER,
    Behaviour,
    Deserializer,
    GuardedHandlers,
    split_handler,
)
from keybearer._guard.identity import enter_identity
from keybearer._guard.rules import HEALTH_AND_REFLECTION, Rules
from keybearer._guard.verifier import AsyncVerifier, assert_verifier
from keybearer._wire.arguments import seconds
from keybearer._wire.denial import MALFORMED_MESSAGE, Denial
from keybearer.access import AccessRule
from keybearer.models import Identity

__all__ = ["AsyncAuthInterceptor"]

log = logging.getLogger(__name__)


class AsyncAuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call pass when its key meets the rule of its method, and denies every other call.

    The same as AuthInterceptor for `grpc.aio.server`. Handlers must be asynchronous: grpc.aio runs
    other handlers on a thread of their own, where the identity would be lost, so their calls are
    denied. On a `grpc.server` every call is denied with a message that says why.

    Args:
        verifier: Finds the identity behind a credential.
        services: Descriptors of services whose methods must all have a rule. They are checked now
            instead of at the first call.
        rules: Rules by method path, `/package.Service/Method`, for methods whose proto has none.
            They override the options in the proto.
        public_methods: Paths that need no credential. A path must match exactly.
        rejudge_after: Seconds after which the credential of an open stream is judged again. The
            stream ends with the denial when the credential is no longer accepted.

    Raises:
        RuleError: A method of `services` has no rule, a rule cannot be judged here, or a path names
            no method.
        TypeError, ValueError: Another argument has a wrong type or form; the message names it.
    """

    def __init__(
        self,
        verifier: AsyncVerifier,
        *,
        services: Iterable[ServiceDescriptor] = (),
        rules: Mapping[str, AccessRule] | None = None,
        public_methods: Collection[str] = HEALTH_AND_REFLECTION,
        rejudge_after: float = DEFAULT_REJUDGE_AFTER,
    ) -> None:
        assert_verifier(self, verifier, is_async=True)
        self._verifier = verifier
        self._rules = Rules(services, rules, public_methods)
        self._rejudge_after = seconds("rejudge_after", rejudge_after)
        self._handlers = GuardedHandlers(self._guard)
        self._endings: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"AsyncAuthInterceptor({self._verifier!r})"

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the guarded handler of a method; None for an unknown method.

        This is not a coroutine function: a `grpc.server` would take the coroutine for a handler,
        and the thread that serves all calls would end.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _wrong_server(continuation(handler_call_details))
        return self._intercept(continuation, handler_call_details)

    async def _intercept(self, continuation: Any, handler_call_details: Any) -> Any:
        # The task of a call inherits the context in which the server was started.
        enter_identity(None)
        handler = await continuation(handler_call_details)
        return None if handler is None else self._handlers.of(handler_call_details.method, handler)

    def _guard(self, path: str, handler: Any) -> Any:
        """Return a guarded handler of the same arity and the same kind of coroutine."""
        rule = self._rules.of(path)
        if rule is not None and rule.public:
            return handler
        make, behaviour = split_handler(handler)
        deserializer = handler.request_deserializer
        if inspect.isasyncgenfunction(behaviour):
            guarded = self._guard_generator(rule, handler, behaviour)
        elif inspect.iscoroutinefunction(behaviour):
            guarded = self._guard_coroutine(rule, handler, behaviour)
        else:
            log.error("%s is denied to everybody: its handler is not asynchronous", path)
            guarded = _deny_always(_NOT_ASYNCHRONOUS, streaming=handler.response_streaming)
        functools.update_wrapper(guarded, behaviour)
        return make(
            guarded,
            # One message is parsed after the check. Those of a stream are read after it anyhow.
            request_deserializer=_strict(deserializer) if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )

    def _guard_coroutine(
        self, rule: AccessRule | None, handler: Any, behaviour: Behaviour
    ) -> Behaviour:
        async def guarded(incoming: Any, context: Any) -> Any:
            request, sending = await self._enter(rule, handler, incoming, context)
            try:
                if handler.response_streaming:
                    return await behaviour(request, _SendingContext(context, sending))
                return await behaviour(request, context)
            except _MalformedError:
                await _abort(context, MALFORMED_MESSAGE)

        return guarded

    def _guard_generator(
        self, rule: AccessRule | None, handler: Any, behaviour: Behaviour
    ) -> Behaviour:
        async def guarded(incoming: Any, context: Any) -> AsyncIterator[Any]:
            request, sending = await self._enter(rule, handler, incoming, context)
            try:
                async with contextlib.aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        async with sending:
                            yield response
            except _MalformedError:
                await _abort(context, MALFORMED_MESSAGE)

        return guarded

    async def _enter(
        self, rule: AccessRule | None, handler: Any, incoming: Any, context: Any
    ) -> tuple[Any, asyncio.Lock]:
        """Judge the call, and abort it when it is denied.

        Returns:
            The request, and a lock to hold while a message is sent. Without the lock, the status of
            a stream that is denied meanwhile would be sent in the middle of the message, and
            neither would arrive.
        """
        judgement = await check_async(self._verifier, rule, presented_in_call, context)
        if not isinstance(judgement, Identity):
            await _abort(context, judgement)
        request = incoming
        if not handler.request_streaming and handler.request_deserializer is not None:
            try:
                request = handler.request_deserializer(incoming)
            except Exception:  # noqa: BLE001 - whatever the parser raises, the bytes are wrong
                await _abort(context, MALFORMED_MESSAGE)
        sending = asyncio.Lock()
        if handler.request_streaming or handler.response_streaming:
            watch = asyncio.create_task(self._until_denied(rule, context))
            watch.add_done_callback(
                functools.partial(self._watch_ended, context, sending, asyncio.current_task())
            )
            context.add_done_callback(lambda _: watch.cancel())
        # The call has its own task and so its own context: nothing has to be reset.
        enter_identity(judgement)
        return request, sending

    async def _until_denied(self, rule: AccessRule | None, context: Any) -> Denial:
        """Judge an open stream again and again, and return the first denial."""
        while True:
            await asyncio.sleep(self._rejudge_after)
            judgement = await check_async(self._verifier, rule, presented_in_call, context)
            if not isinstance(judgement, Identity):
                return judgement

    def _watch_ended(
        self,
        context: Any,
        sending: asyncio.Lock,
        call: asyncio.Task[Any] | None,
        watch: asyncio.Task[Denial],
    ) -> None:
        """End a stream that is denied, or whose watch failed."""
        if watch.cancelled():
            return
        error = watch.exception()
        denial = denial_of(error) if isinstance(error, Exception) else watch.result()
        ending = asyncio.create_task(_end_call(context, sending, call, denial))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


async def _end_call(
    context: Any, sending: asyncio.Lock, call: asyncio.Task[Any] | None, denial: Denial
) -> None:
    """Deny a call from another task, which sends the status, and cancel its handler."""
    try:
        with contextlib.suppress(Exception):  # `abort` raises, and so does a call that is over
            async with sending:
                await _abort(context, denial)
    finally:
        if call is not None:
            call.cancel()


class _SendingContext:
    """The context of a call that holds a lock while it sends a message."""

    def __init__(self, context: Any, sending: asyncio.Lock) -> None:
        self._context = context
        self._sending = sending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        async with self._sending:
            await self._context.write(message)


class _MalformedError(Exception):
    """A message of a client stream cannot be parsed."""


_NOT_ASYNCHRONOUS = Denial(
    code=grpc.StatusCode.INTERNAL,
    reason="INTERNAL",
    message="the handler of this method is not asynchronous, which this guard cannot protect",
)
_WRONG_SERVER = Denial(
    code=grpc.StatusCode.INTERNAL,
    reason="INTERNAL",
    message="this server is guarded by AsyncAuthInterceptor; a grpc.server needs AuthInterceptor",
)


def _strict(deserializer: Deserializer | None) -> Deserializer | None:
    """Return a parser whose errors are all _MalformedError."""
    if deserializer is None:
        return None

    def parse(message: bytes) -> Any:
        try:
            return deserializer(message)
        except Exception as error:
            raise _MalformedError from error

    return parse


def _deny_always(denial: Denial, *, streaming: bool) -> Behaviour:
    """Return an asynchronous behaviour that denies every call."""

    async def deny(_: Any, context: Any) -> Any:
        await _abort(context, denial)

    async def deny_stream(_: Any, context: Any) -> AsyncIterator[Any]:
        await _abort(context, denial)
        yield

    return deny_stream if streaming else deny


def _wrong_server(handler: Any) -> Any:
    """Return a handler for a `grpc.server` that denies every call."""
    log.error("AsyncAuthInterceptor is for grpc.aio.server; grpc.server needs AuthInterceptor")
    if handler is None:
        return None

    def deny(_: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata(_WRONG_SERVER.trailers())
        context.abort(_WRONG_SERVER.code, _WRONG_SERVER.message)

    make, _ = split_handler(handler)
    return make(deny)


async def _abort(context: Any, denial: Denial) -> NoReturn:
    """Abort the call. Nothing after this runs, whatever the context does."""
    await context.abort(denial.code, denial.message, denial.trailers())
    raise RuntimeError("a call went on after it was aborted")
