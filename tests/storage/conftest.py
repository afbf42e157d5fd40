"""Fixtures: an empty and a filled store of each backend, and a database on a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import postgres_server
from backends import BACKENDS, Backend
from keybearer_service.net.database_url import DatabaseUrl
from keybearer_service.storage import Store
from samples import Filling, fill


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty database of each backend."""
    opened: Backend = BACKENDS[request.param](tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def store(backend: Backend) -> Store:
    """The store of an empty database."""
    return backend.store


@pytest.fixture
def filled(store: Store) -> Filling:
    """One account, one ADMIN user and one key, in the store."""
    return fill(store)


@pytest.fixture
def url() -> Iterator[DatabaseUrl]:
    """A database of its own, with the schema."""
    made = postgres_server.new_database()
    yield made
    postgres_server.drop_database(made)
