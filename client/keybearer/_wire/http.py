"""How a denial or an error looks over HTTP: status, headers and body."""

import json
from http import HTTPStatus
from typing import Final

import grpc

from keybearer._wire.challenge import WWW_AUTHENTICATE

NO_STORE: Final = {"cache-control": "no-store"}
"""The header that keeps a verdict out of every cache on the way."""
JSON: Final = "application/json"

_STATUSES: Final = {
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    # Not 429: gateways take only 401 and 403 for a denial, and retry 503.
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.SERVICE_UNAVAILABLE,
}


def http_status_of(code: grpc.StatusCode) -> HTTPStatus:
    """Return the HTTP status of an error; 500 for a code that no guard and no entry point sends."""
    return _STATUSES.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


def error_headers(*, challenge: str = "", retry_after: float | None = None) -> dict[str, str]:
    """Return the headers of an error, without the content type.

    Args:
        challenge: The value of `www-authenticate`; empty for none.
        retry_after: Seconds; written as whole seconds, at least 1.
    """
    headers = dict(NO_STORE)
    if challenge:
        headers[WWW_AUTHENTICATE] = challenge
    if retry_after is not None:
        headers["retry-after"] = str(max(1, round(retry_after)))
    return headers


def error_document(reason: str, message: str) -> dict[str, str]:
    """Return the content of the body: the reason for programs, the message for people."""
    return {"error": reason, "message": message}


def error_body(reason: str, message: str) -> str:
    """Return the body of an error, in JSON."""
    return json.dumps(error_document(reason, message))
