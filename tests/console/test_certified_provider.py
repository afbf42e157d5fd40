"""The console with a certified provider: what we take for a provider is one to it, and we to it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from console.certified import certified
from console.site import Seen, Site
from harness import Service


@dataclass
class Person:
    """Somebody at the provider, in a browser."""

    name: str
    client: httpx.Client

    def sign_in(self, location: str) -> str:
        """Go where the console leads to, and say yes to everything; return where that leads."""
        response = self.client.get(location)
        while True:
            target = response.headers.get("location", "")
            if "/console/" in target:
                parts = urlsplit(target)
                return f"{parts.path}?{parts.query}"
            if target:
                response = self.client.get(response.url.join(target))
                continue
            response = self._submit(response)

    def sign_out(self, location: str) -> None:
        """Sign out there."""
        response = self.client.get(location)
        response = self._submit(response)
        while target := response.headers.get("location", ""):
            response = self.client.get(response.url.join(target))

    def _submit(self, response: httpx.Response) -> httpx.Response:
        action = re.search(r'action="([^"]+)"', response.text)
        assert action is not None, (response.status_code, response.text[:2000])
        hidden = dict(
            re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]+)"', response.text)
        )
        fields = {**hidden, "login": self.name, "password": "any", "logout": "yes"}
        return self.client.post(response.url.join(action[1]), data=fields)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service whose people sign in at the certified provider."""
    with certified(tmp_path) as started:
        yield started


def came_back(site: Site, person: Person, purpose: str = "") -> Seen:
    """Sign in at the provider, and go on to where that leads."""
    started = site.get(f"/console/sign-in/start?for={purpose}")
    assert started.status == 303, started.text
    return site.follow(site.get(person.sign_in(started.location)))


def test_the_whole_way_with_a_certified_provider(service: Service) -> None:
    """Connect the first administrator, sign in, prove it again, and be signed out over there."""
    with (
        Site.of(service) as site,
        Site.of(service) as other,
        httpx.Client(timeout=20) as client,
        httpx.Client(timeout=20) as stranger,
    ):
        alice = Person("alice", client)
        site.sign_in(service.admin_token)
        seen = came_back(site, alice, "connect")
        assert "alice@id.example.com" in seen.text
        site.follow(site.send(seen.form("/console/sign-in/confirm")))
        assert came_back(other, alice).status == 200
        before = other.session
        assert "You have signed in again" in came_back(other, alice, "again").text
        assert other.session != before
        assert came_back(Site(site.origin, site.client), Person("mallory", stranger)).status == 403
        assert "somebody else" in came_back(other, Person("mallory", stranger), "again").text
        assert other.is_signed_in
        alice.sign_out(site.get("/console/sign-out/provider").location)
        assert not other.is_signed_in
        assert site.is_signed_in  # with a token, which the provider knows nothing of
    actions = service.admin.events(actions=["AUDIT_ACTION_SESSION_ENDED"])
    assert len(actions) == 1
