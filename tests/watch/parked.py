"""Watchers that are parked and ping: `python -m watch.parked ADDRESS COUNT`, its token on stdin.

`on` opens the streams and says `on` when all of them have pings answered; `off` ends them.
"""

import queue
import sys
import threading
import time
from typing import Any

import grpc

from keybearer.v1 import token_service_pb2 as pb
from keybearer.v1 import token_service_pb2_grpc

STREAMS_A_CONNECTION = 90
PING_EVERY_S = 0.5


class Parked:
    """So many streams that ping at 2 Hz, evenly spread."""

    def __init__(self, address: str, token: str, count: int) -> None:
        self._stop = threading.Event()
        self._channels = [
            grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(-(-count // STREAMS_A_CONNECTION))
        ]
        self._outboxes: list[queue.SimpleQueue[Any]] = []
        self._calls: list[Any] = []
        self.pongs = [0] * count
        self.failed: list[str] = []
        metadata = (("authorization", f"Bearer {token}"),)
        for number in range(count):
            outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
            subscribe = pb.WatchInvalidationsRequest.Subscribe()
            outbox.put(pb.WatchInvalidationsRequest(subscribe=subscribe))
            channel = self._channels[number // STREAMS_A_CONNECTION]
            stub = token_service_pb2_grpc.TokenServiceStub(channel)
            call = stub.WatchInvalidations(iter(outbox.get, None), metadata=metadata)
            self._outboxes.append(outbox)
            self._calls.append(call)
            threading.Thread(target=self._read, args=(number, call), daemon=True).start()
        threading.Thread(target=self._ping, daemon=True).start()

    def wait_until_answered(self) -> None:
        while not all(self.pongs):
            if self.failed:
                raise RuntimeError(self.failed[0])
            time.sleep(0.02)

    def close(self) -> None:
        self._stop.set()
        for call, outbox in zip(self._calls, self._outboxes, strict=True):
            call.cancel()
            outbox.put(None)
        for channel in self._channels:
            channel.close()

    def _read(self, number: int, call: Any) -> None:
        try:
            for response in call:
                if response.WhichOneof("message") == "pong":
                    self.pongs[number] += 1
        except grpc.RpcError as error:
            if not self._stop.is_set():
                self.failed.append(str(error))

    def _ping(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            for outbox in self._outboxes:
                ping = pb.WatchInvalidationsRequest.Ping(sent_at=time.monotonic_ns())
                outbox.put(pb.WatchInvalidationsRequest(ping=ping))
                due += PING_EVERY_S / len(self._outboxes)
                self._stop.wait(max(0.0, due - time.monotonic()))


def main() -> None:
    """Follow the protocol above."""
    token = sys.stdin.readline().strip()
    parked: Parked | None = None
    for line in sys.stdin:
        if line.strip() == "on":
            parked = Parked(sys.argv[1], token, int(sys.argv[2]))
            parked.wait_until_answered()
        elif parked is not None:
            parked.close()
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
