"""Routes that every HTTP port serves: liveness, readiness, metrics."""

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

NO_STORE = {"cache-control": "no-store"}


def health_routes(is_live: Callable[[], bool], is_ready: Callable[[], bool]) -> list[Route]:
    """Return `/healthz`: the process answers, and `/readyz`: it can answer calls.

    Args:
        is_live: Returns the first; may take up to 2 s.
        is_ready: Returns the second; may take up to 4 s.
    """

    def healthz(_request: Request) -> Response:
        return _status(is_live(), "ok", "not answering")

    def readyz(_request: Request) -> Response:
        return _status(is_ready(), "ready", "not ready")

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def _status(is_well: bool, well: str, ill: str) -> Response:  # noqa: FBT001 - private, two words
    text, status = (well, 200) if is_well else (ill, 503)
    return PlainTextResponse(f"{text}\n", status, headers=NO_STORE)


def metrics_route(render: Callable[[], tuple[bytes, str]]) -> Route:
    """Return `/metrics`."""

    def metrics(_request: Request) -> Response:
        body, content_type = render()
        return Response(body, headers={**NO_STORE, "content-type": content_type})

    return Route("/metrics", metrics)


def application(routes: Sequence[Route]) -> Starlette:
    """Make an application of routes."""
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app
