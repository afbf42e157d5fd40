"""A file's rows arrive in a database on PostgreSQL: all of them and as they were, or none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres_server
from backends import (
    Dump,
    HostilePostgresBackend,
    PostgresBackend,
    dump_database,
    dump_postgres,
)
from fakes import START
from keybearer_service.domain.clock import Micros
from keybearer_service.domain.model import Pepper, SecretId, Use
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import (
    ServerStore,
    StoreConflictError,
    StoreDamagedError,
    StoreUnusableError,
    dbapi,
)
from keybearer_service.storage.sqlite import SqliteStore
from samples import EVERYWHERE, PEPPER, fill, sample_id, sample_key, sample_secret

pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")

KEYS = {
    "unused": "use_count = 0",
    "used": f"secret_used = 1, use_count = 7, last_used_time = {START + 1}",
    "claimed": "secret_used = 1",
    "rotated": (
        "secret_version = 2, old_secret_version = 1, old_digest = x'01'"
        f", old_pepper_id = '{PEPPER}', overlap_end_time = {START + 9}, use_count = 3"
        f", last_used_time = {START + 2}, old_secret_last_used_time = {START + 2}"
    ),
    "erased": f"secret_version = 3, old_secret_last_used_time = {START + 3}, secret_used = 1",
    "quiet": f"secret_version = 2, old_secret_version = 1, old_digest = x'01', overlap_end_time = 9"
    f", old_pepper_id = '{PEPPER}'",
    "revoked": f"revoke_time = {START + 4}, revocation_reason = 1, revocation_note = 'gone ☂'",
}
"""What a key's row may hold of its usage and secrets, as assignments."""
SHAPE = {
    "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    "constraints": (
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
    ),
    "triggers": "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1",
}


