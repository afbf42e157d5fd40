"""Guards for FastAPI routes: a dependency that returns the caller.

    require = KeyAuth(AsyncCachingVerifier(client))

    @app.get("/clusters")
    async def clusters(caller: Annotated[Identity, Depends(require(scopes=["clusters.read"]))]):
        ...

This module needs FastAPI, which this package does not install.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase

from keybearer._guard.check import check_async
from keybearer._guard.identity import enter_identity, leave_identity
from keybearer._guard.verifier import AsyncVerifier, assert_verifier
from keybearer._wire.arguments import members, strings
from keybearer._wire.bearer import AUTHORIZATION, token_of
from keybearer._wire.denial import Denial
from keybearer._wire.http import error_document, error_headers, http_status_of
from keybearer.access import AccessRule, Role
from keybearer.models import Identity, Presented

__all__ = ["KeyAuth", "KeyDependency"]


class KeyAuth:
    """Makes dependencies that let a request pass when its key meets a rule.

    Args:
        verifier: Finds the identity behind a credential.

    Raises:
        TypeError: The verifier is not one for asyncio.
    """

    def __init__(self, verifier: AsyncVerifier) -> None:
        assert_verifier(self, verifier, is_async=True)
        self._verifier = verifier

    def __repr__(self) -> str:
        return f"KeyAuth({self._verifier!r})"

    def __call__(
        self,
        *,
        role: Role = Role.UNSPECIFIED,
        scopes: Iterable[str] = (),
        only_roles: Iterable[Role] = (),
    ) -> "KeyDependency":
        """Return a dependency. Without arguments it requires any valid key.

        Args:
            role: The lowest effective role that is accepted; UNSPECIFIED accepts every role.
            scopes: Scopes that must all be met.
            only_roles: Exactly these roles may call; empty means that the rank alone counts.

        Raises:
            RuleError: The rule contradicts itself.
            TypeError: An argument has another type; the message names it.
        """
        rule = AccessRule(
            role=role,
            scopes=strings("scopes", scopes),
            only_roles=tuple(Role(one) for one in members("only_roles", Role, only_roles)),
        )
        return KeyDependency(self._verifier, rule)


class KeyDependency(SecurityBase):
    """Yields the caller's identity, or ends the request with 401, 403, 503 or 500.

    While the request is handled, `current_identity()` returns it too.
    """

    def __init__(self, verifier: AsyncVerifier, rule: AccessRule) -> None:
        self.model: Any = HTTPBearerModel(description="An API key of keybearer")
        self.scheme_name = "keybearer"
        self._verifier = verifier
        self._rule = rule

    async def __call__(self, request: Request) -> AsyncIterator[Identity]:
        """Judge one request.

        Raises:
            HTTPException: The request is denied.
        """
        judgement = await check_async(self._verifier, self._rule, _presented_in_request, request)
        if isinstance(judgement, Denial):
            raise HTTPException(
                status_code=http_status_of(judgement.code).value,
                detail=error_document(judgement.reason, judgement.message),
                headers=error_headers(
                    challenge=judgement.challenge, retry_after=judgement.retry_after
                ),
            )
        before = enter_identity(judgement)
        try:
            yield judgement
        finally:
            # Some servers end a request in another context, and then there is nothing to reset.
            with contextlib.suppress(ValueError):
                leave_identity(before)


def _presented_in_request(request: Request) -> Presented | None:
    token = token_of(request.headers.getlist(AUTHORIZATION))
    peer = request.client.host if request.client else ""
    return None if token is None else Presented(token, peer)
