"""The nodes over one database: each writes twice a second that it is there, and how it is.

The same statement reads the database's clock. Times are judged by the clock of each node, so a node
whose clock is off would let expired keys in, or keep good ones out.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import psycopg
import structlog

from keybearer_service.domain.clock import SECOND, Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Pepper
from keybearer_service.storage import (
    Node,
    StoreClosedError,
    StoreError,
    StoreLockedError,
    StoreUnusableError,
)
from keybearer_service.storage.postgres_connections import Connection, Pool
from keybearer_service.storage.postgres_errors import store_error
from keybearer_service.storage.postgres_writes import Writes

log = structlog.get_logger(__name__)

BEAT_S: Final = 0.5
NOTABLE_OFFSET_S: Final = 0.25
"""A clock that is off by more is logged."""
MOST_OFFSET_S: Final = 1.0
"""With one that is off by more nothing is judged."""
UNKNOWN_AFTER_S: Final = 10.0
"""Nor when the clocks have not been compared for so long."""
_COMPARED: Final = 3
"""Comparisons of which the smallest counts: one beside a slow commit is no wrong clock."""
_DEAD_AFTER: Final = "interval '10 seconds'"
_FORGOTTEN_AFTER: Final = "interval '1 hour'"
_ID_LENGTH: Final = 16

_ENTER: Final = "INSERT INTO nodes VALUES (?, ?, now(), '', NULL)"
_BEAT: Final = (
    "WITH beat AS (INSERT INTO nodes VALUES ($1, $2, now(), $3, $4) ON CONFLICT (id) DO UPDATE"
    " SET beat_time = now(), peppers = excluded.peppers, clock_offset = excluded.clock_offset"
    " RETURNING (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS time)"
    " SELECT beat.time, p.id, p.check_value, p.create_time"
    " FROM beat LEFT JOIN peppers p ON p.is_announced = 1 AND p.retire_time IS NULL"
)
_NODES: Final = f"SELECT name, peppers FROM nodes WHERE beat_time > now() - {_DEAD_AFTER}"
FORGET_NODES: Final = f"DELETE FROM nodes WHERE beat_time < now() - {_FORGOTTEN_AFTER}"


class Membership:
    """This node among the others, once it has joined them."""

    def __init__(self, pool: Pool, writes: Writes, clock: Clock, entropy: Entropy) -> None:
        self._pool = pool
        self._writes = writes
        self._clock = clock
        self._id = entropy.base62(_ID_LENGTH)
        self._name = ""
        self._holds: Callable[[Pepper], bool] = lambda _pepper: False
        self._held: frozenset[str] = frozenset()
        self._offsets: deque[int] = deque(maxlen=_COMPARED)
        self._compared_at: float | None = None
        self._is_notable = False
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)

    def join(self, name: str, holds: Callable[[Pepper], bool]) -> None:
        """Be one of the nodes, as `ServerStore.join`."""
        self._name, self._holds = name, holds
        # A write, so that a pepper that is being activated is either seen by this node, which reads
        # the peppers afterwards, or waits for it.
        with self._writes.begin() as session:
            session.run(_ENTER, self._id, name)
        for _ in range(_COMPARED):
            self._beat()
        offset_s = self.offset_s
        if abs(offset_s) > MOST_OFFSET_S:
            raise StoreUnusableError(
                f"the clock of this machine is {abs(offset_s):.1f} s "
                f"{'behind' if offset_s > 0 else 'ahead of'} that of the database; set both by NTP"
            )
        self._thread.start()

    @property
    def offset_s(self) -> float:
        """How far the database's clock is ahead of this machine's."""
        return min(self._offsets, key=abs, default=0) / SECOND

    def assert_trusted(self) -> None:
        """Refuse to judge by a clock that is wrong, or may be.

        Raises:
            StoreLockedError: It is.
        """
        if self._compared_at is None:
            return
        if abs(self.offset_s) > MOST_OFFSET_S:
            raise StoreLockedError("the clock of this machine is off that of the database")
        if self._clock.monotonic() - self._compared_at > UNKNOWN_AFTER_S:
            raise StoreLockedError("the clock of the database could not be read for a while")

    def nodes(self, connection: Connection) -> Sequence[Node]:
        """Return the nodes that live."""
        found = connection.execute(_NODES).fetchall()
        return [Node(name, frozenset(filter(None, ids.split(",")))) for name, ids in found]

    def close(self) -> None:
        """Leave the nodes."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._thread.join()
        try:
            connection = self._connected()
            connection.execute("DELETE FROM nodes WHERE id = $1", (self._id,))
        except (StoreError, psycopg.Error) as error:
            # The others take it for one that died.
            log.info("node_not_left", cause=type(error).__name__)

    def _run(self) -> None:
        while not self._stopping.wait(BEAT_S):
            try:
                self._beat()
            except StoreClosedError:
                return
            except StoreError:
                continue  # told by whoever reads
            except Exception:  # the node is refused its reads after a while; it goes on trying
                log.exception("node_failed")

    def _beat(self) -> None:
        try:
            connection = self._connected()
            before = self._clock.now()
            offset = self._offsets[-1] if self._offsets else None
            held = ",".join(sorted(self._held))
            values = (self._id, self._name, held, offset)
            found = connection.execute(_BEAT, values, prepare=True).fetchall()
            middle = (before + self._clock.now()) // 2
        except psycopg.Error as error:
            if self._connection is not None:
                self._pool.drop(self._connection)
            self._connection = None
            raise store_error(error) from error
        self._compared_at = self._clock.monotonic()
        self._offsets.append(int(found[0][0]) - middle)
        announced = [
            Pepper(id=row[1], check=row[2], create_time=Micros(row[3]), is_announced=True)
            for row in found
            if row[1] is not None
        ]
        self._held = frozenset(one.id for one in announced if self._holds(one))
        self._log_offset()

    def _log_offset(self) -> None:
        is_notable = abs(self.offset_s) > NOTABLE_OFFSET_S
        if is_notable != self._is_notable:
            self._is_notable = is_notable
            event = "clock_is_off" if is_notable else "clock_is_right_again"
            log.warning(event, offset_s=round(self.offset_s, 3))

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_lost:
            self._connection = self._pool.new()
        return self._connection
