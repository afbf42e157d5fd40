"""One request of a browser, and what the pages need of it."""

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from keybearer_service.console.links import ListState, PageState
from keybearer_service.domain.account_scope import AccountScope
from keybearer_service.domain.clock import Clock
from keybearer_service.usecases.access import authorize
from keybearer_service.usecases.call_context import CallContext

SESSION_COOKIE: Final = "__Host-keybearer"
"""The names of all cookies of ours begin like this one's."""
SHOWN_COOKIE: Final = "__Host-keybearer-shown"
"""There from an answer that shows a secret to the next one. A browser that keeps pages as they were
throws those away that were left before a cookie like this changed."""
ATTEMPT_COOKIE: Final = "__Host-keybearer-signin"
"""Sealed: what a sign-in at the provider that is under way must come back with. Each attempt has
one, whose name goes on with its state."""
INVITATION_COOKIE: Final = "__Host-keybearer-invitation"
"""Sealed: the invitation that is being accepted."""
PERSON_COOKIE: Final = "__Host-keybearer-person"
"""Sealed: whom the provider has named, until they say that this is to be connected."""
THEME_COOKIE: Final = "__Host-keybearer-theme"
THEMES: Final = ("system", "light", "dark")
MAX_BODY: Final = 64 * 1024
"""Bytes of a form."""
MAX_FIELDS: Final = 100
"""More than there are keys in a list, which may all be ticked."""
TICKED: Final = "key"
"""The field of a key that is ticked."""
ANSWER_WITHIN_S: Final = 10.0
"""For everything that a request does."""
_OURS: Final = re.compile(SESSION_COOKIE + "[0-9A-Za-z-]*")
"""Names that we give. Others could not be written into an answer that has them forgotten."""

S = TypeVar("S", bound=PageState)


class BodyError(Exception):
    """The body of a request is no form, or too long a one."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Browser:
    """Where a visit comes from: the `Origin` of its call."""

    def __init__(self, peer: str, clock: Clock) -> None:
        self.peer = peer
        self._clock = clock
        self._until = clock.monotonic() + ANSWER_WITHIN_S
        self.has_gone = False
        """Set once the connection is seen to be closed."""

    @property
    def is_alive(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.has_gone and self._clock.monotonic() < self._until

    @property
    def remaining_s(self) -> float | None:
        """How many seconds are left for the answer."""
        return max(0.0, self._until - self._clock.monotonic())


@dataclass(slots=True)
class Visit:
    """A request, read and not judged yet."""

    call: CallContext
    browser: Browser
    is_post: bool
    path: str
    """With its query."""
    named: Mapping[str, str]
    """What the path names: `key_id`, `user_id` or `session_id`."""
    account: str
    """The account that an operator looks at; empty for one's own."""
    query: Mapping[str, str]
    form: Mapping[str, str]
    ticked: Sequence[str]
    """The keys that are ticked in a list: of the form, or of the query without one."""
    cookies: Mapping[str, str]
    user_agent: str

    @property
    def key_id(self) -> str:
        """The key in the path."""
        return self.named["key_id"]

    @property
    def user_id(self) -> str:
        """The user in the path."""
        return self.named["user_id"]

    @property
    def session_id(self) -> str:
        """The session in the path."""
        return self.named["session_id"]

    @property
    def scope(self) -> AccountScope:
        """The account that the page is about.

        Raises:
            OperatorOnly: Another account than the caller's, who is no operator.
        """
        return authorize(self.call, self.account)

    @property
    def state(self) -> ListState:
        """The list of keys that the page stands above."""
        return self.state_of(ListState)

    def state_of(self, kind: type[S]) -> S:
        """Return the list that the page shows or stands above."""
        return replace(kind.read(self.query), account=self.account)

    def turn_to(self, account_id: str) -> None:
        """Look at the account of the thing that the path names."""
        self.account = "" if account_id == self.call.identity.account_id else account_id

    @property
    def is_signed_in(self) -> bool:
        """Whether the session in the cookie was admitted."""
        return self.call.caller is not None and bool(self.call.caller.session_id)

    @property
    def csrf(self) -> str:
        """What a form of this session carries; empty without one."""
        return csrf_of(self.cookies.get(SESSION_COOKIE, "")) if self.is_signed_in else ""

    @property
    def has_csrf(self) -> bool:
        """Whether the form is one of this session."""
        given = self.form.get("csrf", "")
        return bool(self.csrf) and hmac.compare_digest(given.encode(), self.csrf.encode())

    @property
    def theme(self) -> str:
        """The chosen colours."""
        chosen = self.cookies.get(THEME_COOKIE, "")
        return chosen if chosen in THEMES else THEMES[0]


@dataclass(slots=True)
class Answer:
    """What a view returns: a response, and whether a secret stands in it."""

    response: Response
    shows_secret: bool = field(default=False)


def csrf_of(session_token: str) -> str:
    """Return what the forms of a session carry: nobody without its cookie can work it out."""
    return hmac.digest(session_token.encode(), b"console form v1", "sha256").hex()


async def read_form(request: Request) -> Sequence[tuple[str, str]]:
    """Read the body of a POST as the fields of a form, in their order.

    Raises:
        BodyError: It is none, or too long.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise BodyError(415, "only the forms of the console are taken here")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise BodyError(413, f"a form has at most {MAX_BODY} bytes")
    try:
        return parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise BodyError(400, "the form cannot be read") from None


def cookies_of(request: Request) -> Mapping[str, str]:
    """Return the cookies of ours; none of a name that comes twice.

    Somebody else may have put the second one there, so neither is believed.
    """
    found: dict[str, str] = {}
    repeated = set()
    for pair in "; ".join(request.headers.getlist("cookie")).split(";"):
        name, _, value = pair.strip().partition("=")
        if name in found:
            repeated.add(name)
        if _OURS.fullmatch(name):
            found[name] = value
    return {name: value for name, value in found.items() if name not in repeated}
