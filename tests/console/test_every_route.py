"""Every path that the console itself lists: hostile texts, and ids of other accounts."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import pytest

from console.screens import HOSTILE, sign_in
from console.signing import SignIns, signing_in
from console.site import SESSION, Form, Seen, Site
from harness import Tenant
from keybearer_service.app import console_of
from keybearer_service.net.sign_in import SignInSettings

NOTHING = "0000000000000000"
"""The id of nothing."""
QUERY: Final = (
    "account actor action after again at before deleted done for history key next order owner "
    "page q revoked state target view iss code error "
)
"""Every name that some page reads from its URL."""
PERCENT = {
    "script": quote("<script>alert(1)</script>\"'`><img src=x onerror=alert(1)>{{97*103}}"),
    "template": quote("{{97*103}}${97*103}{%raw%}#{97*103}"),
    "right to left": quote("a\u202eb\u2066c\u200d"),
    "nul": "a%00b",
    "lines": "a%0d%0aset-cookie:%20x=y%0d%0a%0d%0ab",
    "long": "x" * 10_000,
    "formula": quote("=1+1\t@SUM(A1)"),
    "lone surrogate": "%ed%a0%80",
    "no utf-8": "%ff%fe%80",
    "emoji": quote("\U0001f511\ufffe\U0010ffff"),
    "traversal": "..%2f..%2f%2e%2e%2f",
    "numbers": "-1",
    "huge number": "9" * 5000,
    "empty": "",
    "dash": "-",
    "percent": "%25%2500%25ed",
}
"""What somebody may write, as it is sent."""
TEXTS = {
    **{name: unquote(PERCENT[name]) for name in ("script", "template", "right to left", "nul")},
    "lines": "a\r\nset-cookie: x=y\r\n\r\nb",
    "long": "x" * 5000,
    "formula": "=1+1",
    "emoji": "\U0001f511\ufffe\U0010ffff",
    "empty": "",
    "blank": " ",
    "number": "9" * 5000,
}
"""What somebody may type."""
TYPED: Final = (
    "name description role scopes expires expire_date owner labels attempt overlap etag reason "
    "note key email display_name type revoke_created token invitation theme next "
)
SESSION_ENDED = "AUDIT_ACTION_SESSION_ENDED"
IDS = ("key_id", "user_id", "session_id")
ALWAYS = {"script", "template", "nul", "lines", "long", "lone surrogate"}
LONG = 2000
NO_PAGES = {"/console/sign-in/callback", "/console/sign-in/start", "/console/sign-out/provider"}
"""What leads elsewhere."""
FILLED = {
    "name": "n",
    "display_name": "n",
    "role": "DEVELOPER",
    "expires": "90",
    "overlap": "0",
    "reason": "LOST",
    "type": "PERSON",
    "attempt": "0",
}
"""What is right in one form or the other."""
_numbers = count(1)


def cases(texts: Mapping[str, str]) -> list[Any]:
    """Return the texts to try; all but some are slow."""
    return [
        pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow])
        for name in sorted(texts)
    ]


def request_id() -> str:
    """Return what a form that was opened just now carries."""
    return f"123e4567-e89b-42d3-a456-{next(_numbers):012}"


@pytest.fixture(scope="module")
def sign_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignIns]:
    """A service with a provider, and so with every page."""
    with signing_in(tmp_path_factory.mktemp("routes") / "data", key_sign_in="on") as running:
        yield running


@dataclass
class Routes:
    """Every path of the console."""

    pages: Sequence[str]
    forms: Sequence[str]


@pytest.fixture(scope="module")
def routes(sign_ins: SignIns) -> Routes:
    """The paths, as the console lists them."""
    settings = SignInSettings(provider=sign_ins.provider.settings())
    console = console_of(sign_ins.service.app.container, settings, lambda: None)
    console.close()
    return Routes(list(console.pages), list(console.forms))


class _Harmless(HTMLParser):
    """Notes what a page would run, or would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "script" and not values.get("src", "").startswith("/console/static/"):
            self.found.append(f"<script {values}>")
        if tag in ("img", "style", "iframe", "base", "svg", "object"):
            self.found.append(f"<{tag}>")
        self.found += [f"{name}=" for name in values if name.startswith("on") or name == "style"]
        for name in ("href", "action", "src"):
            target = values.get(name, "/")
            if re.match(r"[^/?#]", target) and target != "data:,":
                self.found.append(f"{name}={target}")
            if target.startswith("//"):
                self.found.append(f"{name}={target}")


