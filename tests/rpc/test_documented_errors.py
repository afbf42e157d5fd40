"""The comment of a method lists every error of its own that the calls of this directory saw."""

import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from harness import SEEN_ERRORS, SeenError
from keybearer.access import rules_of
from keybearer.v1.error_reason_pb2 import ErrorReason
from keybearer_service.endpoints import SERVICES

PROTOS = Path(__file__).parents[2] / "protos/keybearer/v1"
PREFIX = "ERROR_REASON_"
REASONS = frozenset(name.removeprefix(PREFIX) for name in ErrorReason.keys())  # noqa: SIM118 - no dict
RULES = rules_of(SERVICES)

_SERVICE = re.compile(r"^service (\w+) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_METHOD = re.compile(r"((?:^  //.*\n)+)^  rpc (\w+)\(", re.MULTILINE)
_WORD = re.compile(r"\b[A-Z][A-Z_]+\b")
_EVERY = re.compile(r"^// - (any method|not public|operator only|a change): (.*?)\.$", re.MULTILINE)
_CODE = re.compile(r"^  // ([A-Z_]+)[:,](?:.*\n(?:  //.*\n)*?)  ERROR_REASON_(\w+) =", re.MULTILINE)


def listed_errors(proto: str) -> Iterator[tuple[str, AbstractSet[str]]]:
    """Yield the path of each method of a file and the reasons that its comment lists."""
    for service, body in _SERVICE.findall(proto):
        listed: dict[str, AbstractSet[str]] = {}
        for comment, method in _METHOD.findall(body):
            text = " ".join(line.strip(" /") for line in comment.splitlines())
            errors = text.partition("Errors:")[2]
            another = re.search(r"\bas (\w+)", errors)
            listed[method] = (REASONS & set(_WORD.findall(errors))) | (
                listed.get(another[1], frozenset()) if another else frozenset()
            )
        for method, reasons in listed.items():
            yield f"/keybearer.v1.{service}/{method}", reasons


LISTED: Mapping[str, AbstractSet[str]] = {
    method: reasons
    for path in sorted(PROTOS.glob("*_service.proto"))
    for method, reasons in listed_errors(path.read_text("utf-8"))
}
_ERROR_REASONS = (PROTOS / "error_reason.proto").read_text("utf-8")
EVERYWHERE = {kind: set(_WORD.findall(reasons)) for kind, reasons in _EVERY.findall(_ERROR_REASONS)}
CODES = {reason: code for code, reason in _CODE.findall(_ERROR_REASONS)}


def is_documented(seen: SeenError, listed: Mapping[str, AbstractSet[str]] = LISTED) -> bool:
    """Return whether the protos say that a method may answer an error."""
    if CODES[seen.reason] != seen.code:
        return False
    rule = RULES[seen.method]
    documented = listed[seen.method] | EVERYWHERE["any method"] | EVERYWHERE["a change"]
    if not rule.public:
        documented |= EVERYWHERE["not public"]
    if rule.operator_only:
        documented |= EVERYWHERE["operator only"]
    # Bytes that are no message of the method may come to any of them.
    return seen.reason in documented or seen.fields == ("(message)",)


def test_the_protos_were_read_whole() -> None:
    """Every method, every kind of common error and the code of every reason were found."""
    assert set(LISTED) == set(RULES)
    assert set(EVERYWHERE) == {"any method", "not public", "operator only", "a change"}
    assert set().union(*EVERYWHERE.values()) <= REASONS
    assert set(CODES) == REASONS - {"UNSPECIFIED"}


def test_a_forgotten_error_is_noticed() -> None:
    """Taking a reason out of the comment of a method leaves what was seen undocumented."""
    seen = SeenError("/keybearer.v1.UserService/CreateUser", "ALREADY_EXISTS", "EMAIL_TAKEN", ())
    forgetful = {**LISTED, seen.method: LISTED[seen.method] - {seen.reason}}
    assert is_documented(seen)
    assert not is_documented(seen, forgetful)
    assert not is_documented(seen._replace(code="NOT_FOUND"))


def test_every_error_that_was_seen_is_documented() -> None:
    """Whatever a call of this directory was refused with stands in the comment of its method."""
    seen = {one for one in SEEN_ERRORS if one.method in RULES}
    if not seen:
        pytest.skip("looks at the errors of the tests before it, and there were none")
    assert sorted(one for one in seen if not is_documented(one)) == []
