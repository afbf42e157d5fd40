"""A server that was replaced by its standby, and does not know it, is not believed."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

import postgres_server
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.model import Pepper
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import (
    CommitFailedError,
    ProofMode,
    StoreLockedError,
    StoreUnusableError,
)
from postgres_primary import Primary
from postgres_proxy import Proxy
from samples import add_keys, fill, sample_id, sample_key
from storage.test_postgres_nodes import PATIENCE_S, is_refused, until

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

from keybearer_service.storage.postgres import PostgresStore

KEY = sample_id("key")
CANCEL_WAITS = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def read_installation(store: PostgresStore) -> object:
    """Read something as a caller does who asks for it."""
    with store.read() as reader:
        return reader.installation()


def refuse_write(store: PostgresStore) -> None:
    """Begin a change that is refused because of what is read."""
    with store.write():
        raise LookupError


READS: dict[str, Callable[[PostgresStore], object]] = {
    "lookup": lambda store: store.lookup(KEY),
    "lookup_many": lambda store: store.lookup_many([KEY]),
    "changes_since": lambda store: store.changes_since(0, 1),
}
"""What verdicts and watchers read."""
CALLS = {**READS, "read": read_installation, "refused write": refuse_write}
"""The same, and what callers are told of what was read."""


@pytest.fixture
def primary() -> Iterator[Primary]:
    """A server of its own."""
    postgres_server.server()  # skips where there is none
    started = Primary()
    yield started
    started.close()


@contextmanager
def joined(url: DatabaseUrl, proof: ProofMode = ProofMode.AUTO) -> Iterator[PostgresStore]:
    """Open a store as a node."""

    def holds(_pepper: Pepper) -> bool:
        return False

    store = PostgresStore(url, clock=SystemClock(), entropy=SystemEntropy())
    try:
        store.join("node", holds, proof)
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


def test_what_a_new_primary_says_does_not_let_the_one_before_it_be_believed(
    primary: Primary,
) -> None:
    """Not even while the new one has no standbys yet, and proves nothing."""
    other = Primary()
    try:
        with joined(other.url) as filling:
            fill(filling)
        with Proxy(primary.url) as proxy, joined(proxy.url) as store:
            fill(store)
            primary.attach()
            until(lambda: is_proof_needed(store))
            proxy.lead_to(other.url)
            proxy.cut_all()
            until(lambda: not is_proof_needed(store))
            proxy.lead_to(primary.url)  # new connections; that of the proofs stays
            for call in CALLS.values():
                with pytest.raises(StoreLockedError, match="another server"):
                    call(store)
    finally:
        other.close()


def test_another_host_is_asked_when_one_can_prove_nothing(primary: Primary) -> None:
    """One that was replaced and does not know it says for ever that it takes writes."""
    other, elsewhere = Primary(), sample_key("elsewhere")
    try:
        with joined(other.url) as filling:
            fill(filling)
            add_keys(filling, elsewhere)
        with joined(primary.url) as filling:
            fill(filling)
        second = quote(str(other.server.directory), safe="")
        with joined(DatabaseUrl(text=f"{primary.url.text},{second}")) as store:
            primary.attach()
            until(lambda: is_proof_needed(store))
            assert store.lookup(elsewhere.id)[0] is None
            primary.detach()
            until(lambda: is_refused(lambda: store.lookup(KEY)))
            until(lambda: not is_refused(lambda: store.lookup(KEY)))
            assert store.lookup(elsewhere.id)[0] is not None
    finally:
        other.close()


def test_a_commit_that_was_cancelled_while_it_waited_for_a_standby_is_unknown(
    primary: Primary,
) -> None:
    """The server says COMMIT, with a warning: a failover may undo it."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'"
    )
    store = PostgresStore(
        primary.url, clock=SystemClock(), entropy=SystemEntropy(), limit_s=PATIENCE_S
    )
    fill(store)
    primary.attach()
    primary.detach()
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit(add_keys, store, sample_key("waits"))
        until(lambda: postgres_server.value_of(primary.url.text, waiting) == 1)
        postgres_server.execute(primary.url.text, CANCEL_WAITS)
        with pytest.raises(CommitFailedError, match="canceling wait") as caught:
            writing.result(PATIENCE_S)
    assert not caught.value.is_fatal
    store.close()


def test_a_proof_that_was_cancelled_while_it_waited_for_a_standby_proves_nothing(
    primary: Primary,
) -> None:
    """The server says that it has committed, with a warning."""
    with joined(primary.url) as store:
        fill(store)
        primary.attach()
        until(lambda: is_proof_needed(store))
        primary.detach()

        def is_refused_while_waits_are_cancelled() -> bool:
            postgres_server.execute(primary.url.text, CANCEL_WAITS)
            return is_refused(lambda: store.lookup(KEY))

        until(is_refused_while_waits_are_cancelled)


def test_a_server_that_wants_no_standbys_any_more_is_believed(primary: Primary) -> None:
    """The log says so, loudly: it proves nothing from now on."""
    with joined(primary.url) as store:
        fill(store)
        primary.attach()
        until(lambda: is_proof_needed(store))
        primary.have_none()
        until(lambda: not is_proof_needed(store))
        assert store.lookup(KEY)[0] is not None


def test_a_database_that_always_has_to_prove_itself_needs_standbys(primary: Primary) -> None:
    """A node does not start without, and answers nothing once they are gone."""
    with (
        pytest.raises(StoreUnusableError, match="synchronous_standby_names"),
        joined(primary.url, ProofMode.ON),
    ):
        pass
    primary.attach()
    with joined(primary.url, ProofMode.ON) as store:
        fill(store)
        assert store.lookup(KEY)[0] is not None
        primary.have_none()
        until(lambda: is_refused(lambda: store.lookup(KEY)))


def test_a_database_that_never_has_to_prove_itself_is_believed(primary: Primary) -> None:
    """Whoever says so fences a server that was replaced."""
    primary.attach()
    with joined(primary.url, ProofMode.OFF) as store:
        fill(store)
        assert not is_proof_needed(store)


@pytest.mark.parametrize("is_synchronous", [False, True])
def test_a_start_warns_of_asynchronous_standbys(primary: Primary, *, is_synchronous: bool) -> None:
    """A failover to one of them can undo what was acknowledged."""
    if is_synchronous:
        primary.attach()
    else:
        primary.standby = primary.server.standby("other")
    followers = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    until(lambda: postgres_server.value_of(primary.url.text, followers) == 1)
    with capture_logs() as logs, joined(primary.url):
        pass
    warned = [one for one in logs if one["event"] == "asynchronous_standbys"]
    assert len(warned) == (not is_synchronous)
