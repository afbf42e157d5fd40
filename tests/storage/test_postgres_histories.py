"""A database that goes on without its last changes goes on under another epoch."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

import postgres_server
from backends import open_postgres
from fakes import START
from keybearer_service.container import migrate_store
from keybearer_service.domain.model import SubjectKind
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import Store, StoreLockedError
from keybearer_service.watch.feed import ChangeFeed, GapError, WentBackError
from postgres_proxy import Proxy
from postgres_server import Server
from samples import fill, sample_id
from storage.test_postgres_nodes import until

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

import psycopg

ACCT = sample_id("acct")
KEY = sample_id("key")


@pytest.fixture
def store(url: DatabaseUrl) -> Iterator[Store]:
    """A store with an installation."""
    opened = open_postgres(url)
    fill(opened)
    yield opened
    opened.close()


def change(store: Store) -> int:
    """Commit a change; return its revision."""
    with store.write() as tx:
        return tx.append_change(kind=SubjectKind.KEY, subject_id=KEY, account_id=ACCT, now=START)


def has_revision(url: DatabaseUrl, revision: int) -> bool:
    """Return whether a server has come to a revision."""
    try:
        found = postgres_server.value_of(url.text, "SELECT revision FROM installation")
    except psycopg.Error:
        return False  # it has not got the tables yet
    return str(found) == str(revision)


def test_an_epoch_is_the_installations_on_its_own_server(store: Store) -> None:
    """Nothing is drawn as long as the server stays."""
    with store.read() as reader:
        epoch = reader.installation().epoch
    change(store)
    assert store.changes_since(0, 1).epoch == epoch
    assert store.lookup(KEY)[1] == (epoch, 1)


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    """A primary and an asynchronous standby."""
    postgres_server.server()  # skips where there is none
    primary = Server()
    standby = Server(primary)
    yield primary, standby
    standby.close()
    primary.close()


def test_revisions_that_a_failover_has_lost_are_used_again_under_another_epoch(
    servers: tuple[Server, Server],
) -> None:
    """No watcher takes one for the other, and no verdict from before is kept after it."""
    primary, standby = servers
    postgres_server.execute(primary.url("postgres"), "CREATE DATABASE k")
    here, there = (DatabaseUrl(text=one.url("k")) for one in servers)
    migrate_store(here)
    with Proxy(here) as proxy:
        store, other = open_postgres(proxy.url), open_postgres(proxy.url)
        fill(store)
        kept = change(store)
        until(lambda: has_revision(there, kept))
        standby.stop()
        lost = change(store)
        before = store.changes_since(0, 10)
        assert before.head == lost
        primary.stop()
        standby.start()
        standby.promote()
        proxy.lead_to(there)
        proxy.cut_all()
        with capture_logs() as logs, pytest.raises(GapError) as caught:
            ChangeFeed(store).since(before.epoch, before.head)
        assert not isinstance(caught.value, WentBackError)
        assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["history_begun"]
        after = store.changes_since(0, 10)
        assert after.epoch != before.epoch
        assert after.head == kept
        # The first that comes draws it, for all.
        assert other.changes_since(0, 10).epoch == store.lookup(KEY)[1].epoch == after.epoch
        assert change(other) == lost
        store.close()
        other.close()


def test_a_standby_answers_nothing(servers: tuple[Server, Server]) -> None:
    """What it has may be old, whatever the URL says."""
    _, standby = servers
    url = DatabaseUrl(text=f"{standby.url('postgres')}&target_session_attrs=any")
    with pytest.raises(StoreLockedError, match="standby"):
        open_postgres(url)


def test_a_write_on_another_server_does_not_wait_for_a_watcher(
    store: Store, url: DatabaseUrl
) -> None:
    """Whoever is first there begins the history, before a revision is used again."""
    before = store.changes_since(0, 1).epoch
    postgres_server.execute(url.text, "UPDATE installation SET server = 'another'")
    assert store.lookup(KEY)[1].epoch == before  # what was read is of the history before
    change(store)
    epoch = store.lookup(KEY)[1].epoch
    assert epoch != before
    change(store)
    assert store.changes_since(0, 1).epoch == epoch


def test_a_head_that_goes_back_in_one_history_is_told_apart(store: Store, url: DatabaseUrl) -> None:
    """Nothing explains it: whoever follows starts afresh."""
    newest = change(store)
    epoch = store.changes_since(0, 1).epoch
    postgres_server.execute(url.text, "UPDATE installation SET revision = revision - 1")
    with pytest.raises(WentBackError):
        ChangeFeed(store).since(epoch, newest)
