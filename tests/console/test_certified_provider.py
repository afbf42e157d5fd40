"""The console with a certified provider: what we take for a provider is one to it, and we to it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from console.certified import Later, certified
from console.site import Seen, Site
from harness import Service
from keybearer_service.domain.clock import MINUTE


@dataclass
class Person:
    """Somebody at the provider, in a browser."""

    name: str
    client: httpx.Client
    passwords: int = 0
    """How often the provider has asked for one."""

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

    def sign_out(self, location: str) -> httpx.Response:
        """Sign out there; return the last page."""
        response = self.client.get(location)
        response = self._submit(response)
        while target := response.headers.get("location", ""):
            response = self.client.get(response.url.join(target))
        return response

    def _submit(self, response: httpx.Response) -> httpx.Response:
        action = re.search(r'action="([^"]+)"', response.text)
        assert action is not None, (response.status_code, response.text[:2000])
        self.passwords += 'name="password"' in response.text
        hidden = dict(
            re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]+)"', response.text)
        )
        fields = {**hidden, "login": self.name, "password": "any", "logout": "yes"}
        return self.client.post(response.url.join(action[1]), data=fields)


@pytest.fixture
def later() -> Later:
    """The clock of the service and of the provider."""
    return Later()


@pytest.fixture
def service(tmp_path: Path, later: Later) -> Iterator[Service]:
    """A service whose people sign in at the certified provider."""
    with certified(tmp_path, later) as started:
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


def connected(site: Site, person: Person, token: str) -> None:
    """Connect the first administrator with a person, who is signed in with that afterwards."""
    site.sign_in(token)
    seen = came_back(site, person, "connect")
    site.follow(site.send(seen.form("/console/sign-in/confirm")))
    assert came_back(site, person).status == 200


def an_hour_later(site: Site, later: Later) -> Seen:
    """Click now and then for an hour; return the answer to a form that is sent then."""
    form = site.new_key_form()
    for _ in range(3):
        later.advance(20 * MINUTE)
        assert site.is_signed_in
    later.advance(MINUTE)
    return site.send(form, name="late", description="what I typed", role="DEVELOPER")


def test_a_sign_in_that_is_too_old_is_made_anew_for_a_secret(
    service: Service, later: Later
) -> None:
    """The provider asks for the password although the person is signed in there; text is kept."""
    with Site.of(service) as site, httpx.Client(timeout=20) as client:
        alice = Person("alice", client)
        connected(site, alice, service.admin_token)
        seen = an_hour_later(site, later)
        assert seen.status == 403
        assert "more than an hour ago" in seen.text
        (link,) = [one for one in seen.links if "for=again" in one]
        location = site.get(link).location
        assert "max_age=0" in location
        before, asked = site.session, alice.passwords
        assert "You have signed in again" in site.follow(site.get(alice.sign_in(location))).text
        assert alice.passwords == asked + 1
        assert site.session != before
        shown = site.send(seen.form("/console/keys"))
        assert "This form is from before you signed in" in shown.text
        again = shown.form("/console/keys")
        assert again.fields["name"] == "late"
        assert again.fields["description"] == "what I typed"
        assert service.admin.outcome(site.send(again).token) == "VALID"


def test_somebody_else_does_not_make_it_anew(service: Service, later: Later) -> None:
    """Signing in again as another person changes nothing, and the page says so."""
    with (
        Site.of(service) as site,
        httpx.Client(timeout=20) as client,
        httpx.Client(timeout=20) as stranger,
    ):
        connected(site, Person("alice", client), service.admin_token)
        seen = an_hour_later(site, later)
        before = site.session
        refused = came_back(site, Person("mallory", stranger), "again")
        assert refused.status == 403
        assert "You signed in as somebody else. Nothing was changed." in refused.text
        assert site.session == before
        assert "more than an hour ago" in site.send(seen.form("/console/keys")).text
        assert service.admin.list_keys().api_keys[0].name != "late"


def test_signing_out_at_the_provider_has_the_password_asked_again(service: Service) -> None:
    """Signed out here alone, the next sign-in asks nothing; signed out there too, it asks."""
    with (
        Site.of(service) as site,
        Site.of(service) as other,
        httpx.Client(timeout=20) as client,
    ):
        alice = Person("alice", client)
        connected(site, alice, service.admin_token)
        asked = alice.passwords
        site.send(site.get("/console/keys").form("/console/sign-out"))
        assert came_back(site, alice).status == 200
        assert came_back(other, alice).status == 200
        assert alice.passwords == asked
        page = site.send(site.get("/console/keys").form("/console/sign-out"))
        (link,) = [one for one in page.links if one.startswith("/console/sign-out")]
        last = alice.sign_out(site.get(link).location)
        assert last.status_code == 200
        assert "Sign-out Success" in last.text
        assert not other.is_signed_in
        assert came_back(site, alice).status == 200
        assert alice.passwords == asked + 1
