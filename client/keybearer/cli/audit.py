"""`keybearer audit`."""

from typing import Annotated

import typer

from keybearer.cli import inputs, output
from keybearer.cli.inputs import enum_option, word
from keybearer.cli.options import (
    DEFAULT_LIMIT,
    AccountOption,
    AllOption,
    ColumnsOption,
    LimitOption,
    WideOption,
    limit_of,
    page_size_of,
)
from keybearer.cli.output import ID_WIDTH, Column, Layout, moment_text
from keybearer.cli.session import Session, command
from keybearer.models import AuditAction, AuditEvent

app = typer.Typer()


def _changes(event: AuditEvent) -> str:
    return "; ".join(
        f"{change.field}: {change.before} -> {change.after}"
        if change.before
        else f"{change.field}: {change.after}"
        for change in event.changes
    )


def _paragraph(event: AuditEvent) -> list[str]:
    """Return an event as a few lines: when, what, about what, by whom, and what changed."""
    actor = event.actor.user_email or word(event.actor.type)
    if event.actor.key_id:
        actor += f" (key {event.actor.key_id})"
    if event.actor.session_id:
        actor += f" (session {event.actor.session_id})"
    lines = [
        f"{moment_text(event.time)}  {word(event.action)}",
        f"{word(event.target.type)} {event.target.id}".strip() + f", by {actor}",
        _changes(event),
    ]
    return [line for line in lines if line]


_COLUMNS: list[Column[AuditEvent]] = [
    Column("time", lambda event: event.time),
    Column("action", lambda event: word(event.action), least=16),
    Column("actor", lambda event: event.actor.user_email or word(event.actor.type)),
    Column("key", lambda event: event.actor.key_id, under=True, least=ID_WIDTH),
    Column("target", lambda event: word(event.target.type)),
    Column("target id", lambda event: event.target.id, under=True, least=ID_WIDTH),
    Column("changes", _changes),
]


@command(
    app,
    "list",
    "keybearer audit list --after 7d",
    "keybearer audit list --target 4f9QzVbT1xKc8LmN --action api-key-rotated --all",
)
def list_(
    session: Session,
    *,
    actor: Annotated[str, typer.Option(metavar="ID", help="Only events of this key or user.")] = "",
    target: Annotated[
        str, typer.Option(metavar="ID", help="Only events about this resource.")
    ] = "",
    action: Annotated[
        list[AuditAction] | None,
        enum_option(
            AuditAction,
            "Only this action, as api-key-revoked; may be repeated.",
            "--action",
            show_choices=False,
        ),
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only later events; 7d: of the last 7 days.")
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only earlier events; 1h: older than an hour."),
    ] = None,
    account: AccountOption = "",
    limit: LimitOption = DEFAULT_LIMIT,
    show_all: AllOption = False,
    wide: WideOption = False,
    columns: ColumnsOption = "",
) -> None:
    """List audit events, the newest first."""
    shown = limit_of(limit, show_all=show_all)
    events = session.client.list_audit_events(
        actor_id=actor,
        target_id=target,
        actions=action or (),
        after=inputs.past("--after", after),
        before=inputs.past("--before", before),
        page_size=page_size_of(shown),
        account_id=account,
    )
    output.show_list(
        events,
        Layout(columns=_COLUMNS, paragraph=_paragraph),
        name="audit_events",
        limit=shown,
        empty="No event matches; leave out a filter to see more.",
        as_json=session.as_json,
        wide=wide,
        columns=columns,
    )