def assert_harmless(seen: Seen, said: object) -> None:
    """Check that an answer is one that was thought of, and that nothing in it runs."""
    assert seen.status < 500, said
    assert seen.location.startswith(("/console", "http://127.0.0.1:")) or not seen.location, said
    assert set(seen.response.headers) & {"x"} == set()
    if seen.response.headers.get("content-type", "").startswith("text/html"):
        reader = _Harmless()
        reader.feed(seen.html)
        assert reader.found == [], said
        assert "9991" not in seen.html, said
        assert "Traceback" not in seen.html, said


def named(path: str, names: Mapping[str, str]) -> str:
    """Return a path with what it names."""
    return re.sub(r"\{(\w+)\}", lambda found: names[found[1]], path)


def own_ids(sign_ins: SignIns, site: Site, path: str = "{key_id}{user_id}") -> dict[str, str]:
    """Return ids of what a path names, made now; of a user whom nothing keeps."""
    admin, made = sign_ins.service.admin, {"session_id": site.session.split("_")[1]}
    if "{key_id}" in path:
        made["key_id"] = admin.create_key(name="own").api_key.id
    if "{user_id}" in path:
        user = admin.create_user(f"{next(_numbers)}@example.com", role="ROLE_ADMIN")
        made["user_id"] = user.id
    return made


@pytest.fixture
def site(sign_ins: SignIns) -> Iterator[Site]:
    """A browser in which the first administrator is signed in."""
    sign_ins.next_minute()
    with sign_ins.browser() as opened:
        yield sign_ins.admin(opened)


@pytest.mark.parametrize("case", cases(PERCENT))
def test_no_page_is_broken_by_its_url(
    sign_ins: SignIns, routes: Routes, site: Site, case: str
) -> None:
    """Whatever stands in place of an id, or in any part of the query."""
    text, names, ids = PERCENT[case], cycle(QUERY.split()), own_ids(sign_ins, site)
    for path in routes.pages:
        right = named(path, ids)
        alone = next(names)
        targets = [f"{right}?{alone}={text}"]
        if "{" in path:
            targets.append(named(path, dict.fromkeys(IDS, text or "%20")))
        if len(text) < LONG:
            targets.append(f"{right}?" + "&".join(f"{name}={text}" for name in QUERY.split()))
        for target in targets:
            assert_harmless(site.get(target), target[:200])


def fillable(sign_ins: SignIns, routes: Routes, site: Site) -> Mapping[str, Form]:
    """Return every form that a page shows, by its path as the console lists it; each is fresh."""
    found: dict[str, Form] = {}
    patterns = {path: re.compile(re.sub(r"\{\w+\}", r"[^/?]+", path)) for path in routes.forms}
    for page in routes.pages:
        if page in NO_PAGES:
            continue
        for form in site.get(named(page, own_ids(sign_ins, site, page))).forms:
            target = form.action.partition("?")[0]
            fitting = [path for path, one in patterns.items() if one.fullmatch(target)]
            if form.method == "post":
                found.setdefault(min(fitting, key=lambda one: one.count("{")), form)
    return found


@pytest.mark.parametrize("case", cases(TEXTS))
def test_no_form_is_broken_by_what_is_typed(
    sign_ins: SignIns, routes: Routes, site: Site, case: str
) -> None:
    """In each of its fields, those that a browser would not change among them; texts are kept."""
    text, before = TEXTS[case], site.session
    for path, form in fillable(sign_ins, routes, site).items():
        fields = dict.fromkeys({*form.fields, *TYPED.split()} - {"csrf", "request_id"}, text)
        if site.session != before:
            sign_ins.next_minute()
            before = sign_ins.admin(site).session
        if "csrf" in form.fields:
            fields["csrf"] = site.new_key_form().fields["csrf"]
        seen = site.send(form, **fields)
        assert_harmless(seen, (path, case))
        for kept in seen.forms:
            if kept.action.partition("?")[0] == form.action.partition("?")[0]:
                for name in ("name", "description", "scopes", "labels", "note", "display_name"):
                    typed = kept.fields.get(name, text).removeprefix("\n")
                    assert typed in (text, text.replace("\r\n", "\n")), (path, name)
        sign_ins.next_minute()


