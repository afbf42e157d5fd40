"""grpc.health.v1.Health, for callers with and without a credential.

Written here instead of taken from grpcio-health-checking, whose servicer sends while it holds a
lock that grpc's one serving thread needs when a stream ends: a client that opened and cancelled
Watch in a loop stopped every call of everybody, for good. Here one thread owns the streams, and
nothing that runs on the serving thread waits for it.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2 as pb

from keybearer_service.domain.errors import FieldInvalid, ResourceNotFound, StreamEnded
from keybearer_service.domain.rate_limits import ConcurrencyLimit
from keybearer_service.net.bounds import peer_of
from keybearer_service.rpc.methods import public_specs_of
from keybearer_service.rpc.requests import MessageStream
from keybearer_service.usecases.call_context import CallContext

SERVICE = "grpc.health.v1.Health"
LIVENESS = "liveness"
"""The service name that asks whether the process answers, without a look at the store."""
SPECS = public_specs_of(pb.DESCRIPTOR.services_by_name["Health"])
"""Check and Watch; List too where the library knows it."""
MAX_WATCHES = 1000
"""Open Watch streams in all; beyond, RESOURCE_EXHAUSTED."""
MAX_WATCHES_OF_A_PEER = 250
POLL_S = 1.0
"""How long a change of status may go unnoticed by a Watch stream."""
_SERVING = pb.HealthCheckResponse.SERVING
_NOT_SERVING = pb.HealthCheckResponse.NOT_SERVING
_UNKNOWN = pb.HealthCheckResponse.SERVICE_UNKNOWN
_LISTED = "HealthListResponse"

log = structlog.get_logger(__name__)


class HealthServicer:
    """Answers for the server ("") and each of its services alike, and for `liveness`."""

    def __init__(
        self,
        services: Iterable[str],
        *,
        is_ready: Callable[[], bool],
        is_live: Callable[[], bool],
    ) -> None:
        """Create the servicer; `start` begins to serve Watch streams.

        Args:
            services: The full names of the services.
            is_ready: Returns whether calls can be answered; may take up to 2 s.
            is_live: Returns whether the process answers at all; may take up to 2 s.
        """
        self._answers = {LIVENESS: is_live, **dict.fromkeys(("", *services), is_ready)}
        self._limit = ConcurrencyLimit(in_all=MAX_WATCHES, of_one=MAX_WATCHES_OF_A_PEER)
        self._asked: deque[tuple[MessageStream, str]] = deque()
        self._left: deque[MessageStream] = deque()
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        # The thread alone touches this: the service asked about, and what was sent last.
        self._streams: dict[MessageStream, tuple[str, int]] = {}

    def Check(self, request: pb.HealthCheckRequest, _call: CallContext) -> pb.HealthCheckResponse:  # noqa: N802 - named by the proto
        """Return the status of a service."""
        is_well = self._answers.get(request.service)
        if is_well is None:
            raise ResourceNotFound("service", request.service)
        return pb.HealthCheckResponse(status=_SERVING if is_well() else _NOT_SERVING)

    def List(self, request: Message, _call: CallContext) -> Any:  # noqa: N802 - named by the proto
        """Return the status of every service."""
        file: Any = request.DESCRIPTOR.file
        response: Any = GetMessageClass(file.message_types_by_name[_LISTED])()
        status = _SERVING if self._answers[""]() else _NOT_SERVING
        for name in self._answers.keys() - {LIVENESS}:
            response.statuses[name].status = status
        return response

    def Watch(self, stream: MessageStream, call: CallContext) -> None:  # noqa: N802 - named by the proto
        """Send the status of a service now and whenever it changes."""
        peer = peer_of(call.peer)
        self._limit.acquire(peer)
        asked = False

        def ask(request: pb.HealthCheckRequest) -> None:
            nonlocal asked
            if asked:
                raise FieldInvalid("(message)", "exactly one message is needed")
            asked = True
            self._asked.append((stream, request.service))
            self._wake.set()

        def leave() -> None:
            self._limit.release(peer)
            self._left.append(stream)
            self._wake.set()

        stream.listen(ask, leave)

    def start(self) -> None:
        """Begin to serve Watch streams."""
        self._thread.start()

    def close(self) -> None:
        """Send NOT_SERVING to every Watch stream, and end it."""
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(POLL_S if self._streams else None)
            self._wake.clear()
            try:
                self._turn()
            except Exception:  # the thread goes on after an error that nobody foresaw
                log.exception("health_watch_failed")
        self._take_in()
        for stream, (_, sent) in self._streams.items():
            if sent == _SERVING:
                stream.send(pb.HealthCheckResponse(status=_NOT_SERVING))
            stream.end(StreamEnded("the server stops"))
        self._streams.clear()

    def _turn(self) -> None:
        self._take_in()
        statuses: dict[str, int] = {}
        for stream, (service, sent) in list(self._streams.items()):
            if service not in statuses:
                statuses[service] = self._status_of(service)
            if statuses[service] != sent:
                stream.send(pb.HealthCheckResponse(status=statuses[service]))
                self._streams[stream] = (service, statuses[service])

    def _take_in(self) -> None:
        # Those that left are read first, for a stream is asked about before it can leave.
        left = [self._left.popleft() for _ in range(len(self._left))]
        for _ in range(len(self._asked)):
            stream, service = self._asked.popleft()
            self._streams[stream] = (service if service in self._answers else "(unknown)", -1)
        for stream in left:
            self._streams.pop(stream, None)

    def _status_of(self, service: str) -> int:
        is_well = self._answers.get(service)
        if is_well is None:
            return _UNKNOWN
        return _SERVING if is_well() else _NOT_SERVING
