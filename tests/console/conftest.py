"""Fixtures: a service with a console, and who looks at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from console.site import Site
from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, Service, open_replaceable, running
from keybearer_service.http.listeners import HttpConfig


@pytest.fixture(scope="session", autouse=True)
def needs_the_extra() -> None:
    """Skip the suite where the extra `console` is not installed."""
    pytest.importorskip("jinja2", reason="the extra console is not installed")


@pytest.fixture
def service(tmp_path: Path, clock: FakeClock, entropy: SeededEntropy) -> Iterator[Service]:
    """A running service with a console, and nothing in it but its first administrator."""
    with running(
        tmp_path / "data",
        clock,
        entropy,
        http=HttpConfig(console=ANY_PORT, gateway=ANY_PORT),
        opener=open_replaceable,
    ) as running_service:
        yield running_service


@pytest.fixture
def site(service: Service) -> Iterator[Site]:
    """The console as one browser without a script sees it; nobody is signed in."""
    with Site.of(service) as opened:
        yield opened


@pytest.fixture
def signed_in(service: Service, site: Site) -> Site:
    """The same, with the first administrator signed in."""
    site.sign_in(service.admin_token)
    return site