# --- ids ------------------------------------------------------------------------------------------


@dataclass
class Foreign:
    """Ids and texts that another account has, by what they are in a path or a field."""

    key_id: str
    user_id: str
    session_id: str
    account: str
    email: str

    def but(self, text: str) -> "Foreign":
        """Return the same with something in place of each."""
        return Foreign(text, text, text, text, f"{text or 'nobody'}@example.com")

    @property
    def ids(self) -> Mapping[str, str]:
        """What stands in paths."""
        return {name: getattr(self, name) for name in IDS}

    def all(self) -> Sequence[str]:
        """Return everything."""
        return [self.key_id, self.user_id, self.session_id, self.account, self.email]


@dataclass
class Tenancy:
    """Two accounts, with somebody signed in in each of them."""

    sign_ins: SignIns
    routes: Routes
    tenant: Tenant
    site: Site
    foreign: Foreign

    def own(self, path: str) -> dict[str, str]:
        """Return ids of the tenant's own things that a path names, made now."""
        stubs, made = self.tenant.stubs, dict.fromkeys(IDS, "")
        if "{session_id}" in path:
            self.sign_ins.next_minute()
            with self.sign_ins.browser() as other:
                other.sign_in(stubs.token)
                made["session_id"] = other.session.split("_")[1]
        if "{key_id}" in path:
            made["key_id"] = stubs.create_key(name="own", role="ROLE_ADMIN").api_key.id
        if "{user_id}" in path:
            user = stubs.create_user(f"own{next(_numbers)}@example.com", role="ROLE_ADMIN")
            made["user_id"] = user.id
        return made

    def answer(self, method: str, target: str, form: Mapping[str, str] | None = None) -> Any:
        """Return what a reader can tell of an answer, without what this request itself named."""
        if not self.site.session:
            self.sign_ins.next_minute()
            self.site.sign_in(self.tenant.stubs.token)
        if method == "GET":
            return readable(self.site.get(target))
        csrf = self.site.new_key_form().fields["csrf"]
        return readable(self.site.post(target, {**(form or {}), "csrf": csrf}))


def readable(seen: Seen) -> tuple[int, str, str]:
    """Return status, where it leads, and what is in front of the list."""
    alerts = " ".join(re.findall(r'role="alert".*?</div>', seen.html, re.DOTALL))
    said = seen.dialog or alerts or re.sub(r"<tbody>.*</tbody>", "", seen.html, flags=re.DOTALL)
    return seen.status, seen.location, said


NOTHING_AT_ALL = Foreign(NOTHING, NOTHING, NOTHING, NOTHING, "nobody@example.com")


@pytest.fixture
def tenancy(sign_ins: SignIns, routes: Routes) -> Iterator[Tenancy]:
    """A tenant whose administrator is signed in, beside the operator account with what there is."""
    service = sign_ins.service
    sign_ins.next_minute()
    with sign_ins.browser() as operator, sign_ins.browser() as site:
        sign_ins.admin(operator)
        user_id, email = sign_ins.administrator()
        key_id = service.admin.create_key(name="secret plans", owner_id=user_id).api_key.id
        operator.post_invite(user_id)
        session_id = operator.session.split("_")[1]
        tenant = service.tenant(f"tenant{next(_numbers)}")
        assert site.sign_in(tenant.stubs.token).status == 200
        foreign = Foreign(key_id, user_id, session_id, service.account_id, email)
        yield Tenancy(sign_ins, routes, tenant, site, foreign)
        assert not service.admin.events(target_id=session_id, actions=[SESSION_ENDED])
        assert service.admin.key(key_id).revoke_time.seconds == 0
        assert service.admin.user(user_id).delete_time.seconds == 0


def same_for_both(tenancy: Tenancy, answers: Sequence[Any], which: object) -> None:
    """Check that the answer about another account's thing is that about nothing."""
    texts = []
    for answer, named_here in zip(answers, (tenancy.foreign, NOTHING_AT_ALL), strict=True):
        text = answer if isinstance(answer, str) else repr(answer)
        for one in sorted(named_here.all(), key=len, reverse=True):
            text = text.replace(one, "X").replace(quote(one, safe=""), "X")
        texts.append(text)
    assert texts[0] == texts[1], which
    for secret in ("secret plans", tenancy.foreign.email, "operator"):
        assert secret not in texts[0], which