@pytest.fixture(params=[PostgresBackend, HostilePostgresBackend])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PostgresBackend]:
    """An empty database on PostgreSQL, and on what does as YugabyteDB does."""
    opened: PostgresBackend = request.param(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def url(backend: PostgresBackend) -> DatabaseUrl:
    """Leads to the database itself."""
    return backend.direct_url


@pytest.fixture
def target(backend: PostgresBackend) -> ServerStore:
    """The store of that database, as commands open it."""
    store = backend.open_another(limit_s=None)
    assert isinstance(store, ServerStore)
    return store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with keys of every kind, and peppers that were made at one moment."""
    path = tmp_path / "file.db"
    store = SqliteStore.create(path)
    fill(store)
    with store.write() as tx:
        for name in ("zz", "aa", "mm"):
            tx.insert_pepper(Pepper(id=name, check=b"\0\xff", create_time=START))
        for name in KEYS:
            tx.insert_api_key(sample_key(name), sample_secret())
    store.close()
    connection = dbapi.connect(str(path))
    with connection:
        for name, assignments in KEYS.items():
            connection.execute(f"UPDATE api_keys SET {assignments} WHERE id = '{sample_id(name)}'")  # noqa: S608
    connection.close()
    return path


def sorted_rows(dump: Dump) -> Dump:
    """Put the rows of each table into an order that no backend has a say in."""
    return {
        table: sorted(found, key=lambda row: repr(sorted(row.items())))
        for table, found in dump.items()
    }


def no_step(_what: str, _done: int, _total: int) -> None:
    """Ignore it."""


def shape(url: DatabaseUrl) -> dict[str, list[object]]:
    """Return every index, constraint and trigger of a database."""
    import psycopg  # noqa: PLC0415 - it may not be installed

    with psycopg.connect(url.text) as connection:
        return {
            name: list(connection.execute(select.encode()).fetchall())
            for name, select in SHAPE.items()
        }


def test_every_row_arrives_as_it_was(
    url: DatabaseUrl, target: ServerStore, file: Path, tmp_path: Path
) -> None:
    """There, and in a backup of there, which is a file again."""
    with target.receive(file, no_step):
        pass
    arrived = sorted_rows(dump_postgres(url))
    left = sorted_rows(dump_database(file))
    assert arrived == {table: left[table] for table in arrived}
    assert set(left) - set(arrived) == {"_sqlite_migrations"}
    back = tmp_path / "back.db"
    target.backup(back)
    again = sorted_rows(dump_database(back))
    assert {table: again[table] for table in arrived} == arrived


def test_peppers_arrive_in_their_order(target: ServerStore, file: Path) -> None:
    """Of several of one moment the last one is the one for new secrets."""
    with target.receive(file, no_step) as tx:
        assert [one.id for one in tx.peppers()] == ["mm", "aa", "zz", PEPPER]


def test_usage_goes_on_where_it_was(target: ServerStore, file: Path) -> None:
    """Counts are added to, the old secret's last use moves, and a used secret stays used."""
    with target.receive(file, no_step):
        pass
    target.add_uses(
        [
            Use(sample_id("used"), 1, Micros(START + 20), 2),
            Use(sample_id("rotated"), 1, Micros(START + 21), 1),
            Use(sample_id("unused"), 1, Micros(START + 22), 1),
        ]
    )
    with target.read() as reader:
        used, rotated, unused = (
            reader.api_key(EVERYWHERE, sample_id(name)) for name in ("used", "rotated", "unused")
        )
    assert used is not None
    assert (used.use_count, used.last_used_time) == (9, START + 20)
    assert rotated is not None
    assert (rotated.use_count, rotated.old_secret_last_used_time) == (4, START + 21)
    assert unused is not None
    assert (unused.use_count, unused.secret_used) == (1, True)


def test_a_secret_that_was_used_is_not_issued_again(target: ServerStore, file: Path) -> None:
    """Nor one that was claimed; one that was neither can still be claimed."""
    with target.receive(file, no_step):
        pass
    with target.write() as tx:
        used, claimed = (sample_key(one, secret_version=2) for one in ("used", "claimed"))
        current = sample_secret(2, "next")
        assert not tx.replace_unused_secret(used, current, None)
        assert not tx.replace_unused_secret(claimed, current, None)
    assert target.claim_uses([SecretId(sample_id("quiet"), 2)], START)


def test_the_database_has_its_indexes_references_and_triggers_again(
    url: DatabaseUrl, target: ServerStore, file: Path
) -> None:
    """The very same, after an arrival and after one that was broken off."""
    before = shape(url)
    with pytest.raises(RuntimeError, match="broken off"), target.receive(file, no_step):
        raise RuntimeError("broken off")
    assert shape(url) == before
    with target.receive(file, no_step):
        pass
    assert shape(url) == before
    with target.write() as tx:
        tx.insert_api_key(sample_key("next"), sample_secret())
        assert tx.unrevoked_key_count(sample_id("acct")) == len(KEYS) + 1
    assert target.check() == []


def test_an_arrival_that_is_broken_off_leaves_nothing(
    url: DatabaseUrl, target: ServerStore, file: Path
) -> None:
    """In the block, and in the middle of the copy."""

    def break_off(what: str, done: int, _total: int) -> None:
        if what == "rows copied" and done:
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"), target.receive(file, break_off):
        pass
    with pytest.raises(RuntimeError, match="block"), target.receive(file, no_step):
        raise RuntimeError("block")
    assert not any(dump_postgres(url).values())
    with target.read() as reader, pytest.raises(StoreUnusableError, match="never initialised"):
        reader.installation()


def test_a_database_with_an_installation_takes_no_other(
    url: DatabaseUrl, target: ServerStore, file: Path
) -> None:
    """And what it holds stays."""
    fill(target)
    before = dump_postgres(url)
    with (
        pytest.raises(StoreConflictError, match="holds an installation"),
        target.receive(file, no_step),
    ):
        pass
    assert dump_postgres(url) == before


@pytest.mark.parametrize(
    "change",
    ["NEW.name := NEW.id; RETURN NEW", "RETURN NULL"],
    ids=["another value", "a missing row"],
)
def test_what_arrived_differently_is_noticed(
    url: DatabaseUrl, target: ServerStore, file: Path, change: str
) -> None:
    """A row that something there has altered or swallowed."""
    postgres_server.execute(
        url.text,
        f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {change}; END'",
        "ALTER TABLE users DROP CONSTRAINT users_account_id_fkey",
        "ALTER TABLE api_keys DROP CONSTRAINT api_keys_account_id_fkey",
        "ALTER TABLE key_counts DROP CONSTRAINT key_counts_account_id_fkey",
        "CREATE TRIGGER meddle BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION meddle()",
    )
    with pytest.raises(StoreDamagedError, match="accounts differs"), target.receive(file, no_step):
        pass
    assert not any(dump_postgres(url).values())


def test_progress_counts_rows_and_indexes(
    backend: PostgresBackend, target: ServerStore, file: Path
) -> None:
    """Each to the end; no index is made where none was taken away."""
    steps: dict[str, tuple[int, int]] = {}

    def note(what: str, done: int, total: int) -> None:
        steps[what] = (done, total)

    with target.receive(file, note):
        pass
    is_hostile = isinstance(backend, HostilePostgresBackend)
    assert steps.pop("indexes made")[1] > 0 or is_hostile
    assert set(steps) == {"rows copied", "rows compared"}
    assert all(done == total > 0 for done, total in steps.values())
