"""The guard of a `grpc.server`: an interceptor in front of it, and handlers know who calls.

    auth = AuthInterceptor(CachingVerifier(KeybearerClient("keybearer:443", token=token)))
    server = grpc.server(futures.ThreadPoolExecutor(), interceptors=[auth])

`intercept_service` runs on the one thread that serves all calls, so it only wraps handlers. The
wrapped behaviour checks the credential on a worker thread. grpc runs every call in a context of its
own, which ends with the call, so the identity that is set there is never reset.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from keybearer._guard.check import check, presented_in_call
from keybearer._guard.handlers import (
    DEFAULT_REJUDGE_AFTER,
    Behaviour,
    Deserializer,
    GuardedHandlers,
    copy_attributes,
    split_handler,
)
from keybearer._guard.identity import enter_identity
from keybearer._guard.rules import HEALTH_AND_REFLECTION, Rules
from keybearer._guard.verifier import Verifier, assert_verifier
from keybearer._wire.arguments import seconds
from keybearer._wire.denial import MALFORMED_MESSAGE, Denial
from keybearer.access import AccessRule
from keybearer.models import Identity

log = logging.getLogger(__name__)

_MAX_JUDGES: Final = 8
"""Threads that judge silent streams."""


class AuthInterceptor(grpc.ServerInterceptor):
    """Lets a call pass when its key meets the rule of its method, and denies every other call.

    The rule of a method is its option `(keybearer.v1.access)`; a method without one is denied. Put
    the interceptor before those that need `current_identity()` and after those that log calls.

    Args:
        verifier: Finds the identity behind a credential.
        services: Descriptors of services whose methods must all have a rule. They are checked now
            instead of at the first call.
        rules: Rules by method path, `/package.Service/Method`, for methods whose proto has none.
            They override the options in the proto.
        public_methods: Paths that need no credential. A path must match exactly.
        rejudge_after: Seconds after which the credential of an open stream is judged again. The
            stream ends when the credential is no longer accepted: with the denial when a message is
            on its way, and cancelled when the stream is silent.

    Raises:
        RuleError: A method of `services` has no rule, a rule cannot be judged here, or a path names
            no method.
        TypeError, ValueError: Another argument has a wrong type or form; the message names it.
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
        assert_verifier(self, verifier, is_async=False)
        self._verifier = verifier
        self._rules = Rules(services, rules, public_methods)
        self._watchdog = _Watchdog(seconds("rejudge_after", rejudge_after))
        self._handlers = GuardedHandlers(self._guard)

    def __repr__(self) -> str:
        return f"AuthInterceptor({self._verifier!r})"

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Return the guarded handler of a method; None for an unknown method."""
        handler = continuation(handler_call_details)
        return None if handler is None else self._handlers.of(handler_call_details.method, handler)

    def _guard(self, path: str, handler: Any) -> Any:
        """Return a guarded handler of the same arity."""
        rule = self._rules.of(path)
        if rule is not None and rule.public:
            return handler
        make, behaviour = split_handler(handler)
        if handler.request_streaming or handler.response_streaming:
            guarded = self._guard_stream(rule, handler, behaviour)
        else:
            guarded = self._guard_unary(rule, handler, behaviour)
        # Bytes are parsed after the check, so that strangers do not reach the parser.
        return make(
            copy_attributes(guarded, behaviour),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )

    def _guard_unary(
        self, rule: AccessRule | None, handler: Any, behaviour: Behaviour
    ) -> Behaviour:
        verifier, deserializer = self._verifier, handler.request_deserializer

        def guarded(message: bytes, context: grpc.ServicerContext) -> Any:
            identity = check(verifier, rule, presented_in_call, context)
            if not isinstance(identity, Identity):
                _abort(context, identity)
            request = message if deserializer is None else _parse(deserializer, message, context)
            enter_identity(identity)
            return behaviour(request, context)

        return guarded

    def _guard_stream(
        self, rule: AccessRule | None, handler: Any, behaviour: Behaviour
    ) -> Behaviour:
        verifier, deserializer = self._verifier, handler.request_deserializer

        # A non-blocking behaviour takes a third argument and sends its responses through it.
        def guarded(incoming: Any, context: grpc.ServicerContext, *callback: Any) -> Any:
            judge = functools.partial(check, verifier, rule, presented_in_call, context)
            identity = judge()
            if not isinstance(identity, Identity):
                _abort(context, identity)
            stream = _Stream(identity, context, judge)
            self._watchdog.watch(stream)
            if handler.request_streaming:
                request: Any = _Requests(incoming, deserializer, stream)
            else:
                request = _parse(deserializer, incoming, context)
            enter_identity(identity)
            response = behaviour(request, context, *callback)
            if handler.response_streaming and not callback:
                return _responses(response, stream)
            return response

        return guarded


class _Stream:
    """One open stream: who opened it, and whether the credential is still accepted.

    Args:
        identity: Who opened the stream.
        context: The servicer context of the call.
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
        """Set when to judge again; `now` is in seconds of the monotonic clock."""
        self._rejudge_after = rejudge_after
        self._due = now + rejudge_after

    def is_due(self, now: float) -> bool:
        """Return whether the credential must be judged again."""
        return now >= self._due

    def judge(self) -> Denial | None:
        """Judge the credential again, and return the denial if there is one."""
        judgement = self._judge()
        if not isinstance(judgement, Identity):
            return judgement
        self.identity = judgement
        self._due = time.monotonic() + self._rejudge_after
        return None

    def assert_allowed(self) -> None:
        """Judge again when that is due, and abort the call when it is denied."""
        if self.is_due(time.monotonic()):
            denial = self.judge()
            if denial is not None:
                _abort(self.context, denial)


