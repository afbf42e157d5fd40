"""A server that was replaced by its standby, and does not know it, is not believed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import postgres_server
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.model import Pepper
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import StoreLockedError
from postgres_primary import Primary
from postgres_proxy import Proxy
from samples import fill, sample_id
from storage.test_postgres_nodes import is_refused, until

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from keybearer_service.storage.postgres import PostgresStore

KEY = sample_id("key")
READS: dict[str, Callable[[PostgresStore], object]] = {
    "lookup": lambda store: store.lookup(KEY),
    "lookup_many": lambda store: store.lookup_many([KEY]),
    "changes_since": lambda store: store.changes_since(0, 1),
    "version": lambda store: store.version(),
}
"""What verdicts and watchers read."""


@pytest.fixture
def primary() -> Iterator[Primary]:
    """A server of its own."""
    postgres_server.server()  # skips where there is none
    started = Primary()
    yield started
    started.close()


@contextmanager
def joined(url: DatabaseUrl) -> Iterator[PostgresStore]:
    """Open a store as a node."""

    def holds(_pepper: Pepper) -> bool:
        return False

    store = PostgresStore(url, clock=SystemClock(), entropy=SystemEntropy())
    try:
        store.join("node", holds)
        yield store
    finally:
        store.close()


def is_proof_needed(store: PostgresStore) -> bool:
    """Return whether the node has noticed that its database has standbys."""
    return not store.is_proven_since(store.proofs_begun)


def test_without_standbys_nothing_needs_a_proof(primary: Primary) -> None:
    """A full disk, which stops every commit, does not stop validation there."""
    with joined(primary.url) as store:
        fill(store)
        assert not is_proof_needed(store)


def test_a_server_that_its_standby_has_left_answers_nothing_after_2_s(primary: Primary) -> None:
    """Neither over old connections nor over new ones, until its standby is back."""
    with joined(primary.url) as store:
        fill(store)
        primary.attach()
        until(lambda: is_proof_needed(store))
        assert store.lookup(KEY)[0] is not None
        primary.detach()
        until(lambda: is_refused(lambda: store.lookup(KEY)))
        for read in READS.values():
            with pytest.raises(StoreLockedError, match="real one"):
                read(store)
        begun = store.proofs_begun
        assert not store.is_proven_since(begun)
        primary.attach()
        until(lambda: not is_refused(lambda: store.lookup(KEY)))
        until(lambda: store.is_proven_since(begun))


def test_a_proof_vouches_for_its_own_server_alone(primary: Primary) -> None:
    """What another one says, over a connection that a balancer has led there, is thrown away."""
    other = Primary()
    try:
        with joined(other.url) as filling:
            fill(filling)
        with Proxy(primary.url) as proxy, joined(proxy.url) as store:
            fill(store)
            primary.attach()
            until(lambda: is_proof_needed(store))
            proxy.lead_to(other.url)  # new connections; that of the proofs stays
            for read in READS.values():
                with pytest.raises(StoreLockedError, match="another server"):
                    read(store)
    finally:
        other.close()


def test_a_server_that_wants_no_standbys_any_more_is_believed(primary: Primary) -> None:
    """The log says so, loudly: it proves nothing from now on."""
    with joined(primary.url) as store:
        fill(store)
        primary.attach()
        until(lambda: is_proof_needed(store))
        primary.have_none()
        until(lambda: not is_proof_needed(store))
        assert store.lookup(KEY)[0] is not None
