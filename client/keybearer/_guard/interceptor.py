"""Guards a `grpc.server`: one interceptor in front of it, and handlers know who calls.

    auth = AuthInterceptor(CachingVerifier(KeybearerClient("keybearer:443", token=token)))
    server = grpc.server(futures.ThreadPoolExecutor(), interceptors=[auth])

`intercept_service` runs on the one thread that serves all calls, so it only wraps handlers. The
question to keybearer is asked in the wrapped behaviour, on a worker thread. grpc runs every call in
a context of its own, which ends with the call, so an identity that is set there is never reset.
"""

import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from keybearer._client.verifier import Verifier
from keybearer._guard.guard import (
    HEALTH_AND_REFLECTION,
    MALFORMED_MESSAGE,
    Denial,
    Rules,
    check,
    enter_identity,
)
from keybearer.access import AccessRule
from keybearer.models import Identity

log = logging.getLogger(__name__)

DEFAULT_REJUDGE_AFTER: Final = 30.0
"""Seconds after which the credential of an open stream is judged again."""
MAX_KEPT_HANDLERS: Final = 4096
"""Wrapped handlers kept, for servers that make up handlers as calls come."""
_MAX_JUDGES = 8
_READ_BY_GRPC = ("experimental_thread_pool", "experimental_non_blocking")
"""Attributes of a behaviour that grpc reads, also where they belong to its class."""

Behaviour = Callable[..., Any]
Deserializer = Callable[[bytes], Any]


