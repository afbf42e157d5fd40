"""The console as a browser without a script sees it: pages, forms, cookies, redirects."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import httpx

from harness import Service

SESSION = "__Host-keybearer"
VOID = frozenset({"input", "link", "meta", "br", "option"})


@dataclass
class Form:
    """One form of a page, with what stands in it."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class _Reader(HTMLParser):
    forms: list[Form] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    dialog: list[str] = field(default_factory=list)
    _stack: list[str] = field(default_factory=list)
    _field: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(found["action"], found["method"]))
        if tag == "a":
            self.links.append(found["href"])
        if tag == "input" and "name" in found and self.forms:
            is_choice = found.get("type") in ("radio", "checkbox")
            if not is_choice or "checked" in found:
                self.forms[-1].fields[found["name"]] = found.get("value", "")
        if tag == "textarea":
            self._field = found["name"]
            self.forms[-1].fields[self._field] = ""
        if tag not in VOID:
            self._stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._stack and self._stack.pop() != tag:
            pass
        self._field = ""

    def handle_data(self, data: str) -> None:
        if self._field:
            self.forms[-1].fields[self._field] += data
        elif data.strip() and not {"title", "script"} & set(self._stack):
            self.texts.append(data.strip())
            if "dialog" in self._stack:
                self.dialog.append(data.strip())


class Seen:
    """An answer, as its reader sees it."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.html = response.text
        self.location = response.headers.get("location", "")
        reader = _Reader()
        reader.feed(self.html)
        self.forms = reader.forms
        self.links = reader.links
        self.text = " ".join(reader.texts)
        self.dialog = " ".join(reader.dialog)

    def form(self, action: str) -> Form:
        """Return the form that leads to a path, whatever its query."""
        return next(one for one in self.forms if one.action.partition("?")[0] == action)

    @property
    def token(self) -> str:
        """The secret that the page shows; empty for none."""
        _, _, rest = self.html.partition("<output")
        return rest.partition(">")[2].partition("<")[0]


class Site:
    """One browser."""

    def __init__(self, origin: str, client: httpx.Client) -> None:
        self.origin = origin
        self.client = client
        self.cookies: dict[str, str] = {}

    @classmethod
    @contextmanager
    def of(cls, service: Service) -> "Iterator[Site]":
        """Open the console of a service."""
        with httpx.Client(base_url=service.app.console_origin, timeout=20) as client:
            yield cls(service.app.console_origin, client)

    def request(self, method: str, path: str, **fields: Any) -> Seen:
        """Send a request with the cookies that there are, and keep those that come."""
        headers = {**fields.pop("headers", {})}
        if self.cookies:
            headers.setdefault("cookie", "; ".join(f"{k}={v}" for k, v in self.cookies.items()))
        response = self.client.request(method, path, headers=headers, **fields)
        for cookie in response.headers.get_list("set-cookie"):
            pair, *attributes = (one.strip() for one in cookie.split(";"))
            name, _, value = pair.partition("=")
            if "Max-Age=0" in attributes:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return Seen(response)

    def get(self, path: str, **fields: Any) -> Seen:
        """Open a page."""
        return self.request("GET", path, **fields)

    def post(self, path: str, form: Mapping[str, str], **fields: Any) -> Seen:
        """Send a form as a page of this origin would."""
        headers = {
            "sec-fetch-site": "same-origin",
            "origin": self.origin,
            "content-type": "application/x-www-form-urlencoded",
        }
        headers |= fields.pop("headers", {})
        return self.request("POST", path, data=dict(form), headers=headers, **fields)

    def send(self, form: Form, **changes: str) -> Seen:
        """Send a form of a page, filled in."""
        return self.post(form.action, {**form.fields, **changes})

    def follow(self, seen: Seen) -> Seen:
        """Return the page that one lands on."""
        while seen.status == 303:
            seen = self.get(seen.location)
        return seen

    def sign_in(self, token: str) -> Seen:
        """Sign in; return the page that one lands on."""
        form = self.get("/console/sign-in").form("/console/sign-in")
        return self.follow(self.send(form, token=token))

    def post_invite(self, user_id: str) -> Seen:
        """Invite a user."""
        page = f"/console/users/{user_id}/sign-in"
        return self.send(self.get(page).form(f"{page}/invite"))

    def new_key_form(self) -> Form:
        """Return the form for a new key."""
        return self.get("/console/keys/new").form("/console/keys")

    def create(self, **fields: str) -> Seen:
        """Create a DEVELOPER key, unless told otherwise."""
        return self.send(self.new_key_form(), **{"name": "a key", "role": "DEVELOPER", **fields})

    def revoke_form(self, key_id: str) -> Form:
        """Return the form that revokes a key."""
        path = f"/console/keys/{key_id}/revoke"
        return self.get(path).form(path)

    @property
    def session(self) -> str:
        """The token of the session; empty for none."""
        return self.cookies.get(SESSION, "")

    @property
    def is_signed_in(self) -> bool:
        """Whether the list is shown."""
        return self.get("/console/keys").status == 200
