"""Guards FastAPI routes: a dependency that answers who calls.

    require = KeyAuth(AsyncCachingVerifier(client))

    @app.get("/clusters")
    async def clusters(caller: Annotated[Identity, Depends(require(scopes=["clusters.read"]))]):
        ...

Needs FastAPI, which this package does not install.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from fastapi import HTTPException, Request
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase

from keybearer._client.verifier import AsyncVerifier
from keybearer._guard.guard import Denial, check_async
from keybearer.access import AccessRule, Role, RuleError
from keybearer.models import Identity
from keybearer.web import headers_of, status_of


class KeyAuth:
    """Makes dependencies that let a request pass when its key meets a rule.

    Args:
        verifier: Answers whose token it is.

    Raises:
        TypeError: The verifier is not one for asyncio.
    """

    def __init__(self, verifier: AsyncVerifier) -> None:
        if not inspect.iscoroutinefunction(verifier.verify):
            raise TypeError("KeyAuth needs a verifier for asyncio")
        self._verifier = verifier

    def __call__(
        self,
        *,
        role: Role = Role.UNSPECIFIED,
        scopes: Iterable[str] = (),
        only_roles: Iterable[Role] = (),
    ) -> "KeyDependency":
        """Answer a dependency; without arguments it asks for any valid key.

        Raises:
            RuleError: The rule contradicts itself.
        """
        if isinstance(scopes, str):
            raise RuleError("scopes is a list of strings, not one string")
        rule = AccessRule(role=role, scopes=tuple(scopes), only_roles=tuple(only_roles))
        return KeyDependency(self._verifier, rule)


class KeyDependency(SecurityBase):
    """Answers the caller's identity, or ends the request with 401, 403, 503 or 500."""

    def __init__(self, verifier: AsyncVerifier, rule: AccessRule) -> None:
        self.model: Any = HTTPBearerModel(description="An API key of keybearer")
        self.scheme_name = "keybearer"
        self._verifier = verifier
        self._rule = rule

    async def __call__(self, request: Request) -> Identity:
        """Judge one request.

        Raises:
            HTTPException: It is denied.
        """
        judgement = await check_async(self._verifier, request.headers.items, self._rule)
        if isinstance(judgement, Denial):
            raise HTTPException(
                status_code=status_of(judgement).value,
                detail={"error": judgement.reason, "message": judgement.message},
                headers=headers_of(judgement),
            )
        return judgement