def test_a_path_with_an_id_of_another_account_answers_like_one_of_nothing(
    tenancy: Tenancy,
) -> None:
    """Every page and every form, to the letter but for the id."""
    for method, paths in (("GET", tenancy.routes.pages), ("POST", tenancy.routes.forms)):
        for path in paths:
            if "{" not in path or path.startswith("/console/keys/{key_id}/saved"):
                continue
            form = {**FILLED, "request_id": request_id()}
            answers = [
                tenancy.answer(method, named(path, one.ids), form)
                for one in (tenancy.foreign, NOTHING_AT_ALL)
            ]
            same_for_both(tenancy, answers, (method, path))
            assert answers[0][0] == 404, (method, path)
            ill_formed = tenancy.answer(method, named(path, dict.fromkeys(IDS, "x")), form)
            assert ill_formed[0] == 404, (method, path)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("account", ["account"]),
        ("owner", ["user_id", "email"]),
        ("revoked", ["key_id"]),
        ("deleted", ["user_id"]),
        ("target", IDS),
        ("actor", ["key_id", "user_id", "email"]),
        ("key", ["key_id"]),
    ],
)
def test_a_query_with_an_id_of_another_account_answers_like_one_of_nothing(
    tenancy: Tenancy, name: str, kinds: Sequence[str]
) -> None:
    """On every page, whatever it makes of it."""
    for path in tenancy.routes.pages:
        if path.startswith("/console/sign-in/"):
            continue  # begins a sign-in, whose state is drawn
        page = named(path, tenancy.own(path))
        for kind in kinds:
            answers = [
                tenancy.answer("GET", f"{page}?{name}={quote(getattr(one, kind))}")
                for one in (tenancy.foreign, NOTHING_AT_ALL)
            ]
            same_for_both(tenancy, answers, (path, kind))


def test_a_form_with_an_id_of_another_account_answers_like_one_of_nothing(
    tenancy: Tenancy,
) -> None:
    """In each of its fields, and in the account of its URL."""
    for path in tenancy.routes.forms:
        if path.startswith(("/console/sign-", "/console/backchannel", "/console/invitation")):
            continue
        for name, kind in (
            ("account", "account"),
            ("owner", "email"),
            ("owner", "user_id"),
            ("email", "email"),
            ("key", "key_id"),
        ):
            answers = []
            for one in (tenancy.foreign, NOTHING_AT_ALL):
                own, value = tenancy.own(path), getattr(one, kind)
                fresh = {"request_id": request_id(), "email": f"own{next(_numbers)}@example.com"}
                form = {**FILLED, **fresh, name: value}
                query = f"?account={quote(value)}" if name == "account" else ""
                answer = repr(tenancy.answer("POST", f"{named(path, own)}{query}", form))
                answers.append(drawn_apart(answer.replace(value, "VALUE")))
            same_for_both(tenancy, answers, (path, name, kind))


def drawn_apart(answer: str) -> str:
    """Return an answer without what is drawn anew for each."""
    return re.sub(r"\bown\d+@|\bkb\w+|\b[0-9A-Za-z]{16}\b|[0-9a-f-]{36}", "DRAWN", answer)


# --- what comes along by itself -------------------------------------------------------------------


def test_no_header_breaks_a_page(sign_ins: SignIns, routes: Routes, site: Site) -> None:
    """Cookies of ours with names and values that no server of ours gave, and any `User-Agent`."""
    ids = own_ids(sign_ins, site)
    names = ["", "-", "-[x]", '-a"b', "-a,b", "-\u00e4", "-(a)", "-a/b", "-a b"]
    for value in ("x", '"', "\u00e4", "=", "a.b.c.d.e", "eyJhbGciOiJub25lIn0.e30."):
        cookies = "; ".join(f"__Host-keybearer-signin{one}={value}" for one in names)
        ours = f"{SESSION}={site.session}; __Host-keybearer-theme={value}; "
        ours += f"__Host-keybearer-invitation={value}; __Host-keybearer-person={value}; "
        for path in routes.pages:
            target = named(path, ids)
            headers = {
                "cookie": (ours + cookies).encode(),
                "user-agent": b"\xff<script>" + b"x" * 9000,
            }
            assert_harmless(site.get(f"{target}?state=[x]", headers=headers), (path, value))
        sign_ins.next_minute()


