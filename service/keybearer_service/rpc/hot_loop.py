"""The hot methods on one thread, which polls a completion queue of its own on the same server.

On the ordinary path grpc's serving thread hears of a call, a thread of an executor serves it, and
the two wake each other up several times; that costs more than all the rest of a validation. Here
one thread takes every event that is ready, judges the callers and the tokens of all calls whose
message has come, and sends the answers. It waits for nothing but its queue: where reading the store
takes as long as a network does, a second thread judges, all calls that have come meanwhile at once.

What is odd is handed to the ordinary path, a thread of the method's executor that goes through the
same pipeline: refusals and errors, so that they have one story; large batches; first uses of young
secrets; callers whose message does not come; and whatever the store refuses.

grpc has no public way to any of this. A mistake with its private parts ends the process, so:

- Every operation is made anew for each call and used in one batch: a second use frees it twice.
- A method is registered once, before the server starts, and grpc's own loop never asks for it.
- No operation is started once the queue is shut down, which happens when the server has ended.
- Nothing keeps a call that has ended: it counts among the streams of its connection.

`docs/decisions/0008-hot-loop.md` says what else was tried; 0002 lists the private parts.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import grpc
import structlog
from google.rpc.status_pb2 import Status
from grpc import _server

from keybearer._wire.peer import host_of
from keybearer._wire.status import DETAILS_KEY
from keybearer_service.domain.clock import SECOND, SystemClock
from keybearer_service.domain.errors import CredentialsMissing, Overloaded, ServiceError
from keybearer_service.domain.token_format import id_in
from keybearer_service.gateway.status import status_of
from keybearer_service.rpc.credentials import presented_in
from keybearer_service.rpc.executors import SLOW_AFTER_S, CallExecutor, MessageWatchdog
from keybearer_service.rpc.pipeline import UnaryMethod
from keybearer_service.rpc.requests import Metadata
from keybearer_service.storage import StoreError
from keybearer_service.usecases.call_context import CallContext
from keybearer_service.validation.groups import ElsewhereError, GroupReads

log = structlog.get_logger(__name__)

MAX_ITEMS = 10
"""Tokens of one call that are judged here; a larger batch would hold up everybody else."""
MAX_EVENTS = 256
"""Events that are taken before the calls that came with them are answered."""
MAX_WAITING = 1000
"""Calls that wait for a thread of their own that judges; more are refused."""
_REQUESTED = 16
"""Calls of each method that grpc may hand over before it is asked for the next one."""
_IDLE_S = 1.0
_NOW = 0.0

_cygrpc: Any = _server.cygrpc  # type: ignore[attr-defined]
_NO_FLAGS = 0
_OK = 0
_TIMEOUT: Any = _cygrpc.CompletionType.queue_timeout
_SHUTDOWN: Any = _cygrpc.CompletionType.queue_shutdown
_UNIX = b"unix:"
_NO_CREDENTIAL = status_of(CredentialsMissing())
_OVERLOADED = status_of(Overloaded())
_TOO_LATE = Status(code=4, message="the deadline is over")  # DEADLINE_EXCEEDED
_GONE = object()
_machine_clock = SystemClock()  # grpc's queue and its deadlines go by the machine's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class HotMethod:
    """A method that is served by the loop."""

    here: UnaryMethod
    """What serves it on the loop; its validator reads from the group."""
    ordinary: UnaryMethod
    """What serves it on threads that may wait."""
    tokens_in: Callable[[Any], Sequence[str]]
    """Returns the tokens that a message asks about."""
    executor: CallExecutor
    """The threads of the ordinary path."""


class HotLoop:
    """Serves the hot methods of one server."""

    def __init__(
        self,
        methods: Iterable[HotMethod],
        *,
        reads: GroupReads,
        watchdog: MessageWatchdog,
        is_store_local: bool,
        on_overload: Callable[[str], None],
    ) -> None:
        """Create the loop; `attach` it to a server before that starts, and `start` it afterwards.

        Args:
            methods: What it serves.
            reads: What their validator reads from.
            watchdog: Watches the slow senders on the ordinary path.
            is_store_local: Whether a read takes microseconds, so that the loop itself may wait.
            on_overload: Called with the name of what has no room for a call.
        """
        self._methods = list(methods)
        self._reads = reads
        self._watchdog = watchdog
        self._on_overload = on_overload
        self._queue: Any = _cygrpc.CompletionQueue()
        self._server: Any = None
        self.gate = threading.Lock()
        """Held while operations are started, and while two threads might ask for the same one."""
        self._is_waiting = True
        self._turn_ended = threading.Event()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="hot-loop", daemon=True)
        self._judge = None if is_store_local else _Judge(self._judge_group)
        # The thread alone touches these.
        self._begun: list[HotCall] = []
        self._arrived: list[HotCall] = []
        self._waiting: dict[HotCall, float] = {}

    def attach(self, server: grpc.Server) -> None:
        """Register the methods for this loop at a server that has not started."""
        self._server = server._state.server  # type: ignore[attr-defined]  # noqa: SLF001 - see above
        self._server.register_completion_queue(self._queue)
        for one in self._methods:
            self._server.register_method(one.here.spec.path)

    def start(self) -> None:
        """Begin to serve; the server has started."""
        for one in self._methods:
            for _ in range(_REQUESTED):
                self._request(one)
        if self._judge is not None:
            self._judge.start()
        self._thread.start()

    def close(self) -> None:
        """End the thread; the server has ended, and every call with it."""
        with self.gate:
            self._is_closed = True
        self._queue.shutdown()
        if self._thread.is_alive():
            self._thread.join()
        if self._judge is not None:
            self._judge.close()

    def answers_within(self, seconds: float) -> bool:
        """Return whether the loop waits for calls, or ends a turn in that time.

        Every turn counts, so that a loop with more to do than it can is busy and not dead.
        """
        self._turn_ended.clear()
        return self._is_waiting or self._turn_ended.wait(seconds)

    # --- on the thread of the loop ----------------------------------------------------------------

    def _run(self) -> None:
        is_open = True
        while is_open:
            try:
                is_open = self._take_events()
                self._serve_arrived()
                self._hand_over_slow()
            except Exception:  # what serves everybody goes on after an error that nobody foresaw
                log.exception("hot_loop_failed")
            self._turn_ended.set()

    def _take_events(self) -> bool:
        """Wait for an event, and handle all that are ready; return False once the queue ended."""
        poll = self._queue.poll
        wait_s = SLOW_AFTER_S if self._waiting else _IDLE_S
        self._is_waiting = True
        event = poll(_machine_clock.now() / SECOND + wait_s)
        self._is_waiting = False
        taken = 0
        while event.completion_type not in (_TIMEOUT, _SHUTDOWN):
            event.tag(event)
            taken += 1
            if taken == MAX_EVENTS:
                return True
            event = None  # what has ended is let go before the next is asked for
            event = poll(_NOW)
        return bool(event.completion_type != _SHUTDOWN)

    def _request(self, method: HotMethod) -> None:
        queue = self._queue
        try:
            self._server.request_registered_call(
                queue, queue, method.here.spec.path, _Requested(self, method)
            )
        except ValueError:
            return  # the server stops, and accepts no calls any more

    def _serve_arrived(self) -> None:
        if self._begun:
            now = _machine_clock.monotonic()
            self._waiting.update((call, now) for call in self._begun if not call.has_arrived)
            self._begun.clear()
        if self._arrived:
            arrived, self._arrived = self._arrived, []
            if self._judge is None:
                self._judge_group(arrived)
                return
            for call in arrived:
                if self._judge.has_room:
                    self._judge.take(call)
                else:
                    self.refuse_overload(call, self._judge.NAME)

    def _hand_over_slow(self) -> None:
        if not self._waiting:
            return
        now = _machine_clock.monotonic()
        slow = [call for call, since in self._waiting.items() if now - since > SLOW_AFTER_S]
        for call in slow:
            del self._waiting[call]
            call.wait_elsewhere()

    # --- on the thread that judges ----------------------------------------------------------------

    def _judge_group(self, arrived: "list[HotCall]") -> None:
        """Judge calls whose message has come, and answer them."""
        self._reads.begin()
        if self._judge is not None and not self._read_ahead(arrived):
            return
        admitted = [one for call in arrived if (one := self._admitted(call)) is not None]
        arrived.clear()  # a call that has ended is let go
        if self._read(admitted):
            for call, context, message in admitted:
                self._answer(call, context, message)

    def _read_ahead(self, arrived: "list[HotCall]") -> bool:
        """Read the callers of a group, and what they ask about, by one statement.

        A message that does not parse is refused later, once its caller has been judged. When the
        store refuses, the calls are handed over.
        """
        tokens: list[str] = []
        for call in arrived:
            with suppress(ServiceError):
                tokens.append(presented_in(call).token)
                asked = call.method.tokens_in(call.method.here.parse(call.raw))
                if len(asked) <= MAX_ITEMS:
                    tokens += asked
        try:
            self._reads.prepare(map(id_in, tokens))
        except StoreError:
            for call in arrived:
                call.hand_over(call.method.ordinary.answer, call)
            arrived.clear()
            return False
        return True

    def _admitted(self, call: "HotCall") -> "tuple[HotCall, CallContext, Any] | None":
        """Return a call that is to be judged here, with its message; None for every other."""
        if not call.is_alive:
            call.end(_TOO_LATE)
            return None
        method = call.method
        context = method.here.begin(call)
        try:
            method.here.admit(context, call)
            message = method.here.parse(call.raw)
            if len(method.tokens_in(message)) <= MAX_ITEMS:
                return call, context, message
        except ElsewhereError:
            call.hand_over(method.ordinary.answer, call)
        except Exception as error:  # noqa: BLE001 - the ordinary path knows what becomes of it
            call.hand_over(method.ordinary.refuse, context, error)
        else:
            call.hand_over(method.ordinary.finish, context, call.raw)
        return None

    def _read(self, admitted: "list[tuple[HotCall, CallContext, Any]]") -> bool:
        """Read what the whole group asks about; hand it over when the store refuses that."""
        tokens = (
            token for call, _, message in admitted for token in call.method.tokens_in(message)
        )
        try:
            self._reads.prepare(map(id_in, tokens))
        except StoreError:
            for call, context, _ in admitted:
                call.hand_over(call.method.ordinary.finish, context, call.raw)
            return False
        return True

    def _answer(self, call: "HotCall", context: CallContext, message: Any) -> None:
        method = call.method
        if self._is_closed or not call.is_alive:  # those before it may have taken long
            call.end(_TOO_LATE)
            return
        try:
            answer = method.here.serve(context, message)
        except ElsewhereError:
            call.hand_over(method.ordinary.finish, context, call.raw)
        except Exception as error:  # noqa: BLE001 - the ordinary path knows what becomes of it
            call.hand_over(method.ordinary.refuse, context, error)
        else:
            call.end(answer)
            method.here.served(context)

    # --- for the calls ----------------------------------------------------------------------------

    def start_batch(
        self, call: Any, operations: tuple[Any, ...], then: Callable[[Any], None]
    ) -> None:
        """Start operations of a call, unless the queue that hears of their end is shut down.

        The server may end while calls are still judged, and grpc ends the process for an operation
        on a queue that is shut down.
        """
        with self.gate:
            error = 0 if self._is_closed else call.start_server_batch(operations, then)
        if error:
            raise RuntimeError(f"grpc refused a batch of operations: {error}")

    @property
    def watchdog(self) -> MessageWatchdog:
        """Watches the slow senders on the ordinary path."""
        return self._watchdog

    def begin(self, event: Any, method: HotMethod) -> None:
        """Begin a call of a method."""
        if not event.success:  # the server stops
            return
        self._request(method)
        call = HotCall(self, method, event)
        if call.is_private:
            call.end(_NO_CREDENTIAL)
        else:
            self._begun.append(call)
            call.receive()

    def refuse_overload(self, call: "HotCall", where: str) -> None:
        """Answer a call that there is no room for."""
        self._on_overload(where)
        call.end(_OVERLOADED)

    def arrived(self, call: "HotCall") -> None:
        """Have a call judged whose message has come."""
        self._arrived.append(call)

    def wait_for(self, call: "HotCall") -> None:
        """Have a call hear of it when nothing comes for SLOW_AFTER_S."""
        self._waiting[call] = _machine_clock.monotonic()

    def wait_no_more_for(self, call: "HotCall") -> None:
        """Forget what `wait_for` was told."""
        self._waiting.pop(call, None)


class _Judge:
    """A thread that judges everything that has come while it judged what came before."""

    NAME = "hot-loop-judge"

    def __init__(self, judge: Callable[[list["HotCall"]], None]) -> None:
        self._judge_group = judge
        self._calls: SimpleQueue[HotCall | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=self.NAME, daemon=True)

    @property
    def has_room(self) -> bool:
        """Whether one more call may wait."""
        return self._calls.qsize() < MAX_WAITING

    def start(self) -> None:
        """Begin to judge."""
        self._thread.start()

    def take(self, call: "HotCall") -> None:
        """Have a call judged, together with what waits already."""
        self._calls.put(call)

    def close(self) -> None:
        """Judge what waits, and end the thread; nothing may be taken any more."""
        self._calls.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            taken = [self._calls.get()]
            while len(taken) < MAX_EVENTS and not self._calls.empty():
                taken.append(self._calls.get())
            is_open = None not in taken
            try:
                self._judge_group([call for call in taken if call is not None])
            except Exception:  # see HotLoop._run
                log.exception("hot_loop_failed")


class _Requested:
    """Is called with the event of a call that was asked for."""

    __slots__ = ("_loop", "_method")

    def __init__(self, loop: HotLoop, method: HotMethod) -> None:
        self._loop = loop
        self._method = method

    def __call__(self, event: Any) -> None:
        self._loop.begin(event, self._method)


class HotCall:
    """One call, a `Request` of the pipeline."""

    __slots__ = (
        "_call",
        "_deadline",
        "_is_close_asked",
        "_late",
        "_loop",
        "has_arrived",
        "metadata",
        "method",
        "raw",
    )

    def __init__(self, loop: HotLoop, method: HotMethod, event: Any) -> None:
        self._loop = loop
        self._call = event.call
        self._deadline = event.call_details.deadline
        self._is_close_asked = False
        self._late: SimpleQueue[Any] | None = None
        self.method = method
        self.metadata: Metadata = event.invocation_metadata
        self.has_arrived = False
        """Whether the message has come, or it is known that none will."""
        self.raw = b""

    @property
    def peer(self) -> str:
        """The address of the other end, without its port; the family where it has none."""
        return host_of(self._call.peer().decode())

    @property
    def is_alive(self) -> bool:
        """Whether the deadline of the call is still to come."""
        return bool(self._deadline is None or self._deadline > _machine_clock.now() / SECOND)

    @property
    def remaining_s(self) -> float | None:
        """How many seconds the caller may still wait; None without a deadline."""
        if self._deadline is None:
            return None
        return float(self._deadline - _machine_clock.now() / SECOND)

    @property
    def is_private(self) -> bool:
        """Whether the call came over the private listener."""
        if self._call.peer() != _UNIX:
            return False
        facts = _cygrpc.auth_context(self._call) or {}
        return list(facts.get(b"transport_security_type", ())) == [b"local"]

    # --- on the thread of the loop ----------------------------------------------------------------

    def receive(self) -> None:
        """Ask for the message."""
        self._start((_cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._received)

    def wait_elsewhere(self) -> None:
        """Have the ordinary path judge the caller, and wait there for the message."""
        if self._late is None:
            self._late = SimpleQueue()
            self.hand_over(self.method.ordinary.answer, self)
        if self.has_arrived:
            self._late.put(None)

    def hand_over(self, work: Callable[..., bytes | Status], *arguments: Any) -> None:
        """Have the ordinary path answer the call by what `work` returns, if there is room."""
        executor = self.method.executor
        if executor.has_room:
            executor.submit(self._answer_by, work, arguments)
        else:
            self._loop.refuse_overload(self, executor.name)

    def _received(self, event: Any) -> None:
        message: bytes | None = event.batch_operations[0].message()
        self.has_arrived = True
        if not event.success:
            self._ends_waiting(_GONE)
        elif message is not None:
            self._ends_waiting(message)
        elif self._is_first_to_ask_close():
            # A call that was taken back has no message either; this tells one from the other. One
            # that the ordinary path has ended meanwhile needs nothing more.
            self._start((_cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._closed)
            self._loop.wait_for(self)

    def _closed(self, event: Any) -> None:
        if event.batch_operations[0].cancelled():
            self._ends_waiting(_GONE)

    def _ends_waiting(self, received: Any) -> None:
        self._loop.wait_no_more_for(self)
        if self._late is not None:
            self._late.put(received)
        elif received is not _GONE:
            self.raw = received
            self._loop.arrived(self)

    # --- on any thread ----------------------------------------------------------------------------

    def message(self) -> bytes:
        """Wait for the message; see `MessageWatchdog.first_message`."""
        if self._late is None:
            return self.raw
        late = iter(self._late.get, None)
        return self._loop.watchdog.first_message(
            _unless_gone(late), self._call, self.method.executor
        )

    def end(self, answer: bytes | Status) -> None:
        """Send the answer, or the status of a call that failed. To be called once."""
        operations = [_cygrpc.SendInitialMetadataOperation(None, _NO_FLAGS)]
        if isinstance(answer, Status):
            details = ((DETAILS_KEY, answer.SerializeToString()),)
            code, text = answer.code, answer.message
        else:
            operations.append(_cygrpc.SendMessageOperation(answer, _NO_FLAGS))
            details, code, text = None, _OK, ""
        operations.append(_cygrpc.SendStatusFromServerOperation(details, code, text, _NO_FLAGS))
        if self._is_first_to_ask_close():
            operations.append(_cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
        self._start(tuple(operations), _ended)

    def _is_first_to_ask_close(self) -> bool:
        """Return whether the end of the call is still to be asked for; grpc takes that once."""
        with self._loop.gate:
            is_first = not self._is_close_asked
            self._is_close_asked = True
            return is_first

    def _answer_by(self, work: Callable[..., bytes | Status], arguments: tuple[Any, ...]) -> None:
        self.end(work(*arguments))

    def _start(self, operations: tuple[Any, ...], then: Callable[[Any], None]) -> None:
        self._loop.start_batch(self._call, operations, then)


def _unless_gone(messages: Iterator[Any]) -> Iterator[bytes]:
    for message in messages:
        if message is _GONE:
            raise ConnectionError
        yield message


def _ended(_event: Any) -> None:
    """Do nothing: the call is let go with its event."""
