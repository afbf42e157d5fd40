"""`google.rpc.Status` with details: what is written is read."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from keybearer._wire.status import (
    DETAILS_KEY,
    FieldViolation,
    StatusDetails,
    read_details,
    write_status,
)

DETAILS = {
    "a reason": StatusDetails(reason="KEY_REVOKED"),
    "metadata": StatusDetails(reason="KEY_REVOKED", metadata={"api_key_id": "4f9QzVbT1xKc8LmN"}),
    "a second": StatusDetails(reason="STORE_UNAVAILABLE", retry_after=1.0),
    "a fraction of a second": StatusDetails(reason="STREAM_ENDED", retry_after=0.1),
    "no delay at all": StatusDetails(reason="OVERLOADED", retry_after=0.0),
    "a field": StatusDetails(
        reason="FIELD_INVALID",
        metadata={"field": "name"},
        field_violations=(FieldViolation("name", "required"),),
    ),
    "two fields": StatusDetails(
        reason="FIELD_INVALID",
        field_violations=(FieldViolation("name", "required"), FieldViolation("ttl", "too long")),
    ),
}


@pytest.mark.parametrize("name", DETAILS)
def test_details_survive_the_wire(name: str) -> None:
    """Every detail that is written is read from the trailing metadata."""
    status = write_status(grpc.StatusCode.ABORTED, "a message", DETAILS[name])
    assert (status.code, status.message) == (10, "a message")
    trailers = (("other", "value"), (DETAILS_KEY, status.SerializeToString()))
    assert read_details(trailers) == DETAILS[name]


def _trailers(*details: AnyMessage) -> list[tuple[str, bytes]]:
    return [(DETAILS_KEY, status_pb2.Status(code=3, details=details).SerializeToString())]


def _packed(domain: str) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(error_details_pb2.ErrorInfo(reason="OTHER", domain=domain, metadata={"a": "b"}))
    return packed


UNREADABLE = {
    "no trailers": None,
    "empty trailers": (),
    "no details": _trailers(),
    "another domain": _trailers(_packed("example.com")),
    "bytes that are no status": [(DETAILS_KEY, b"\xff\xff")],
    "a detail that is not what it says": _trailers(
        AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_ours_or_not_readable_is_left_out(name: str) -> None:
    """The code of the call still counts, so reading never fails."""
    assert read_details(UNREADABLE[name]) == StatusDetails()
