"""Typed errors, built from what a real server sends."""

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from client.support import Message, calling, demo, failure_of
from keybearer import errors
from keybearer.errors import KeybearerError, from_rpc_error
from keybearer.v1 import error_reason_pb2

CODEC: Any = (Message.SerializeToString, Message.FromString)
DETAILS = "grpc-status-details-bin"


def _received(code: grpc.StatusCode, trailers: Any) -> KeybearerError:
    """Return the typed error of a call that a server aborts like this."""

    def fail(request: Message, context: grpc.ServicerContext) -> Message:
        context.set_trailing_metadata(trailers)
        context.abort(code, "no")

    method = grpc.unary_unary_rpc_method_handler(fail, CODEC[1], CODEC[0])
    with calling([], demo({"Any": method})) as channel:
        call: Any = channel.unary_unary("/test.guarded.Demo/Any", *CODEC)
        return from_rpc_error(failure_of(lambda: call(Message())))


def _details(code: grpc.StatusCode, *details: Any) -> Any:
    status = status_pb2.Status(code=code.value[0], message="no")
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return ((DETAILS, status.SerializeToString()),)


def _info(reason: str, domain: str = "keybearer.v1") -> Any:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata={"field": "name"})


def test_every_reason_has_one_class() -> None:
    """Every reason has exactly one class."""
    reasons = [
        name.removeprefix("ERROR_REASON_") for name in dict(error_reason_pb2.ErrorReason.items())
    ]
    classes = [
        error_class.default_reason
        for family in KeybearerError.__subclasses__()
        for error_class in (family, *family.__subclasses__())
        if error_class.default_reason
    ]
    assert sorted(classes) == sorted(set(reasons) - {"UNSPECIFIED"})


def test_every_code_but_two_has_a_class() -> None:
    """Every code that is sent has a class."""
    families = {family.default_code.name for family in KeybearerError.__subclasses__()}
    assert {code.name for code in grpc.StatusCode} - families == {
        "OK",
        "UNKNOWN",
        "OUT_OF_RANGE",
        "DATA_LOSS",
    }


def test_a_known_reason_is_its_class_with_everything_in_it() -> None:
    """A typed error has the reason, metadata, delay and fields of the status."""
    code = grpc.StatusCode.INVALID_ARGUMENT
    violation = error_details_pb2.BadRequest.FieldViolation(field="name", description="too long")
    bad_request = error_details_pb2.BadRequest(field_violations=[violation])
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    error = _received(code, _details(code, _info("FIELD_INVALID"), bad_request, retry))
    assert type(error) is errors.FieldInvalidError
    assert (error.code, error.reason, error.message) == (code, "FIELD_INVALID", "no")
    assert dict(error.metadata) == {"field": "name"}
    assert error.retry_after == 1.5
    assert error.field_violations == (errors.FieldViolation("name", "too long"),)
    assert str(error) == "INVALID_ARGUMENT FIELD_INVALID: no"


@pytest.mark.parametrize(
    ("code", "trailers", "expected", "reason"),
    [
        ("NOT_FOUND", _details(grpc.StatusCode.NOT_FOUND, _info("NEW")), "NotFoundError", "NEW"),
        ("ABORTED", _details(grpc.StatusCode.ABORTED, _info("X", "other")), "AbortedError", ""),
        # A reason under a code that is not its own says nothing to be relied on.
        (
            "ABORTED",
            _details(grpc.StatusCode.ABORTED, _info("KEY_REVOKED")),
            "AbortedError",
            "KEY_REVOKED",
        ),
        ("ABORTED", ((DETAILS, b"\xff\xff"),), "AbortedError", ""),
        ("ABORTED", (), "AbortedError", ""),
        ("DATA_LOSS", (), "KeybearerError", ""),
    ],
)
def test_what_is_not_known_falls_back_on_the_code(
    code: str, trailers: Any, expected: str, reason: str
) -> None:
    """An unknown reason or unreadable details become the class of the code."""
    error = _received(grpc.StatusCode[code], trailers)
    assert type(error).__name__ == expected
    assert error.reason == reason
    assert error.code is grpc.StatusCode[code]
