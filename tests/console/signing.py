"""People who sign in at the provider, as browsers without scripts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from console.provider import HostileProvider, callback, provider_running
from console.site import Seen, Site
from fakes import FakeClock, SeededEntropy
from harness import ANY_PORT, Service, open_replaceable, running
from keybearer_service.domain.clock import MINUTE
from keybearer_service.http.listeners import HttpConfig
from keybearer_service.net.sign_in import SignInSettings

_numbers = count(1)


@dataclass
class SignIns:
    """A service with a console, its provider, and the time of both."""

    service: Service
    provider: HostileProvider
    clock: FakeClock

    def next_minute(self) -> None:
        """Let whoever counts tries begin anew."""
        self.provider.behave()
        self.clock.advance(MINUTE)

    @contextmanager
    def browser(self) -> Iterator[Site]:
        """Open a browser in which nobody is signed in."""
        with Site.of(self.service) as site:
            yield site

    def admin(self, site: Site) -> Site:
        """Sign the first administrator in, with the admin token."""
        assert site.sign_in(self.service.admin_token).status == 200
        return site

    def administrator(self, role: str = "ROLE_ADMIN") -> tuple[str, str]:
        """Create a user; return its id and address."""
        email = f"person{next(_numbers)}@example.com"
        return self.service.admin.create_user(email, role=role).id, email

    def invite(self, user_id: str) -> str:
        """Invite a user as the first administrator; return the link."""
        with self.browser() as site:
            return self.admin(site).post_invite(user_id).token

    def came_back(self, site: Site, subject: str, purpose: str = "", **claims: Any) -> Seen:
        """Go to the provider, sign in there, and come back."""
        started = site.get(f"/console/sign-in/start?for={purpose}")
        assert started.status == 303, started.text
        return site.get(callback(self.provider.answer(started.location, subject, **claims)))

    def sign_in(self, site: Site, subject: str, purpose: str = "", **claims: Any) -> Seen:
        """Do the same, and go on to where that leads."""
        return site.follow(self.came_back(site, subject, purpose, **claims))

    def accept(self, site: Site, link: str, subject: str, **claims: Any) -> Seen:
        """Accept an invitation; return the last page."""
        assert site.post("/console/invitation", {"invitation": link}).status == 200
        seen = self.sign_in(site, subject, "invitation", **claims)
        return site.follow(site.send(seen.form("/console/sign-in/confirm")))

    def bound(self, site: Site, role: str = "ROLE_ADMIN") -> tuple[str, str]:
        """Make an administrator who is signed in at the provider; return user id and subject."""
        user_id, email = self.administrator(role)
        subject = email.partition("@")[0]
        assert self.accept(site, self.invite(user_id), subject).status == 200
        return user_id, subject

    def refusals(self) -> list[str]:
        """Return the reasons of refused sign-ins, newest first."""
        return [
            change.after
            for event in self.service.admin.events(actions=["AUDIT_ACTION_SIGN_IN_REFUSED"])
            for change in event.changes
        ]


@contextmanager
def signing_in(path: Path, **settings: Any) -> Iterator[SignIns]:
    """Run a service and its provider."""
    clock, entropy = FakeClock(), SeededEntropy(7)
    client = settings.pop("client", {})
    with provider_running(clock) as provider:
        sign_in = SignInSettings(provider=provider.settings(**client), **settings)
        http = HttpConfig(console=ANY_PORT, sign_in=sign_in)
        with running(path, clock, entropy, http=http, opener=open_replaceable) as service:
            yield SignIns(service, provider, clock)
