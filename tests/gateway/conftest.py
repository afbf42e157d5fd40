"""One service, one set of keys and one pair of upstreams for all gateway tests that change none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import FakeClock, SeededEntropy
from gateway.expected import Key, largest_key, usual_key
from gateway.support import Cast, Gated, Upstreams, cast, gated, grpc_upstream, http_upstream


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, seed: int) -> Iterator[Gated]:
    """A running service that no test changes."""
    path: Path = tmp_path_factory.mktemp("gateway") / "data"
    with gated(path, FakeClock(), SeededEntropy(seed)) as running:
        yield running


@pytest.fixture(scope="session")
def keys(world: Gated) -> Cast:
    """Keys for every case, in `world`."""
    return cast(world)


@pytest.fixture(scope="session")
def usual(world: Gated, keys: Cast) -> Key:
    """A DEVELOPER key as most are, in `world`."""
    return usual_key(world, keys)


@pytest.fixture(scope="session")
def largest(world: Gated, keys: Cast) -> Key:
    """A key with the largest identity, in `world`."""
    return largest_key(world)


@pytest.fixture(scope="session")
def upstreams() -> Iterator[Upstreams]:
    """An HTTP application and a gRPC service that answer what they were sent."""
    with http_upstream() as http, grpc_upstream() as grpc_port:
        yield Upstreams(http, grpc_port)
