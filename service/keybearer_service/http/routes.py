"""Routes that every HTTP port serves: liveness, readiness, metrics."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

NO_STORE = {"cache-control": "no-store"}

T = TypeVar("T")


class _Shared(Generic[T]):
    """A slow question; those who ask it meanwhile share the answer, and one thread.

    Whoever reaches a port may ask for health and metrics: a thread for each request would let a few
    clients keep everybody else's probes waiting.
    """

    def __init__(self, put: Callable[[], T]) -> None:
        self._put = put
        self._running: asyncio.Task[T] | None = None

    async def ask(self) -> T:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(asyncio.to_thread(self._put))
        return await asyncio.shield(self._running)


def health_routes(is_live: Callable[[], bool], is_ready: Callable[[], bool]) -> list[Route]:
    """Return `/healthz`: the process answers, and `/readyz`: it can answer calls.

    Args:
        is_live: Returns the first; may take up to 2 s.
        is_ready: Returns the second; may take up to 4 s.
    """
    liveness, readiness = _Shared(is_live), _Shared(is_ready)

    async def healthz(_request: Request) -> Response:
        return _status(await liveness.ask(), "ok", "not answering")

    async def readyz(_request: Request) -> Response:
        return _status(await readiness.ask(), "ready", "not ready")

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def _status(is_well: bool, well: str, ill: str) -> Response:  # noqa: FBT001 - private, two words
    text, status = (well, 200) if is_well else (ill, 503)
    return PlainTextResponse(f"{text}\n", status, headers=NO_STORE)


def metrics_route(render: Callable[[], tuple[bytes, str]]) -> Route:
    """Return `/metrics`."""
    rendering = _Shared(render)

    async def metrics(_request: Request) -> Response:
        body, content_type = await rendering.ask()
        return Response(body, headers={**NO_STORE, "content-type": content_type})

    return Route("/metrics", metrics)


def application(routes: Sequence[Route]) -> Starlette:
    """Make an application of routes."""
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app
