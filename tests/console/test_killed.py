"""SIGKILL between the commit of a change and its answer, or right before; then once more."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from console.site import Form, Seen, Site
from console.test_several import REVOKE, results_in, ticking
from harness import Stubs
from keybearer._wire.enums import AuditAction
from reliability.processes import ServerProcess, init
from reliability.seeded_bugs import STANDS_STILL, stop


@dataclass
class Console:
    """A console in a process of its own, and the browser that a person keeps through its deaths."""

    data: Path
    admin_token: str
    cookies: dict[str, str] = field(default_factory=dict)
    stubs: Stubs = field(init=False)

    @contextmanager
    def serving(self, *bugs: str) -> Iterator[tuple[ServerProcess, Site]]:
        """Run a process, and open it in the browser."""
        process = ServerProcess(self.data, bugs=bugs, flags=("--console-listen", "127.0.0.1:0"))
        try:
            process.wait_until_serving()
            (port,) = {one["port"] for one in process.events if one.get("name") == "console"}
            origin = f"http://127.0.0.1:{port}"
            self.stubs = process.stubs(self.admin_token)
            with httpx.Client(base_url=origin, timeout=20) as client:
                site = Site(origin, client)
                site.cookies = self.cookies
                yield process, site
        finally:
            process.close()

    def killed_at(
        self, when: str, action: AuditAction, fill: Callable[[Site], Mapping[str, Any]]
    ) -> tuple[str, Mapping[str, Any]]:
        """Send a form that never gets an answer; return where it was sent and what is in it.

        Args:
            when: `before` or `after` its change is committed.
            action: The change.
            fill: Returns the form; `action` is where it is sent.
        """
        with self.serving(stop(when, action)) as (process, site):
            if not site.is_signed_in:
                site.sign_in(self.admin_token)
            body = dict(fill(site))
            path = body.pop("action")
            with ThreadPoolExecutor(1) as executor:
                answer = executor.submit(sent, site, path, body)
                process.wait_for(lambda events: any(one["event"] == STANDS_STILL for one in events))
                process.kill()
                assert isinstance(answer.exception(), httpx.TransportError)
        return path, body


def sent(site: Site, path: str, body: Mapping[str, Any]) -> Seen:
    """Send a form, one of whose fields may be there several times."""
    headers = {"sec-fetch-site": "same-origin", "origin": site.origin}
    return site.request("POST", path, data=dict(body), headers=headers)


def filled(form: Form, **fields: Any) -> dict[str, Any]:
    """Return a form to send."""
    return {"action": form.action, **form.fields, **fields}


@pytest.fixture
def console(tmp_path: Path) -> Console:
    """An installation with its first administrator."""
    return Console(tmp_path / "data", init(tmp_path / "data")["token"])


def with_a_key(console: Console) -> tuple[str, str]:
    """Create a key; return its id and token."""
    with console.serving():
        made = console.stubs.create_key(name="victim")
        return made.api_key.id, made.token


def named(console: Console, name: str) -> list[Any]:
    """Return the keys of a name."""
    return [one for one in console.stubs.list_keys().api_keys if one.name == name]


def new_key(site: Site) -> dict[str, Any]:
    """Fill in the form for a new key."""
    return filled(site.new_key_form(), name="once", role="DEVELOPER")


def test_a_create_that_is_killed_after_its_commit_makes_one_key(console: Console) -> None:
    """A reload says that it is there and shows no secret; the one that is asked for works."""
    path, body = console.killed_at("after", AuditAction.API_KEY_CREATED, new_key)
    with console.serving() as (_, site):
        (lost,) = named(console, "once")
        again = sent(site, path, body)
        assert again.status == 409
        assert "This key exists already" in again.dialog
        assert again.token == ""
        shown = site.send(again.form("/console/keys"))
        assert shown.status == 200
        assert console.stubs.outcome(shown.token) == "VALID"
        (key,) = named(console, "once")
        assert key.id == lost.id == shown.token.split("_")[1]
        last = sent(site, path, body)
        assert (last.status, last.token) == (409, "")
        assert console.stubs.outcome(shown.token) == "VALID"


def test_a_page_does_not_say_that_a_lost_secret_was_seen(console: Console) -> None:
    """Whether its answer arrived is nothing that the service knows."""
    path, body = console.killed_at("after", AuditAction.API_KEY_CREATED, new_key)
    with console.serving() as (_, site):
        assert "was shown at" not in sent(site, path, body).dialog


def test_a_create_that_is_killed_before_its_commit_made_nothing(console: Console) -> None:
    """The same form makes the key, once."""
    path, body = console.killed_at("before", AuditAction.API_KEY_CREATED, new_key)
    with console.serving() as (_, site):
        assert named(console, "once") == []
        shown = sent(site, path, body)
        assert console.stubs.outcome(shown.token) == "VALID"
        assert sent(site, path, body).status == 409
        assert len(named(console, "once")) == 1


def test_a_new_secret_that_is_lost_too_can_be_had_once_more(console: Console) -> None:
    """The killed answer to “Show a new secret” is followed by another one, of the same key."""
    path, body = console.killed_at("after", AuditAction.API_KEY_CREATED, new_key)

    def ask_anew(site: Site) -> dict[str, Any]:
        return filled(sent(site, path, body).form("/console/keys"))

    path, body = console.killed_at("after", AuditAction.API_KEY_REMINTED, ask_anew)
    with console.serving() as (_, site):
        again = sent(site, path, body)
        assert (again.status, again.token) == (409, "")
        shown = site.send(again.form("/console/keys"))
        assert console.stubs.outcome(shown.token) == "VALID"
        assert len(named(console, "once")) == 1


@pytest.mark.parametrize("overlap", ["0", "1d"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_rotation_that_is_killed_happens_once(console: Console, when: str, overlap: str) -> None:
    """Sent again it rotates, or says that it has: one more secret, whichever it was."""
    key_id, token = with_a_key(console)
    page = f"/console/keys/{key_id}/rotate"

    def fill(site: Site) -> dict[str, Any]:
        return filled(site.get(page).form(page), overlap=overlap)

    path, body = console.killed_at(when, AuditAction.API_KEY_ROTATED, fill)
    with console.serving() as (_, site):
        is_old_good = when == "before" or overlap == "1d"
        assert (console.stubs.outcome(token) == "VALID") is is_old_good
        shown = sent(site, path, body)
        if when == "after":
            assert (shown.status, shown.token) == (409, "")
            assert "This key was rotated already" in shown.dialog
            assert "was shown at" not in shown.dialog
            shown = site.send(shown.form(page))
        assert shown.status == 200
        assert console.stubs.outcome(shown.token) == "VALID"
        assert (console.stubs.outcome(token) == "VALID") is (overlap == "1d")
        rotations = console.stubs.events(target_id=key_id, actions=["AUDIT_ACTION_API_KEY_ROTATED"])
        assert len(rotations) == 1


@pytest.mark.parametrize(
    ("when", "words"),
    [("before", "Revoked."), ("after", "It was revoked before: Its secret was lost.")],
)
def test_keys_are_revoked_together_or_not_at_all(console: Console, when: str, words: str) -> None:
    """Killed in the middle, all are as they were or all are revoked; sent again it says which."""
    with console.serving():
        made = [console.stubs.create_key(name=f"key {number}") for number in range(8)]
    ids = [one.api_key.id for one in made]

    def fill(site: Site) -> dict[str, Any]:
        return {**filled(ticking(site, *ids).form(REVOKE)), "key": ids, "reason": "LOST"}

    path, body = console.killed_at(when, AuditAction.API_KEY_REVOKED, fill)
    with console.serving() as (_, site):
        before = {console.stubs.outcome(one.token) for one in made}
        assert before == {"VALID" if when == "before" else "REVOKED"}
        seen = sent(site, path, body)
        assert results_in(seen) == [f"key {number} {words}" for number in range(8)]
        assert {console.stubs.outcome(one.token) for one in made} == {"REVOKED"}


def _of_key(change: str, **fields: str) -> Callable[[Site, str, str], dict[str, Any]]:
    def fill(site: Site, key_id: str, _user_id: str) -> dict[str, Any]:
        page = f"/console/keys/{key_id}/{change}"
        return filled(site.get(page).form(page), **fields)

    return fill


def _of_user(change: str, **fields: str) -> Callable[[Site, str, str], dict[str, Any]]:
    def fill(site: Site, _key_id: str, user_id: str) -> dict[str, Any]:
        page = f"/console/users/{user_id}/{change}"
        return filled(site.get(page).form(page), **fields)

    return fill


def _new_user(site: Site, _key_id: str, _user_id: str) -> dict[str, Any]:
    fields = {"email": "new@example.com", "display_name": "N", "role": "ADMIN", "type": "PERSON"}
    return filled(site.get("/console/users/new").form("/console/users"), **fields)


OTHERS: Mapping[str, tuple[AuditAction, Callable[[Site, str, str], dict[str, Any]], int, str]] = {
    "edit": (AuditAction.API_KEY_UPDATED, _of_key("edit", name="renamed"), 303, ""),
    "disable": (AuditAction.API_KEY_DISABLED, _of_key("disable"), 303, ""),
    "revoke": (AuditAction.API_KEY_REVOKED, _of_key("revoke", reason="LOST"), 200, "is revoked"),
    "create user": (AuditAction.USER_CREATED, _new_user, 409, "new@example.com"),
    "edit user": (AuditAction.USER_UPDATED, _of_user("edit", display_name="R"), 303, ""),
    "delete user": (AuditAction.USER_DELETED, _of_user("delete"), 303, ""),
}


@pytest.mark.parametrize("change", sorted(OTHERS))
def test_every_other_change_is_made_once(console: Console, change: str) -> None:
    """Sent again after it was killed, it is said to be as it should be, and nothing is changed."""
    action, fill, status, words = OTHERS[change]
    with console.serving():
        key_id = console.stubs.create_key(name="victim").api_key.id
        user_id = console.stubs.create_user("victim@example.com").id
    path, body = console.killed_at("after", action, lambda site: fill(site, key_id, user_id))
    with console.serving() as (_, site):
        before = _changes(console.stubs)
        seen = sent(site, path, body)
        assert seen.status == status
        assert words in site.follow(seen).text
        assert _changes(console.stubs) == before
        assert before[0] == action


def _changes(stubs: Stubs) -> Sequence[int]:
    return [event.action for event in stubs.events()]
