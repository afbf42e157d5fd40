"""The output of a command: JSON for programs, tables and facts for people, on standard output.

Notes and progress go to standard error.
"""

import dataclasses
import enum
import itertools
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keybearer._client import convert
from keybearer.cli.inputs import word
from keybearer.cli.refusals import usage

ItemT = TypeVar("ItemT")

NEVER = "never"
ID_WIDTH = 16
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Column(Generic[ItemT]):
    """A column of a list."""

    title: str
    read: Callable[[ItemT], "str | datetime | None"]
    """Returns the value of an item; None means never."""
    under: bool = False
    """Whether the value stands below that of the column before, on a terminal, to save width."""
    least: int = 10
    """The smallest width on a terminal, in characters. A date has 10."""
    may_be_cut: bool = False
    """Whether a terminal may show only the beginning. That suits e-mail addresses and not ids."""

    @property
    def slug(self) -> str:
        """The name of the column for `--columns`."""
        return self.title.strip("()").replace(" ", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(Generic[ItemT]):
    """How a list is shown to people."""

    columns: list[Column[ItemT]]
    """All columns: a line for each item has them, and `--columns` chooses from them."""
    compact: list[Column[ItemT]] | None = None
    """The columns on a terminal; None means all."""
    paragraph: Callable[[ItemT], list[str]] | None = None
    """On a terminal, the lines of an item instead of a table; the first is not indented."""


def document(value: Any) -> Any:
    """Return a result of the client as JSON values, with the field names of the protos."""
    if isinstance(value, enum.IntEnum):
        return value.name
    if isinstance(value, datetime):
        return convert.timestamp_of(value).ToJsonString()
    if isinstance(value, timedelta):
        return convert.duration_of(value).ToJsonString()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: document(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [document(inner) for inner in value]
    if dataclasses.is_dataclass(value):
        return {
            field.name: document(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def to_json(result: Mapping[str, Any]) -> str:
    """Return a result as one line of JSON."""
    return json.dumps({name: document(value) for name, value in result.items()})


def visible(text: str) -> str:
    """Return text in which control characters are escaped, so that a terminal only shows it."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def note(text: str) -> None:
    """Print a line for people on standard error."""
    typer.echo(text, err=True)


# --- times ----------------------------------------------------------------------------------------


def moment_text(moment: datetime | None, never: str = NEVER) -> str:
    """Return a time for people, to the second, with its distance from now."""
    if moment is None:
        return never
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC ({distance(moment, datetime.now(UTC))})"


def distance(moment: datetime, now: datetime) -> str:
    """Return how far away a time is: `3 d ago`, `in 2 h`."""
    seconds = (moment - now).total_seconds()
    size = abs(seconds)
    units = (("d", 86_400), ("h", 3_600), ("min", 60))
    for unit, length in units:
        if size >= length:
            amount = f"{int(size // length)} {unit}"
            return f"in {amount}" if seconds > 0 else f"{amount} ago"
    return "now"


# --- facts ----------------------------------------------------------------------------------------


def facts_text(facts: Iterable[tuple[str, str]]) -> str:
    """Return facts below each other; empty ones are left out."""
    shown = [(name, value) for name, value in facts if value]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name:<{width}}  {visible(value)}" for name, value in shown)


def pairs_text(pairs: Mapping[str, str]) -> str:
    """Return labels for people."""
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def person_text(email: str, user_id: str) -> str:
    """Return the address and the id of a user."""
    return f"{email} ({user_id})" if email and user_id else email or user_id


# --- lists ----------------------------------------------------------------------------------------


def show_list(
    items: Iterator[ItemT],
    layout: Layout[ItemT],
    *,
    name: str,
    limit: int | None,
    empty: str,
    as_json: bool,
    wide: bool,
    columns: str,
    arrange: Callable[[Iterator[ItemT]], Iterator[ItemT]] = iter,
) -> None:
    """Print a list. No more of it is fetched than is shown.

    Args:
        items: The list; pages are fetched while it is iterated over.
        layout: What is shown of an item.
        name: The name of the list in the protos, such as `api_keys`.
        limit: How many items are shown; None means all.
        empty: The note for an empty list, which says what to do next.
        as_json: Whether a program reads the list.
        wide: Whether each item has one line, with all columns, also on a terminal.
        columns: The columns to show, separated by commas; empty leaves the choice to the layout.
        arrange: Puts what was fetched in the order in which it is shown.

    Raises:
        Refusal: A column does not exist, or columns are chosen for a program.
    """
    chosen = _chosen(layout, columns, as_json=as_json)
    with _counting(items, name.replace("_", " "), shown=limit is None) as fetched:
        counted = arrange(fetched)
        if as_json:
            _stream_json(counted, name, limit)
            return
        shown = list(itertools.islice(counted, limit))
        more = limit is not None and next(counted, None) is not None
    if not shown:
        note(empty)
        return
    if wide or not sys.stdout.isatty():
        typer.echo(_lines(shown, chosen or layout.columns))
    elif layout.paragraph is not None and not chosen:
        _print_paragraphs(shown, layout.paragraph)
    else:
        _print_table(shown, chosen or layout.compact or layout.columns)
    if more:
        shown_are = "this one" if limit == 1 else f"these {limit}"
        note(f"There are more than {shown_are}: --limit shows more of them, --all shows all.")


def _chosen(layout: Layout[ItemT], columns: str, *, as_json: bool) -> list[Column[ItemT]]:
    if not columns:
        return []
    if as_json:
        raise usage("--columns is for people; with --output json every field is there")
    known = {column.slug: column for column in layout.columns}
    names = [name.strip().lower() for name in columns.split(",")]
    for name in names:
        if name not in known:
            raise usage(f"--columns: {name!r} is not one of {', '.join(known)}")
    return [replace(known[name], under=False) for name in names]


def _print_paragraphs(items: list[ItemT], paragraph: Callable[[ItemT], list[str]]) -> None:
    """Print each item as a few lines, the further ones indented and broken between words."""
    width = Console().width
    for item in items:
        first, *others = paragraph(item)
        typer.echo(textwrap.fill(visible(first), width, subsequent_indent="    "))
        for line in others:
            typer.echo(
                textwrap.fill(visible(line), width, initial_indent="  ", subsequent_indent="    ")
            )


def _stream_json(items: Iterator[Any], name: str, limit: int | None) -> None:
    shown = itertools.islice(items, limit)
    # Fetch before writing: an error of the first page then leaves standard output empty.
    first = list(itertools.islice(shown, 1))
    typer.echo(f'{{"{name}": [', nl=False)
    for index, item in enumerate(itertools.chain(first, shown)):
        typer.echo((",\n" if index else "\n") + json.dumps(document(item)), nl=False)
    more = limit is not None and next(items, None) is not None
    typer.echo(f'{chr(10) if first else ""}], "more": {json.dumps(more)}}}')


@contextmanager
def _counting(items: Iterator[ItemT], noun: str, *, shown: bool) -> Iterator[Iterator[ItemT]]:
    """Show a count on standard error while a long list is fetched, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    if not shown or not console.is_terminal:
        yield items
        return
    with console.status(f"fetching {noun}") as status:

        def counted() -> Iterator[ItemT]:
            for count, item in enumerate(items, 1):
                if count % 100 == 0:
                    status.update(f"fetching {noun}: {count:,} so far")
                yield item

        yield counted()


@contextmanager
def counting_steps(total: int, verb: str) -> Iterator[Callable[[], None]]:
    """Show a count on standard error while several changes are made, if that is a terminal."""
    console = Console(stderr=True, highlight=False)
    if total < 2 or not console.is_terminal:  # noqa: PLR2004 - a single step needs no count
        yield lambda: None
        return
    done = itertools.count(1)
    with console.status(f"{verb}: 0 of {total}") as status:
        yield lambda: status.update(f"{verb}: {next(done)} of {total}")


def _print_table(items: list[ItemT], columns: list[Column[ItemT]]) -> None:
    """Print a list for a terminal; some columns stand below each other."""
    now = datetime.now(UTC)
    groups: list[list[Column[ItemT]]] = []
    for column in columns:
        if column.under:
            groups[-1].append(column)
        else:
            groups.append([column])
    titles = ["\n".join(column.title for column in group) for group in groups]
    values = [[[column.read(item) for column in group] for group in groups] for item in items]
    rows = [[_cell(group, now) for group in row] for row in values]
    console = Console(highlight=False)
    widths = _fit(
        [
            max(
                Text(title).cell_len,
                *(line.cell_len for row in rows for line in row[index].split()),
            )
            for index, title in enumerate(titles)
        ],
        [max(column.least for column in group) for group in groups],
        [all(column.may_be_cut for column in group) for group in groups],
        console.width - len(_GAP) * (len(groups) - 1),
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title, width, group in zip(titles, widths, groups, strict=True):
        is_cut = all(column.may_be_cut for column in group)
        table.add_column(
            title, width=width, overflow="ellipsis" if is_cut else "fold", no_wrap=is_cut
        )
    for row in rows:
        table.add_row(*row)
    # On a very narrow terminal, lines are broken instead of cut off.
    console.width = max(console.width, sum(widths) + len(_GAP) * len(widths))
    console.print(table)


def _fit(widths: list[int], least: list[int], may_be_cut: list[bool], room: int) -> list[int]:
    """Return widths that fit: the widest column shrinks first, and none below its least width.

    Columns that may be cut shrink before the others.
    """
    fitted = list(widths)
    for shrinks in (may_be_cut, [True] * len(widths)):
        while sum(fitted) > room:
            spare = [
                width if shrink and width > low else 0
                for width, low, shrink in zip(fitted, least, shrinks, strict=True)
            ]
            if not any(spare):
                break
            fitted[spare.index(max(spare))] -= 1
    return fitted


def _cell(values: list[str | datetime | None], now: datetime) -> Text:
    text = Text()
    for index, value in enumerate(values):
        style = "dim" if index else ""
        if index:
            text.append("\n")
        if isinstance(value, datetime):
            # The time of the day is one of the facts that `show` and `--wide` have.
            text.append(f"{value:%Y-%m-%d}", style)
            text.append(f"\n{distance(value, now)}", "dim")
        else:
            text.append(NEVER if value is None else visible(value), style)
    return text


def _lines(items: list[ItemT], columns: list[Column[ItemT]]) -> str:
    """Return a list for other programs: a line for each item."""
    rows = [[column.title.upper() for column in columns]]
    rows += [[_flat(column.read(item)) for column in columns] for item in items]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _flat(value: str | datetime | None) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%SZ}"
    return NEVER if value is None else visible(value) or "-"


def words(members: Iterable[enum.IntEnum]) -> str:
    """Return enum members for people."""
    return ", ".join(word(member) for member in members)
