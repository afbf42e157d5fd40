"""Checks of arguments before anything is sent. Every error names the argument.

Protobuf takes None for a field that is absent, True for 1 and a string for a sequence of strings,
so a mistake would be sent as another wish than the caller's.
"""

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

MAX_INT32 = 2**31 - 1

EnumT = TypeVar("EnumT", bound=enum.IntEnum)


def text(name: str, value: object) -> str:
    """Return a string.

    Raises:
        TypeError: The value is no string. The message does not repeat it: it may be a secret.
        ValueError: The string has half of a surrogate pair, which UTF-8 cannot encode.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # Not from the error, whose text repeats the value.
        raise ValueError(
            f"{name} has a character that UTF-8 cannot encode, at position {error.start}"
        ) from None
    return value


def strings(name: str, values: object) -> tuple[str, ...]:
    """Return several strings, given as a list, a tuple, a set or another iterable.

    Raises:
        TypeError: The value is one string, a mapping or no iterable, or an item is no string.
        ValueError: As for `text`.
    """
    return tuple(
        text(f"{name}[{index}]", item)
        for index, item in enumerate(_items(name, values, "strings, such as ['a', 'b']"))
    )


def labels(name: str, value: object) -> dict[str, str]:
    """Return a mapping from strings to strings.

    Raises:
        TypeError: The value is no mapping, or a key or a value of it is no string.
        ValueError: As for `text`.
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a mapping such as {{'team': 'blue'}}, not {kind_of(value)}"
        )
    return {
        text(f"a key of {name}", key): text(f"{name}[{key!r}]", item) for key, item in value.items()
    }


def member(name: str, enum_class: type[enum.IntEnum], value: object) -> Any:
    """Return the number of an enum member; the generated code has a type of its own for it.

    Raises:
        TypeError: The value is no member, also when it is the number of one.
    """
    if not isinstance(value, enum_class):
        example = [*enum_class][-1]
        raise TypeError(
            f"{name} must be a {enum_class.__name__} such as "
            f"{enum_class.__name__}.{_meant(enum_class, value) or example.name}, "
            f"not {kind_of(value)}"
        )
    return int(value)


def members(name: str, enum_class: type[enum.IntEnum], values: object) -> list[Any]:
    """Return the numbers of several enum members.

    Raises:
        TypeError: The value is no list of members.
    """
    wanted = f"members of {enum_class.__name__}"
    return [
        member(f"{name}[{index}]", enum_class, item)
        for index, item in enumerate(_items(name, values, wanted))
    ]


def moment(name: str, value: object) -> datetime:
    """Return a datetime that names a moment.

    Raises:
        TypeError: The value is no datetime; a date is none.
        ValueError: The datetime has no timezone.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime with a timezone, not {kind_of(value)}")
    if value.utcoffset() is None:
        raise ValueError(
            f"{name} is a datetime without a timezone, which names no moment; pass tzinfo=UTC"
        )
    return value


def duration(name: str, value: object) -> timedelta:
    """Return a duration.

    Raises:
        TypeError: The value is no timedelta; a number of seconds is none.
    """
    if not isinstance(value, timedelta):
        raise TypeError(f"{name} must be a timedelta, not {kind_of(value)}")
    return value


def flag(name: str, value: object) -> bool:
    """Return True or False.

    Raises:
        TypeError: The value is neither; None and 0 are not False here.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {kind_of(value)}")
    return value


def count(name: str, value: object, *, least: int = -MAX_INT32) -> int:
    """Return a whole number.

    Raises:
        TypeError: The value is no int; True is none here.
        ValueError: The number is less than `least`, or does not fit into 32 bits.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {kind_of(value)}")
    if not least <= value <= MAX_INT32:
        raise ValueError(f"{name} must be from {least} to {MAX_INT32}, not {value}")
    return value


def kind_of(value: object) -> str:
    """Return what a value is, without the value: it may be a secret."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def seconds(name: str, value: object) -> float:
    """Return a positive number of seconds.

    Raises:
        TypeError: The value is no number; a timedelta is none.
        ValueError: The number is not positive.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {kind_of(value)}")
    if not value > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {value}")
    return value


def _items(name: str, values: object, wanted: str) -> Iterable[object]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an iterable of {wanted}, not {kind_of(values)}")
    return values


def _meant(enum_class: type[enum.IntEnum], value: object) -> str:
    """Return the name of the member that a string or a number seems to mean, or nothing."""
    if isinstance(value, str) and value.strip().upper() in enum_class.__members__:
        return value.strip().upper()
    if (
        isinstance(value, int)
        and not isinstance(value, enum.Enum | bool)
        and value in [*enum_class]
    ):
        return enum_class(value).name
    return ""
