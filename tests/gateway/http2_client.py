"""An HTTP/2 client that sends pseudo-headers and headers exactly as they are given."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events

TIMEOUT_S = 15


class Http2Client:
    """One connection, by prior knowledge; one request at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        # Nothing that it sends is checked: the gateway is what is tested.
        config = h2.config.H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._protocol = h2.connection.H2Connection(config)
        self._protocol.initiate_connection()
        self._flush()

    def request(self, headers: list[tuple[str, str]]) -> tuple[int, bytes]:
        """Send a request without a body, and return the status and the body of its answer.

        Raises:
            ConnectionError: The gateway closed the connection, or reset the stream.
        """
        stream = self._protocol.get_next_available_stream_id()
        self._protocol.send_headers(stream, headers, end_stream=True)
        self._flush()
        status, body = 0, b""
        while True:
            received = self._socket.recv(65536)
            if not received:
                raise ConnectionError("closed")
            for event in self._protocol.receive_data(received):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    self._protocol.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, h2.events.StreamEnded):
                    self._flush()
                    return status, body
                elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    raise ConnectionError("reset")
            self._flush()

    def _flush(self) -> None:
        self._socket.sendall(self._protocol.data_to_send())


@contextmanager
def http2_client(port: int) -> Iterator[Http2Client]:
    """Connect to a port of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        yield Http2Client(connection)
