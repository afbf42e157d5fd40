"""Arguments of the commands: enums, times, durations, labels."""

import enum
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import typer

from keybearer._client.requests import NEVER_EXPIRES, Expiration
from keybearer._wire.durations import parse_duration
from keybearer._wire.enums import members_of
from keybearer.cli.refusals import usage

EnumT = TypeVar("EnumT", bound=enum.IntEnum)

_LAST_WORD = re.compile(r"[A-Z][a-z]+")

MAX_DURATION = timedelta(days=36_500)
"""Longer ones are typing errors, and date arithmetic cannot represent them."""


def word(member: enum.IntEnum) -> str:
    """Return the name of an enum member as people write it: `no-longer-used`."""
    return member.name.lower().replace("_", "-")


def enum_option(
    enum_class: type[EnumT],
    text: str,
    *names: str,
    without: tuple[EnumT, ...] = (),
    show_choices: bool = True,
) -> Any:
    """Return a typer option whose values are the members of an enum, with completion.

    Args:
        enum_class: The enum. UNSPECIFIED is no choice.
        text: The help text; the choices are added to it.
        names: As for `typer.Option`.
        without: Further members that are no choice.
        show_choices: Whether the help text names the choices.
    """
    return typer.Option(*names, **_choice(enum_class, text, without, show_choices=show_choices))


def enum_argument(enum_class: type[EnumT], text: str) -> Any:
    """Return a typer argument whose values are the members of an enum, with completion."""
    return typer.Argument(**_choice(enum_class, text, (), show_choices=True))


def _choice(
    enum_class: type[EnumT], text: str, without: tuple[EnumT, ...], *, show_choices: bool
) -> dict[str, Any]:
    choices = {word(one): one for one in members_of(enum_class) if one not in without}

    def parse(given: str) -> EnumT:
        # Typer passes defaults too, and those are members.
        member = choices.get(str(given).strip().lower().replace("_", "-"))
        if isinstance(given, enum_class):
            member = given
        if member is None:
            raise typer.BadParameter(f"{given!r} is not one of {', '.join(choices)}")
        return member

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete.lower())]

    return {
        "parser": parse,
        "autocompletion": complete,
        # The last word of the class's name: ROLE, STATE, TYPE, REASON, ACTION.
        "metavar": _LAST_WORD.findall(enum_class.__name__)[-1].upper(),
        "help": f"{text} One of: {', '.join(choices)}" if show_choices else text,
    }


def duration(option: str, text: str) -> timedelta:
    """Return a duration.

    Raises:
        Refusal: The text is no duration, or longer than a century.
    """
    try:
        length = parse_duration(text)
    except ValueError as error:
        raise usage(f"{option}: {error}") from None
    if length > MAX_DURATION:
        raise usage(f"{option}: {text!r} is more than 36500 days")
    return length


def moment(option: str, text: str) -> datetime:
    """Return a date or a time in ISO 8601. It is UTC unless it says otherwise.

    Raises:
        Refusal: The text is no time.
    """
    try:
        read = datetime.fromisoformat(text.strip())
        if read.tzinfo is None:
            read = read.replace(tzinfo=UTC)
        return read.astimezone(UTC)
    except (ValueError, OverflowError):
        raise usage(
            f"{option}: {text!r} is no time; write 2026-12-31, 2026-12-31T18:00Z, or a duration "
            "as 30d"
        ) from None


def past(option: str, text: str | None) -> datetime | None:
    """Return a time; a duration means that long ago."""
    return _moment_from(option, text, lambda length: datetime.now(UTC) - length)


def future(option: str, text: str | None) -> datetime | None:
    """Return a time; a duration means that long from now."""
    return _moment_from(option, text, lambda length: datetime.now(UTC) + length)


def _moment_from(
    option: str, text: str | None, count: Callable[[timedelta], datetime]
) -> datetime | None:
    if text is None:
        return None
    return count(duration(option, text)) if _is_duration(text) else moment(option, text)


def _is_duration(text: str) -> bool:
    return text[:1].isdigit() and text[-1:].lower() in set("smhdw") and "-" not in text


def expiration(ttl: str | None, expires: str | None, *, never: bool) -> Expiration | None:
    """Return the chosen expiration, or None when none was chosen.

    Raises:
        Refusal: More than one was chosen, or the choice cannot be read.
    """
    if sum((ttl is not None, expires is not None, never)) > 1:
        raise usage("give one of --ttl, --expires and --never-expires")
    if never:
        return NEVER_EXPIRES
    if ttl is not None:
        return duration("--ttl", ttl)
    if expires is None:
        return None
    return duration("--expires", expires) if _is_duration(expires) else moment("--expires", expires)


def labels(pairs: list[str] | None) -> dict[str, str]:
    """Return labels.

    Raises:
        Refusal: A label is not `key=value`, or a key is given twice.
    """
    read: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise usage(f"--label: {pair!r} is not key=value")
        if key in read:
            raise usage(f"--label: {key!r} is given twice")
        read[key] = value
    return read
