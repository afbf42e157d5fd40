"""Reasons of errors: the enum, its comments and the classes say the same."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from keybearer.v1.error_reason_pb2 import ErrorReason
from keybearer_service.domain import errors
from keybearer_service.domain.errors import ServiceError

PROTO = Path(__file__).parents[2] / "protos/keybearer/v1/error_reason.proto"
PREFIX = "ERROR_REASON_"
NOT_SENT = {"UNSPECIFIED": "never sent", "VERIFIER_UNAVAILABLE": "sent by guarded services alone"}
_ENTRY = re.compile(r"((?:^  //.*\n)+)^  ERROR_REASON_([A-Z_]+) = \d+;", re.MULTILINE)


def _subclasses(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for one in root.__subclasses__():
        yield one
        yield from _subclasses(one)


CLASSES = [one for one in _subclasses(ServiceError) if one.__module__ == errors.__name__]
COMMENTS = {name: comment for comment, name in _ENTRY.findall(PROTO.read_text("utf-8"))}
SENT = [name.removeprefix(PREFIX) for name in ErrorReason.keys()]  # noqa: SIM118 - no dict


def test_every_value_of_the_enum_was_found_in_the_proto() -> None:
    """The comments below are read from the file, so the reading must not miss any."""
    assert sorted(COMMENTS) == sorted(SENT)


@pytest.mark.parametrize("reason", [one for one in SENT if one not in NOT_SENT])
def test_every_reason_has_exactly_one_class_with_the_code_of_its_comment(reason: str) -> None:
    """The comment names the status code first; the one class of the reason has that code."""
    named = re.match(r"\s*// ([A-Z_]+)[:,]", COMMENTS[reason])
    assert named is not None
    assert [one.code.name for one in CLASSES if one.reason == reason] == [named[1]]


def test_no_class_has_a_reason_that_is_not_published() -> None:
    """Callers branch on reasons, so all of them stand in the proto."""
    assert {one.reason for one in CLASSES} == set(SENT) - set(NOT_SENT)


def test_every_retryable_class_says_when() -> None:
    """UNAVAILABLE and RESOURCE_EXHAUSTED carry RetryInfo, unless waiting does not help."""
    for one in CLASSES:
        retryable = one.code.name in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        retryable = retryable and one is not errors.QuotaExceeded
        assert (one.retry_after is not None) == retryable, one.__name__
