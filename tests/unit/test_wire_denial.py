"""Denials: code, reason, text, metadata, challenge, trailers and HTTP form in one table."""

from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from keybearer._wire import denial
from keybearer._wire.challenge import challenge_of
from keybearer._wire.denial import Denial, denial_of, field_invalid, internal, verifier_unavailable
from keybearer._wire.enums import Outcome
from keybearer._wire.http import error_body, error_headers, http_status_of
from keybearer._wire.status import read_details
from keybearer.access import AccessRule, Role

ANY = AccessRule()
DEVELOPERS = AccessRule(role=Role.DEVELOPER)
READERS = AccessRule(scopes=("clusters.read", "clusters.list"))
REALM = 'Bearer realm="keybearer"'
INVALID = f'{REALM}, error="invalid_token", error_description='
INSUFFICIENT = f'{REALM}, error="insufficient_scope", error_description='


@dataclass(frozen=True)
class Row:
    """One denial and what it looks like."""

    denial: Denial
    code: str
    reason: str
    http: int
    challenge: str
    message: str
    metadata: Any = ()
    retry_after: float | None = None


ROWS = {
    "no credential": Row(
        denial.CREDENTIALS_MISSING,
        "UNAUTHENTICATED",
        "CREDENTIALS_MISSING",
        401,
        REALM,
        "exactly one `authorization: Bearer <token>` is needed",
    ),
    "expired": Row(
        denial_of(Outcome.EXPIRED, ANY, Role.ADMIN),
        "UNAUTHENTICATED",
        "CREDENTIALS_EXPIRED",
        401,
        f'{INVALID}"the key has expired"',
        "the key has expired",
    ),
    **{
        outcome.name.lower(): Row(
            denial_of(outcome, ANY, Role.ADMIN),
            "UNAUTHENTICATED",
            "CREDENTIALS_INVALID",
            401,
            f'{INVALID}"the credential is not accepted"',
            "the credential is not accepted",
        )
        for outcome in (
            Outcome.UNSPECIFIED,
            Outcome.NOT_FOUND,
            Outcome.REVOKED,
            Outcome.DISABLED,
        )
    },
    "role": Row(
        denial_of(Outcome.ROLE_INSUFFICIENT, DEVELOPERS, Role.VALIDATOR),
        "PERMISSION_DENIED",
        "ROLE_INSUFFICIENT",
        403,
        f'{INSUFFICIENT}"this needs the role DEVELOPER, ADMIN; '
        "the key's effective role is VALIDATOR\"",
        "this needs the role DEVELOPER, ADMIN; the key's effective role is VALIDATOR",
        {"required_role": "DEVELOPER, ADMIN", "effective_role": "VALIDATOR"},
    ),
    "scopes": Row(
        denial_of(Outcome.SCOPE_INSUFFICIENT, READERS, Role.DEVELOPER),
        "PERMISSION_DENIED",
        "SCOPE_INSUFFICIENT",
        403,
        f'{INSUFFICIENT}"this needs the scopes clusters.read, clusters.list", '
        'scope="clusters.read clusters.list"',
        "this needs the scopes clusters.read, clusters.list",
        {"required_scopes": "clusters.read, clusters.list"},
    ),
    "no rule": Row(
        denial.NO_RULE,
        "PERMISSION_DENIED",
        "ROLE_INSUFFICIENT",
        403,
        f'{INSUFFICIENT}"this has no access rule, so nobody may call it"',
        "this has no access rule, so nobody may call it",
    ),
    "operators": Row(
        denial.OPERATOR_ONLY,
        "PERMISSION_DENIED",
        "OPERATOR_ONLY",
        403,
        f'{INSUFFICIENT}"only callers of the operator account may do this"',
        "only callers of the operator account may do this",
    ),
    "a field": Row(
        field_invalid("name", "required"),
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
        400,
        "",
        "name: required",
        {"field": "name"},
    ),
    "outage": Row(
        verifier_unavailable(),
        "UNAVAILABLE",
        "VERIFIER_UNAVAILABLE",
        503,
        "",
        "the credential cannot be checked right now",
        retry_after=1.0,
    ),
    "outage for a while": Row(
        verifier_unavailable(2.5),
        "UNAVAILABLE",
        "VERIFIER_UNAVAILABLE",
        503,
        "",
        "the credential cannot be checked right now",
        retry_after=2.5,
    ),
    "unforeseen": Row(
        internal("abc"),
        "INTERNAL",
        "INTERNAL",
        500,
        "",
        "internal error (reference abc)",
        {"reference": "abc"},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_denial_looks_as_the_table_says(name: str) -> None:
    """Over gRPC and over HTTP, with the same challenge in both."""
    row = ROWS[name]
    one = row.denial
    assert (one.code.name, one.reason, one.message) == (row.code, row.reason, row.message)
    assert dict(one.metadata) == dict(row.metadata)
    assert one.challenge == row.challenge

    trailers = one.trailers()
    assert dict(trailers).get("www-authenticate", "") == row.challenge
    details = read_details(trailers)
    assert (details.reason, details.retry_after) == (row.reason, row.retry_after)
    assert details.metadata == dict(row.metadata)

    assert http_status_of(one.code) == row.http
    headers = error_headers(challenge=one.challenge, retry_after=one.retry_after)
    assert headers.get("www-authenticate", "") == row.challenge
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(("seconds", "written"), [(0.0, "1"), (0.1, "1"), (1.0, "1"), (2.6, "3")])
def test_retry_after_is_a_whole_number_of_seconds(seconds: float, written: str) -> None:
    """At least one: the header has no fractions, and 0 would mean at once."""
    assert error_headers(retry_after=seconds)["retry-after"] == written


def test_overload_is_503() -> None:
    """Gateways take 401 and 403 for denials and nothing else, so 429 would help nobody."""
    assert http_status_of(grpc.StatusCode.RESOURCE_EXHAUSTED) == 503


def test_a_code_that_nobody_sends_is_500() -> None:
    """What is not foreseen is never a success."""
    assert http_status_of(grpc.StatusCode.DATA_LOSS) == 500
    assert http_status_of(grpc.StatusCode.OK) == 500


def test_a_challenge_has_no_character_that_ends_its_description() -> None:
    """RFC 6750 allows printable ASCII without the quotation mark and the backslash."""
    challenge = challenge_of(grpc.StatusCode.PERMISSION_DENIED, "OTHER", 'a"b\\c\r\nä', {})
    assert challenge == f'{INSUFFICIENT}"a?b?c???"'


def test_the_body_has_the_reason_and_the_message() -> None:
    """In JSON, so that a message needs no escaping by hand."""
    assert error_body("REASON", 'a "b"') == '{"error": "REASON", "message": "a \\"b\\""}'
