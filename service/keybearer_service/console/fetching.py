"""Requests to the provider, with bounds: the only module that sends any."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

WITHIN_S: Final = 5.0
"""For a whole request: name, connection, answer."""
MAX_ANSWER: Final = 256 * 1024
"""Bytes of an answer."""


class FetchFailed(Exception):
    """The provider cannot be used now. The text says why, and repeats nothing that was sent."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer of the provider: its status, and the JSON object in it."""

    status: int
    content: Mapping[str, Any]


class Fetcher:
    """Sends requests. Redirects are not followed: what a secret was sent to is what was meant."""

    def __init__(self, within_s: float = WITHIN_S) -> None:
        """Create it.

        Args:
            within_s: Seconds for a whole request.
        """
        self._within_s = within_s
        self._tls = ssl.create_default_context()

    def get(self, url: str) -> Fetched:
        """Return what is at a URL.

        Raises:
            FetchFailed: There is no answer in time, it is too long, or it is no JSON object.
        """
        return self._run("GET", url)

    def post(
        self, url: str, form: Mapping[str, str], credentials: tuple[str, str] | None
    ) -> Fetched:
        """Send a form; return the answer, whatever its status.

        Args:
            url: Where to.
            form: The form.
            credentials: A name and a password for basic authentication; None for none.

        Raises:
            FetchFailed: As from `get`.
        """
        return self._run("POST", url, data=dict(form), auth=credentials)

    def _run(self, method: str, url: str, **content: Any) -> Fetched:
        try:
            return asyncio.run(
                asyncio.wait_for(self._fetch(method, url, **content), self._within_s)
            )
        except TimeoutError:
            raise FetchFailed(f"no answer within {self._within_s:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise FetchFailed(type(error).__name__) from None

    async def _fetch(self, method: str, url: str, **content: Any) -> Fetched:
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        async with (
            httpx2.AsyncClient(
                verify=self._tls, timeout=self._within_s, follow_redirects=False
            ) as client,
            client.stream(method, url, headers=headers, **content) as response,
        ):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise FetchFailed("a compressed answer, which was not asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise FetchFailed(f"an answer of more than {MAX_ANSWER} bytes")
            return Fetched(response.status_code, _object_of(response.status_code, bytes(body)))


def _object_of(status: int, body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FetchFailed(f"status {status} with no JSON object")
    return found
