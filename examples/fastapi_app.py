"""A FastAPI application that keybearer guards.

KEYBEARER_ADDRESS=127.0.0.1:50051 KEYBEARER_TOKEN=… uvicorn --app-dir examples fastapi_app:app

The token is that of a key with the role VALIDATOR.
"""  # noqa: INP001 - a script

import os
from typing import Annotated

from fastapi import Depends, FastAPI

from keybearer import AsyncCachingVerifier, AsyncKeybearerClient, Identity, Role
from keybearer.fastapi import KeyAuth

# Plaintext, because keybearer is on this machine; without `tls=False` the client speaks TLS.
client = AsyncKeybearerClient(
    os.environ["KEYBEARER_ADDRESS"], token=os.environ["KEYBEARER_TOKEN"], tls=False
)
require = KeyAuth(AsyncCachingVerifier(client))

Reader = Annotated[Identity, Depends(require(scopes=["clusters.read"]))]
Admin = Annotated[Identity, Depends(require(role=Role.ADMIN))]

app = FastAPI()
clusters = {"orders", "stock"}


@app.get("/clusters")
async def list_clusters(caller: Reader) -> dict[str, list[str] | str]:
    """Answer the clusters, and who asked."""
    return {"clusters": sorted(clusters), "asked_by": caller.owner_id}


@app.delete("/clusters/{name}", status_code=204)
async def delete_cluster(name: str, _: Admin) -> None:
    """Delete a cluster. For administrators."""
    clusters.discard(name)


@app.get("/version")
async def version() -> str:
    """Answer the version, to anybody."""
    return "1.0"