class AuthInterceptor(grpc.ServerInterceptor):
    """Lets a call pass when its key meets the rule of its method, and denies every other one.

    The rule of a method is its option `(keybearer.v1.access)`; a method without one is denied. Put
    it outside of interceptors that need `current_identity()`, inside of those that log calls.

    Args:
        verifier: Answers whose token it is.
        services: Descriptors of services of which every method must have a rule: checked now,
            instead of at the first call.
        rules: Rules by method path, `/package.Service/Method`, for methods whose own proto has
            none. They win over the options in the proto.
        public_methods: Paths that need no credential, exactly.
        rejudge_after: Seconds after which the credential of an open stream is judged again; it
            ends when it would no longer be let in. One that moves ends with the denial; one that
            is silent is cancelled.

    Raises:
        RuleError: A method of `services` has no rule, or a rule cannot be judged here.
        TypeError: The verifier is one for asyncio.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        services: Iterable[ServiceDescriptor] = (),
        rules: Mapping[str, AccessRule] | None = None,
        public_methods: Collection[str] = HEALTH_AND_REFLECTION,
        rejudge_after: float = DEFAULT_REJUDGE_AFTER,
    ) -> None:
        if inspect.iscoroutinefunction(verifier.verify):
            raise TypeError("AuthInterceptor needs a verifier for threads, this one is for asyncio")
        self._verifier = verifier
        self._rules = Rules(services, rules, public_methods)
        self._watchdog = _Watchdog(rejudge_after)
        self._kept: dict[str, tuple[Any, Any]] = {}

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of a method; an unknown method stays unknown."""
        handler = continuation(handler_call_details)
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
        """Wrap a handler in one of the same arity."""
        rule = self._rules.of(path)
        if rule is not None and rule.public:
            return handler
        make, behaviour = taken_apart(handler)
        if handler.request_streaming or handler.response_streaming:
            guarded = self._guard_stream(rule, handler, behaviour)
        else:
            guarded = self._guard_unary(rule, handler, behaviour)
        # Bytes are parsed behind the guard, so that strangers do not reach the parser.
        return make(
            _dressed(guarded, behaviour),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    def _guard_unary(
        self, rule: AccessRule | None, handler: Any, behaviour: Behaviour
    ) -> Behaviour:
        verifier, deserializer = self._verifier, handler.request_deserializer

        def guarded(message: bytes, context: grpc.ServicerContext) -> Any:
            identity = check(verifier, context.invocation_metadata, rule)
            if not isinstance(identity, Identity):
                _abort(context, identity)
            request = message if deserializer is None else _parsed(deserializer, message, context)
            enter_identity(identity)
            return behaviour(request, context)

        return guarded

    def _guard_stream(
        self, rule: AccessRule | None, handler: Any, behaviour: Behaviour
    ) -> Behaviour:
        verifier, deserializer = self._verifier, handler.request_deserializer

        # A non-blocking behaviour takes a third argument, and answers through it.
        def guarded(incoming: Any, context: grpc.ServicerContext, *callback: Any) -> Any:
            judge = functools.partial(check, verifier, context.invocation_metadata, rule)
            identity = judge()
            if not isinstance(identity, Identity):
                _abort(context, identity)
            stream = _Stream(identity, context, judge)
            self._watchdog.watch(stream)
            if handler.request_streaming:
                request: Any = _Requests(incoming, deserializer, stream)
            else:
                request = _parsed(deserializer, incoming, context)
            enter_identity(identity)
            response = behaviour(request, context, *callback)
            if handler.response_streaming and not callback:
                return _responses(response, stream)
            return response

        return guarded


class _Stream:
    """One open stream: who opened it, and whether that is still right.

    Args:
        identity: Who was let in.
        context: Of the call.
        judge: Judges the credential again.
    """

    def __init__(
        self,
        identity: Identity,
        context: grpc.ServicerContext,
        judge: Callable[[], Identity | Denial],
    ) -> None:
        self.identity = identity
        self.context = context
        self._judge = judge
        self._rejudge_after = 0.0
        self._due = 0.0

    def schedule(self, rejudge_after: float, now: float) -> None:
        """Say when to judge again; times in seconds of the monotonic clock."""
        self._rejudge_after = rejudge_after
        self._due = now + rejudge_after

    def is_due(self, now: float) -> bool:
        """Tell whether the credential must be judged again."""
        return now >= self._due

    def judge(self) -> Denial | None:
        """Judge the credential again; answer the denial, if it is one."""
        judgement = self._judge()
        if not isinstance(judgement, Identity):
            return judgement
        self.identity = judgement
        self._due = time.monotonic() + self._rejudge_after
        return None

    def assert_allowed(self) -> None:
        """Judge again when that is due, and abort the call when it is denied by now."""
        if self.is_due(time.monotonic()):
            denial = self.judge()
            if denial is not None:
                _abort(self.context, denial)


class _Watchdog:
    """Judges the streams that are silent, so that nobody listens on with a dead key.

    Its thread lives while there are streams.
    """

    def __init__(self, rejudge_after: float) -> None:
        self._rejudge_after = rejudge_after
        self._streams: set[_Stream] = set()
        self._lock = threading.Lock()
        self._running = False

    def watch(self, stream: _Stream) -> None:
        """Judge a stream until its call ends."""
        stream.schedule(self._rejudge_after, time.monotonic())
        with self._lock:
            self._streams.add(stream)
            if not self._running:
                threading.Thread(target=self._run, name="keybearer-streams", daemon=True).start()
                self._running = True
        if not stream.context.add_callback(functools.partial(self._forget, stream)):
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        with self._lock:
            self._streams.discard(stream)

    def _run(self) -> None:
        try:
            self._judge_until_idle()
        except Exception:
            log.exception("open streams cannot be judged any more and are ended")
            with self._lock:
                unwatched, self._streams, self._running = self._streams, set(), False
            for stream in unwatched:
                stream.context.cancel()

    def _judge_until_idle(self) -> None:
        """Look at all streams, ten times between two judgements of one."""
        pause = self._rejudge_after / 10
        with futures.ThreadPoolExecutor(_MAX_JUDGES, "keybearer-stream-judge") as judges:
            while True:
                time.sleep(pause)
                with self._lock:
                    if not self._streams:
                        self._running = False
                        return
                    # A stream that moves judges itself; it gets a moment to do so.
                    overdue = [
                        stream
                        for stream in self._streams
                        if stream.is_due(time.monotonic() - pause)
                    ]
                list(judges.map(_end_if_denied, overdue))


def _end_if_denied(stream: _Stream) -> None:
    try:
        denied = stream.judge() is not None
    except Exception:
        log.exception("a stream could not be judged and is ended")
        denied = True
    if denied:
        # The only way to end a call whose thread waits for something else.
        stream.context.cancel()


class _Requests:
    """The messages of a client stream, judged while they come and parsed behind the guard."""

    def __init__(
        self, messages: Iterator[bytes], deserializer: Deserializer | None, stream: _Stream
    ) -> None:
        self._messages = messages
        self._deserializer = deserializer
        self._stream = stream

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        message = next(self._messages)
        self._stream.assert_allowed()
        return _parsed(self._deserializer, message, self._stream.context)


def _responses(responses: Iterable[Any], stream: _Stream) -> Iterator[Any]:
    """Yield what a behaviour answers, with the identity set while it works."""
    iterator = iter(responses)
    while True:
        enter_identity(stream.identity)
        try:
            response = next(iterator)
        except StopIteration:
            return
        stream.assert_allowed()
        yield response


def taken_apart(handler: Any) -> tuple[Callable[..., Any], Behaviour]:
    """Answer what makes handlers of the same arity, and the behaviour."""
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler, handler.stream_stream
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


def _parsed(
    deserializer: Deserializer | None, message: bytes, context: grpc.ServicerContext
) -> Any:
    """Parse a message, or abort the call."""
    if deserializer is None:
        return message
    try:
        return deserializer(message)
    except Exception:  # noqa: BLE001 - any parser, any error: the bytes are wrong
        _abort(context, MALFORMED_MESSAGE)


def _abort(context: grpc.ServicerContext, denial: Denial) -> NoReturn:
    """End the call. Nothing behind this runs, whatever the context does."""
    context.set_trailing_metadata(denial.trailers())
    context.abort(denial.code, denial.message)
    raise RuntimeError("a call went on after it was aborted")


def _dressed(guarded: Behaviour, behaviour: Behaviour) -> Behaviour:
    """Give the wrapper the name and the attributes of what it wraps."""
    functools.update_wrapper(guarded, behaviour)
    for name in _READ_BY_GRPC:
        if hasattr(behaviour, name):
            setattr(guarded, name, getattr(behaviour, name))
    return guarded
