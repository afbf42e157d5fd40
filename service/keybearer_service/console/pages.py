"""Templates, style sheet and script: how a page becomes an answer."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from keybearer_service.console import links, times
from keybearer_service.console.problems import Problem
from keybearer_service.console.visits import THEMES, Visit
from keybearer_service.domain.clock import Clock, Micros, pause

_HERE: Final = Path(__file__).parent
_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_HASH_DIGITS: Final = 16
_PIECES_AT_ONCE: Final = 25
"""Less than a tenth of a millisecond's worth. So a page takes some thirty milliseconds, most of
which it waits."""
_PAUSE_S: Final = 0.0005
IMMUTABLE: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file, under a name that changes with what is in it."""

    path: str
    content: bytes
    content_type: str


class Pages:
    """Renders pages. Everything is read and compiled when it is made."""

    def __init__(self, clock: Clock, *, has_provider: bool = False) -> None:
        """Read and compile everything.

        Args:
            clock: Says how long ago things were.
            has_provider: Whether people sign in at a provider.
        """
        self._clock = clock
        self._assets = {file.name: _asset(file) for file in sorted((_HERE / "static").iterdir())}
        self._environment = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            **links.TEMPLATE_FUNCTIONS,
            asset=lambda name: self._assets[name].path,
            themes=THEMES,
            has_provider=has_provider,
        )
        self._environment.filters.update(
            full=times.full, machine=times.machine, clock_time=times.clock_time
        )
        self._templates = {
            name: self._environment.get_template(name)
            for name in self._environment.list_templates()
        }

    @property
    def assets(self) -> Mapping[str, Asset]:
        """The static files, by their paths."""
        return {one.path: one for one in self._assets.values()}

    def show(
        self,
        template: str,
        visit: Visit,
        *,
        status: int = 200,
        problem: Problem | None = None,
        area: str = "keys",
        account: str = "",
        **values: Any,
    ) -> Response:
        """Return a page.

        Args:
            template: The file.
            visit: Whose answer it is.
            status: The status, unless a problem has one.
            problem: Why a form could not be carried out.
            area: The one of `links.AREAS` that it belongs to.
            account: The name of the account that the page is about.
            **values: What the template shows.
        """
        now = self._clock.now()

        def relative(moment: Micros) -> str:
            return times.relative(moment, now)

        caller = visit.call.caller if visit.is_signed_in else None
        pieces = self._templates[template].generate(
            area=area,
            account=account,
            account_id=visit.account,
            who=caller,
            csrf=visit.csrf,
            here=visit.path,
            theme=visit.theme,
            state=visit.state,
            relative=relative,
            problem=problem,
            today=times.day_of(now),
            **values,
        )
        text = "".join(_with_pauses(pieces))
        return HTMLResponse(text, status if problem is None else problem.status)


def _with_pauses(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a page, and let go of the interpreter now and then.

    A page takes milliseconds, and the interpreter changes threads by itself only after five of
    them: validations would wait that long, several times.
    """
    for number, piece in enumerate(pieces, 1):
        yield piece
        if number % _PIECES_AT_ONCE == 0:
            pause(_PAUSE_S)


def _asset(file: Path) -> Asset:
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:_HASH_DIGITS]
    name = f"{file.stem}.{digest}{file.suffix}"
    return Asset(f"{links.STATIC}/{name}", content, _TYPES[file.suffix])
