"""The nodes over one database: each writes twice a second that it is there, and how it is.

The same statement reads the database's clock. Times are judged by the clock of each node, so a node
whose clock is off would let expired keys in, or keep good ones out.

And its commit is the proof that the server was not replaced by a standby of its own without
noticing: one that was still answers reads, and waits for ever for a standby to acknowledge a
commit.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import psycopg
import structlog

from keybearer_service.domain.clock import SECOND, Clock, Micros
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Pepper
from keybearer_service.storage import (
    Node,
    ProofMode,
    StoreClosedError,
    StoreError,
    StoreLockedError,
    StoreUnusableError,
)
from keybearer_service.storage.postgres_connections import Connection, Hosts, Pool
from keybearer_service.storage.postgres_errors import store_error
from keybearer_service.storage.postgres_writes import Writes

log = structlog.get_logger(__name__)

BEAT_S: Final = 0.5
NOTABLE_OFFSET_S: Final = 0.25
"""A clock that is off by more is logged."""
MOST_OFFSET_S: Final = 1.0
"""With one that is off by more nothing is judged."""
PROVEN_FOR_S: Final = 2.0
"""How long a proof vouches for its server, from its begin."""
UNKNOWN_AFTER_S: Final = 10.0
"""Nor when the clocks have not been compared for so long."""
_COMPARED: Final = 3
"""Comparisons of which the smallest counts, so that no single one stops a node."""
_DEAD_AFTER: Final = "interval '10 seconds'"
_FORGOTTEN_AFTER: Final = "interval '1 hour'"
_ID_LENGTH: Final = 16

_ENTER: Final = "INSERT INTO nodes VALUES (?, ?, now(), '', NULL)"
_BEAT: Final = (
    "WITH beat AS (INSERT INTO nodes VALUES ($1, $2, now(), $3, $4) ON CONFLICT (id) DO UPDATE"
    " SET beat_time = now(), peppers = excluded.peppers, clock_offset = excluded.clock_offset"
    " RETURNING (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS time,"
    " current_setting('synchronous_standby_names') AS standbys)"
    " SELECT beat.time, beat.standbys, p.id, p.check_value, p.create_time"
    " FROM beat LEFT JOIN peppers p ON p.is_announced = 1 AND p.retire_time IS NULL"
)
_ASYNCHRONOUS: Final = (
    # Whoever may not see more sees that there are standbys, and not of which kind.
    "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'async'"
    " OR sync_state IS NULL AND current_setting('synchronous_standby_names') = ''"
)
_NODES: Final = f"SELECT name, peppers FROM nodes WHERE beat_time > now() - {_DEAD_AFTER}"
FORGET_NODES: Final = f"DELETE FROM nodes WHERE beat_time < now() - {_FORGOTTEN_AFTER}"


class _Proof(NamedTuple):
    """That a server could commit, which one that was replaced by its standby cannot."""

    server: str
    began_at: float
    number: int
    is_needed: bool
    """Whether it has synchronous standbys."""


class Membership:
    """This node among the others, once it has joined them."""

    def __init__(
        self,
        pool: Pool,
        writes: Writes,
        clock: Clock,
        entropy: Entropy,
        *,
        hosts: Hosts,
        on_other_server: Callable[[], None],
    ) -> None:
        """Prepare to join.

        Args:
            pool: Opens the connection of the beats.
            writes: Writes that this node begins.
            clock: The clock of this machine.
            entropy: The randomness.
            hosts: Where connections lead first.
            on_other_server: Called when another server has proved to be the real one.
        """
        self._hosts = hosts
        self._on_other_server = on_other_server
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
        self._mode = ProofMode.AUTO
        self._proof: _Proof | None = None
        self._has_needed_one = False
        self.proofs_begun = 0
        """How many beats have begun."""
        self._connection: Connection | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node", daemon=True)

    def join(self, name: str, holds: Callable[[Pepper], bool], mode: ProofMode) -> None:
        """Be one of the nodes, as `ServerStore.join`."""
        self._name, self._holds, self._mode = name, holds, mode
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
        if mode is ProofMode.ON and self._proof is None:
            raise StoreUnusableError(
                "database_proof = on: the database has no synchronous standbys, without which it "
                "cannot prove that none of them has taken its place; set synchronous_standby_names"
            )
        self._warn_of_standbys()
        self._thread.start()

    def _warn_of_standbys(self) -> None:
        try:
            [(count,)] = self._connected().execute(_ASYNCHRONOUS).fetchall()
        except psycopg.Error as error:
            raise store_error(error) from error
        if count:
            log.warning(
                "asynchronous_standbys",
                count=count,
                why="a failover to one of them can undo changes that were acknowledged, "
                "revocations too",
            )

    @property
    def offset_s(self) -> float:
        """How far the database's clock is ahead of this machine's, at least."""
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

    def assert_proven(self, connection: Connection | None = None) -> None:
        """Refuse to read from a server that may have been replaced.

        Args:
            connection: What was read from; without one, before the read, the age of the proof alone
                is looked at.

        Raises:
            StoreLockedError: There is no fresh proof, or none of this server.
        """
        proof = self._proof
        if proof is None or not self._has_needed_one:
            return
        if proof.is_needed and self._clock.monotonic() - proof.began_at > PROVEN_FOR_S:
            raise StoreLockedError("the database has not proved lately that it is the real one")
        # Also when the newest one has no standbys yet: the one before it may be replaced.
        if connection is not None and connection.server != proof.server:
            raise StoreLockedError("another server of the database has answered")

    def is_proven_since(self, begun: int) -> bool:
        """Return whether a proof has succeeded that began after that many."""
        proof = self._proof
        return proof is None or not proof.is_needed or proof.number > begun

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
            began_at = self._clock.monotonic()
            self.proofs_begun += 1
            before = self._clock.now()
            offset = self._offsets[-1] if self._offsets else None
            held = ",".join(sorted(self._held))
            values = (self._id, self._name, held, offset)
            with connection.warnings() as warnings:
                found = connection.execute(_BEAT, values, prepare=True).fetchall()
            after = self._clock.now()
        except psycopg.Error as error:
            self._look_elsewhere()
            raise store_error(error) from error
        except StoreError:
            self._look_elsewhere()
            raise
        if warnings:
            # A wait for a standby that was cancelled ends with one: it proves nothing.
            self._look_elsewhere()
        else:
            self._hosts.prefer(connection)
            can_prove = bool(found[0][1])
            is_needed = {
                ProofMode.AUTO: can_prove,
                ProofMode.ON: True,
                ProofMode.OFF: False,
            }[self._mode]
            if can_prove or not is_needed:
                self._take(_Proof(connection.server, began_at, self.proofs_begun, is_needed))
        self._compared_at = self._clock.monotonic()
        # What is certain: it was read at some moment between the two. Commits are slow at times.
        time = int(found[0][0])
        self._offsets.append(min(time - before, 0) + max(time - after, 0))
        announced = [
            Pepper(id=row[2], check=row[3], create_time=Micros(row[4]), is_announced=True)
            for row in found
            if row[2] is not None
        ]
        self._held = frozenset(one.id for one in announced if self._holds(one))
        self._log_offset()

    def _look_elsewhere(self) -> None:
        """Begin anew at another host: this one may have been replaced, and not know it."""
        if self._connection is not None:
            self._pool.drop(self._connection)
        self._connection = None
        self._hosts.skip()

    def _take(self, proof: _Proof) -> None:
        self._has_needed_one |= proof.is_needed
        before, self._proof = self._proof, proof
        if before is None:
            return
        if before.server != proof.server:
            log.warning("database_server_changed", server=proof.server)
            self._on_other_server()
        if before.is_needed and not proof.is_needed:
            # What it acknowledges from now on can be undone by a failover.
            log.critical("synchronous_standbys_gone")

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
