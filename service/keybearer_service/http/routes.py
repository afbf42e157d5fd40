"""Routes that every HTTP port serves: liveness, readiness, metrics."""

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

NO_STORE = {"cache-control": "no-store"}


def health_routes(is_ready: Callable[[], bool]) -> list[Route]:
    """Return `/healthz`: the process lives, and `/readyz`: it can answer."""

    async def healthz(_request: Request) -> Response:
        return PlainTextResponse("ok\n", headers=NO_STORE)

    def readyz(_request: Request) -> Response:
        ready = is_ready()
        return PlainTextResponse(
            "ready\n" if ready else "not ready\n", 200 if ready else 503, headers=NO_STORE
        )

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


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