@pytest.mark.parametrize("email", ["\ud800@x", "a\u202eb@x", "a\0@x", "a\n@x"])
def test_an_address_that_nobody_can_see_is_none(tmp_path: Path, email: str) -> None:
    """The provider may say it; the page shows the subject instead, and it names nobody here."""
    settings = {"bind": "verified-email", "key_sign_in": "on"}
    with signing_in(tmp_path / "data", **settings) as own, own.browser() as site:
        link = own.invite(own.administrator()[0])
        assert site.post("/console/invitation", {"invitation": link}).status == 200
        seen = own.sign_in(site, "alice", "invitation", email=email, email_verified=True)
        assert seen.status == 200
        assert "alice" in seen.text
        assert email not in seen.html
        own.next_minute()
        with own.browser() as other:
            seen = own.sign_in(other, "bob", email=email, email_verified=True)
            assert seen.status == 403


# --- a real browser -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_turned", [False, True], ids=["own account", "another account"])
def test_no_page_makes_a_browser_complain(
    sign_ins: SignIns, routes: Routes, open_page: Callable[..., Any], *, is_turned: bool
) -> None:
    """Hostile texts in every row and in the query: no script runs, no policy is broken."""
    service = sign_ins.service
    sign_ins.next_minute()
    stubs = service.tenant(f"tenant{next(_numbers)}").stubs if is_turned else service.admin
    email = f"=<img/src=x/onerror=alert(1)>{next(_numbers)}@example.com"
    user = stubs.create_user(email, role="ROLE_ADMIN", display_name=HOSTILE)
    made = stubs.create_key(
        name=HOSTILE,
        description=HOSTILE,
        role="ROLE_ADMIN",
        owner_id=user.id,
        labels={"a": HOSTILE},
    )
    page = open_page(user_agent=HOSTILE)
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    sign_in(page, service)
    cookies = {one["name"]: one["value"] for one in page.context.cookies()}
    ids = {
        "key_id": made.api_key.id,
        "user_id": user.id,
        "session_id": cookies[SESSION].split("_")[1],
    }
    account = f"account={user.account_id}&" if is_turned else ""
    for path in routes.pages:
        if path in NO_PAGES or path.endswith(".csv"):
            continue
        answer = page.goto(
            f"{service.app.console_origin}{named(path, ids)}?{account}q={quote(HOSTILE)}"
            f"&page={quote(HOSTILE)}&done={quote(HOSTILE)}&next={quote(HOSTILE)}"
        )
        assert answer.status < 500, path
        assert page.locator("img, main script").count() == 0, path
    stubs.revoke(made.api_key.id, note=HOSTILE)
    page.goto(f"{service.app.console_origin}/console/keys/{made.api_key.id}")
    page.get_by_text(HOSTILE).first.wait_for()


def test_no_cell_of_a_file_is_a_formula(sign_ins: SignIns, routes: Routes, site: Site) -> None:
    """Addresses of owners and of those who act among them, which may begin with any sign."""
    admin = sign_ins.service.admin
    for sign in "=+-@":
        email = f"{sign}1+1{next(_numbers)}@example.com".replace("@1+", "=1+")
        user = admin.create_user(email, role="ROLE_ADMIN", display_name=f"{sign}x")
        token = admin.create_key(name=f"{sign}1", role="ROLE_ADMIN", owner_id=user.id).token
        sign_ins.service.as_token(token).create_key(
            name=f"{sign}2", description=f"{sign}cmd", labels={"a": f"{sign}x"}
        )
    files = [path for path in routes.pages if path.endswith(".csv")]
    assert len(files) == 2
    for path in files:
        rows = list(csv.reader(io.StringIO(site.get(path).html, newline="")))
        cells = [cell for row in rows for cell in row]
        assert [cell for cell in cells if cell.lstrip().startswith(tuple("=+-@\t\r"))] == [], path
        assert any(cell.startswith("'=") for cell in cells), path
