"""Guards a `grpc.aio.server`: one interceptor in front of it, and handlers know who calls.

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

from keybearer._client.verifier import AsyncVerifier
from keybearer._guard.guard import (
    HEALTH_AND_REFLECTION,
    MALFORMED_MESSAGE,
    Denial,
    Rules,
    check_async,
    denial_of,
    enter_identity,
)
from keybearer._guard.interceptor import (
    DEFAULT_REJUDGE_AFTER,
    MAX_KEPT_HANDLERS,
    Behaviour,
    Deserializer,
    taken_apart,
)
from keybearer.access import AccessRule
from keybearer.models import Identity

log = logging.getLogger(__name__)


class AsyncAuthInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call pass when its key meets the rule of its method, and denies every other one.

    As AuthInterceptor, for `grpc.aio.server`. Handlers must be asynchronous: in one that is not,
    which grpc.aio runs on a thread of its own, the identity would be lost, so it is denied. On a
    `grpc.server` every call is denied, with a message that says why.

    Args:
        verifier: Answers whose token it is.
        services: Descriptors of services of which every method must have a rule: checked now,
            instead of at the first call.
        rules: Rules by method path, `/package.Service/Method`, for methods whose own proto has
            none. They win over the options in the proto.
        public_methods: Paths that need no credential, exactly.
        rejudge_after: Seconds after which the credential of an open stream is judged again; it
            ends with the denial when it would no longer be let in.

    Raises:
        RuleError: A method of `services` has no rule, or a rule cannot be judged here.
        TypeError: The verifier is not one for asyncio.
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
        if not inspect.iscoroutinefunction(verifier.verify):
            raise TypeError("AsyncAuthInterceptor needs a verifier for asyncio")
        self._verifier = verifier
        self._rules = Rules(services, rules, public_methods)
        self._rejudge_after = rejudge_after
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._endings: set[asyncio.Task[None]] = set()

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of a method; an unknown method stays unknown.

        Not a coroutine function: a `grpc.server` would take the coroutine for a handler, and the
        thread that serves all calls would end.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _wrong_server(continuation(handler_call_details))
        return self._intercept(continuation, handler_call_details)

    async def _intercept(self, continuation: Any, handler_call_details: Any) -> Any:
        # The task of a call inherits what was set where the server was started.
        enter_identity(None)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        path = handler_call_details.method
        kept = self._kept.get(path)
        if kept is not None and kept[0] is handler:
            return kept[1]
        guarded = self._guarded(path, handler)
        if len(self._kept) >= MAX_KEPT_HANDLERS:
            self._kept.clear()
        self._kept[path] = (handler, guarded)
        return guarded

    def _guarded(self, path: str, handler: Any) -> Any:
        """Wrap a handler in one of the same arity and the same kind of coroutine."""
        rule = self._rules.of(path)
        if rule is not None and rule.public:
            return handler
        make, behaviour = taken_apart(handler)
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
            # One message is parsed behind the guard. Those of a stream are read behind it anyhow.
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
        """Let the caller in, or abort the call.

        Answers the request, and the lock to be held while a message is sent: a stream that is
        denied meanwhile would else send its status into the message, and neither would arrive.
        """
        judgement = await check_async(self._verifier, context.invocation_metadata, rule)
        if not isinstance(judgement, Identity):
            await _abort(context, judgement)
        request = incoming
        if not handler.request_streaming and handler.request_deserializer is not None:
            try:
                request = handler.request_deserializer(incoming)
            except Exception:  # noqa: BLE001 - any parser, any error: the bytes are wrong
                await _abort(context, MALFORMED_MESSAGE)
        sending = asyncio.Lock()
        if handler.request_streaming or handler.response_streaming:
            watch = asyncio.create_task(self._until_denied(rule, context))
            watch.add_done_callback(
                functools.partial(self._watch_ended, context, sending, asyncio.current_task())
            )
            context.add_done_callback(lambda _: watch.cancel())
        # The call has a task, and so a context, of its own: nothing to be reset.
        enter_identity(judgement)
        return request, sending

    async def _until_denied(self, rule: AccessRule | None, context: Any) -> Denial:
        """Judge an open stream again and again, and answer the first denial."""
        while True:
            await asyncio.sleep(self._rejudge_after)
            judgement = await check_async(self._verifier, context.invocation_metadata, rule)
            if not isinstance(judgement, Identity):
                return judgement

    def _watch_ended(
        self,
        context: Any,
        sending: asyncio.Lock,
        call: asyncio.Task[Any] | None,
        watch: asyncio.Task[Denial],
    ) -> None:
        """End a stream that is denied, or that nobody watches any more for whatever reason."""
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
    """Deny a call from beside it: that sends the status, but does not stop its handler."""
    try:
        with contextlib.suppress(Exception):  # that is how it ends, and so does a dead call
            async with sending:
                await _abort(context, denial)
    finally:
        if call is not None:
            call.cancel()


class _SendingContext:
    """The context of a call, except that it holds a lock while it sends a message."""

    def __init__(self, context: Any, sending: asyncio.Lock) -> None:
        self._context = context
        self._sending = sending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        async with self._sending:
            await self._context.write(message)


class _MalformedError(Exception):
    """A message of a client stream does not parse."""


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
    """Make a parser's errors recognisable."""
    if deserializer is None:
        return None

    def parse(message: bytes) -> Any:
        try:
            return deserializer(message)
        except Exception as error:
            raise _MalformedError from error

    return parse


def _deny_always(denial: Denial, *, streaming: bool) -> Behaviour:
    """Answer an asynchronous behaviour that only denies."""

    async def deny(_: Any, context: Any) -> Any:
        await _abort(context, denial)

    async def deny_stream(_: Any, context: Any) -> AsyncIterator[Any]:
        await _abort(context, denial)
        yield

    return deny_stream if streaming else deny


def _wrong_server(handler: Any) -> Any:
    """Answer a handler for a `grpc.server` that only denies."""
    log.error("AsyncAuthInterceptor is for grpc.aio.server; grpc.server needs AuthInterceptor")
    if handler is None:
        return None

    def deny(_: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata(_WRONG_SERVER.trailers())
        context.abort(_WRONG_SERVER.code, _WRONG_SERVER.message)

    make, _ = taken_apart(handler)
    return make(deny)


async def _abort(context: Any, denial: Denial) -> NoReturn:
    """End the call. Nothing behind this runs, whatever the context does."""
    await context.abort(denial.code, denial.message, denial.trailers())
    raise RuntimeError("a call went on after it was aborted")