class _Watchdog:
    """Judges silent streams, so that nobody keeps listening with a key that was revoked.

    The thread exists only while there are streams.
    """

    def __init__(self, rejudge_after: float) -> None:
        self._rejudge_after = rejudge_after
        self._streams: set[_Stream] = set()
        self._lock = threading.Lock()
        self._running = False

    def watch(self, stream: _Stream) -> None:
        """Judge a stream again and again until its call ends."""
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
            log.exception("open streams cannot be judged again and are ended")
            with self._lock:
                unwatched, self._streams, self._running = self._streams, set(), False
            for stream in unwatched:
                stream.context.cancel()

    def _judge_until_idle(self) -> None:
        """Visit all streams ten times in the time after which one is judged again."""
        pause = self._rejudge_after / 10
        with futures.ThreadPoolExecutor(_MAX_JUDGES, "keybearer-stream-judge") as judges:
            while True:
                time.sleep(pause)
                with self._lock:
                    if not self._streams:
                        self._running = False
                        return
                    # A stream with traffic judges itself; it gets a moment to do so.
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
        # grpc offers no other way to end a call whose thread waits for something else.
        stream.context.cancel()


class _Requests:
    """The messages of a client stream: the caller is judged again, then each is parsed."""

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
        return _parse(self._deserializer, message, self._stream.context)


def _responses(responses: Iterable[Any], stream: _Stream) -> Iterator[Any]:
    """Yield the responses of a behaviour. The identity is set while the behaviour runs."""
    iterator = iter(responses)
    while True:
        enter_identity(stream.identity)
        try:
            response = next(iterator)
        except StopIteration:
            return
        stream.assert_allowed()
        yield response


def _parse(deserializer: Deserializer | None, message: bytes, context: grpc.ServicerContext) -> Any:
    """Return the parsed message, or abort the call."""
    if deserializer is None:
        return message
    try:
        return deserializer(message)
    except Exception:  # noqa: BLE001 - whatever the parser raises, the bytes are wrong
        _abort(context, MALFORMED_MESSAGE)


def _abort(context: grpc.ServicerContext, denial: Denial) -> NoReturn:
    """Abort the call. Nothing after this runs, whatever the context does."""
    context.set_trailing_metadata(denial.trailers())
    context.abort(denial.code, denial.message)
    raise RuntimeError("a call went on after it was aborted")
