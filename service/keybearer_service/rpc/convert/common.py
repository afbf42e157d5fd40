"""What the conversions share: times, enums, masks, and the key of repeated requests."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from functools import cache
from typing import Any, Protocol, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keybearer._wire.enums import members_of
from keybearer._wire.limits import MAX_PAGE_BYTES
from keybearer.access import Role
from keybearer_service.domain import validators
from keybearer_service.domain.clock import SECOND, Micros
from keybearer_service.domain.errors import FieldInvalid
from keybearer_service.usecases.idempotency import IdempotencyKey
from keybearer_service.usecases.pagination import Listed

NANOS = 10**9
MIN_SECONDS = -62_135_596_800
MAX_SECONDS = 253_402_300_799
"""0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z: the range of a Timestamp, by its definition."""
MAX_SPAN = 315_576_000_000
"""10,000 years: the range of a Duration, by its definition."""

_BYTES_BESIDE_ITEMS = 4096
"""More than a page token takes."""
_BYTES_BEFORE_ITEM = 6
"""At most: the number of its field, and its length."""

E = TypeVar("E", bound=IntEnum)
M = TypeVar("M", bound=Message)
T = TypeVar("T")


class _IdempotentRequest(Protocol):
    """A request that may carry a request_id."""

    request_id: str
    attempt: int

    def SerializeToString(self, *, deterministic: bool) -> bytes:  # noqa: N802 - protobuf's name
        """Return the wire form."""
        ...


def micros_from_timestamp(field: str, value: Timestamp) -> Micros:
    """Read a Timestamp as microseconds since the epoch.

    Raises:
        FieldInvalid: Outside the years 1 to 9999, or with nanoseconds out of range.
    """
    if not (MIN_SECONDS <= value.seconds <= MAX_SECONDS and 0 <= value.nanos < NANOS):
        raise FieldInvalid(field, "a moment from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z")
    return Micros(value.seconds * SECOND + value.nanos // 1000)


def micros_from_duration(field: str, value: Duration) -> int:
    """Read a Duration as microseconds.

    Raises:
        FieldInvalid: Out of range, or with seconds and nanoseconds of different signs.
    """
    same_sign = value.seconds * value.nanos >= 0
    if abs(value.seconds) > MAX_SPAN or abs(value.nanos) >= NANOS or not same_sign:
        raise FieldInvalid(field, "a duration of at most 10,000 years, like 3600s")
    return value.seconds * SECOND + int(value.nanos / 1000)


def member(field: str, enum: type[E], value: int) -> E:
    """Read the number of an enum.

    Raises:
        FieldInvalid: A number that the enum does not have.
    """
    found = enum(value) if value in enum.__members__.values() else None
    # UNSPECIFIED is what an absent role is; what it means there is for the validators to say.
    if found is None or (not found and enum is not Role):
        names = ", ".join(one.name for one in members_of(enum))
        raise FieldInvalid(field, f"one of {names}; {value} is unknown")
    return found


def members(field: str, enum: type[E], values: Iterable[int]) -> tuple[E, ...]:
    """Read the numbers of an enum, each once and in rising order.

    Raises:
        FieldInvalid: A number that the enum does not have.
    """
    found = {member(f"{field}[{index}]", enum, value) for index, value in enumerate(values)}
    return tuple(sorted(found))


def update_paths(mask: FieldMask, updatable: frozenset[str]) -> frozenset[str]:
    """Read which fields an update changes.

    Raises:
        FieldInvalid: An empty mask, or a path that cannot be updated.
    """
    if not mask.paths:
        raise FieldInvalid("update_mask", f"required: out of {', '.join(sorted(updatable))}")
    for path in mask.paths:
        if path not in updatable:
            raise FieldInvalid("update_mask", f"{path[:64]!r} is not out of {_listed(updatable)}")
    return frozenset(mask.paths)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def optional_time(request: Message, field: str) -> Micros | None:
    """Read a Timestamp that may be absent.

    Raises:
        FieldInvalid: As `micros_from_timestamp`.
    """
    return (
        micros_from_timestamp(field, getattr(request, field)) if request.HasField(field) else None
    )


def idempotency_key(method: str, request: _IdempotentRequest) -> IdempotencyKey | None:
    """Read what identifies a request when it is repeated; None without a request_id.

    Raises:
        FieldInvalid: The request_id is no UUID, or the attempt is negative or has no request_id.
    """
    if request.attempt < 0:
        raise FieldInvalid("attempt", "0 or more")
    if not request.request_id:
        if request.attempt:
            raise FieldInvalid("attempt", "counts the tries of a request_id, which is missing")
        return None
    body = type(request)()
    body.CopyFrom(request)  # type: ignore[attr-defined]  # every request is a Message
    body.attempt = 0
    body.request_id = ""  # one UUID has several spellings
    digest = hashlib.sha256(method.encode() + b"\0" + body.SerializeToString(deterministic=True))
    return IdempotencyKey(
        validators.request_id("request_id", request.request_id), request.attempt, digest.digest()
    )


def timestamp(micros: Micros | None) -> Timestamp | None:
    """Write a moment; None means absent."""
    if micros is None:
        return None
    seconds, rest = divmod(micros, SECOND)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def to_proto(make: type[M], source: object, **computed: Any) -> M:
    """Write a message: each field from the attribute of the source that has its name.

    Args:
        make: The class of the message.
        source: Holds times in microseconds, enums as their numbers, and None for what is absent.
        computed: The fields that are no attributes of the source, or have another form there.
    """
    values = computed
    for name, is_time in _fields_of(make.DESCRIPTOR):
        if name not in values:
            value = getattr(source, name)
            values[name] = timestamp(value) if is_time else value
    return make(**values)


@cache
def _fields_of(descriptor: Descriptor) -> Sequence[tuple[str, bool]]:
    return [(one.name, one.message_type == Timestamp.DESCRIPTOR) for one in descriptor.fields]


def page_to_proto(listed: Listed[T], write: Callable[[T], M]) -> tuple[list[M], str]:
    """Write the items of a page, as many as MAX_PAGE_BYTES hold.

    Args:
        listed: The page.
        write: Writes an item.

    Returns:
        The items, and the token of the page that begins after them.
    """
    messages: list[M] = []
    room = MAX_PAGE_BYTES - _BYTES_BESIDE_ITEMS
    for index, item in enumerate(listed.items):
        one = write(item)
        room -= one.ByteSize() + _BYTES_BEFORE_ITEM
        if room < 0 and messages:
            return messages, listed.token_after(listed.items[index - 1])
        messages.append(one)
    return messages, listed.next_page_token


def fill(part: Timestamp | Duration, micros: int) -> None:
    """Write a moment, or a span that is not negative, into the field of a message in place."""
    part.seconds, rest = divmod(micros, SECOND)
    part.nanos = rest * 1000


def wire(number: int) -> Any:
    """Write the number of an enum; the stubs ask for a type that the model does not know."""
    return number
