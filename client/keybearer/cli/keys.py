"""`keybearer keys`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from keybearer._client.client import KeybearerClient
from keybearer._wire.enums import REASONS_OF_CALLERS
from keybearer._wire.limits import API_KEY_ORDERS, MAX_PAGE_SIZE, MAX_REVOKED_KEYS
from keybearer.access import Role
from keybearer.cli import inputs, lockout, output
from keybearer.cli.inputs import enum_option, word
from keybearer.cli.key_texts import (
    MAX_NAMED,
    count_text,
    facts_of,
    line_of,
    lines_of,
    named,
    revoked_text,
    summary,
)
from keybearer.cli.options import (
    DEFAULT_LIMIT,
    AccountOption,
    AllOption,
    AttemptOption,
    ColumnsOption,
    KeyArgument,
    LimitOption,
    NewTokenFileOption,
    RequestIdOption,
    WideOption,
    YesOption,
    limit_of,
    page_size_of,
    user_id_of,
)
from keybearer.cli.output import ID_WIDTH, Column, Layout
from keybearer.cli.refusals import usage
from keybearer.cli.session import Session, command
from keybearer.cli.terminal import confirm
from keybearer.cli.token_files import token_sink
from keybearer.models import ApiKey, ApiKeyState, RevocationReason

app = typer.Typer()

_REASONS_OF_THE_SERVICE = tuple(
    reason for reason in RevocationReason if reason not in REASONS_OF_CALLERS
)


def _other_creator(key: ApiKey) -> str:
    """Return the creator in brackets where it is not the owner."""
    if key.created_by == key.owner_id:
        return ""
    return f"({key.created_by_email or key.created_by})"


_NAME: list[Column[ApiKey]] = [
    Column("name", lambda key: key.name),
    Column("id", lambda key: key.id, under=True, least=ID_WIDTH),
    Column("state", lambda key: word(key.state), least=9),
    Column("role", lambda key: word(key.effective_role), under=True, least=9),
]
_TIMES: list[Column[ApiKey]] = [
    Column("created", lambda key: key.create_time),
    Column("last used", lambda key: key.last_used_time),
    Column("expires", lambda key: key.expire_time),
]
_LAYOUT = Layout(
    columns=[
        *_NAME,
        Column("creator", lambda key: key.created_by_email or key.created_by),
        Column("owner", lambda key: key.owner_email or key.owner_id),
        *_TIMES,
    ],
    compact=[
        *_NAME,
        Column("owner", lambda key: key.owner_email or key.owner_id, may_be_cut=True),
        Column("(creator)", _other_creator, under=True, may_be_cut=True),
        *_TIMES,
    ],
)

_SORT_KEYS: Mapping[str, Callable[[ApiKey], tuple[Any, str]]] = {
    "create_time": lambda key: (key.create_time, key.id),
    "expire_time": lambda key: (key.expire_time or datetime.max.replace(tzinfo=UTC), key.id),
    "name": lambda key: (key.name, key.id),
    "last_used_time": lambda key: (key.last_used_time or datetime.min.replace(tzinfo=UTC), key.id),
}
"""The orders of the service: never expires is last, never used is first."""
_NOT_REVOKED = (ApiKeyState.ACTIVE, ApiKeyState.DISABLED, ApiKeyState.EXPIRED)
_WALK = "create_time desc"
"""The order in which every key comes once, whatever happens meanwhile."""


def _sorting(sort: str) -> Callable[[Iterator[ApiKey]], Iterator[ApiKey]] | None:
    """Return what sorts keys that were fetched in another order; None for an unknown order."""
    order, _, direction = sort.strip().partition(" ")
    if order not in _SORT_KEYS or direction not in ("", "desc"):
        return None
    key, reverse = _SORT_KEYS[order], direction == "desc"

    def in_order(keys: Iterator[ApiKey]) -> Iterator[ApiKey]:
        yield from sorted(keys, key=key, reverse=reverse)

    return in_order


TtlOption = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION", help="How long the key is accepted from now on, as 30d or 12h."
    ),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="The time from which the key is refused, as 2030-12-31 (00:00 UTC) or "
        "2030-12-31T18:00Z.",
    ),
]
NeverExpiresOption = Annotated[
    bool, typer.Option("--never-expires", help="The key is accepted until it is revoked.")
]
ScopesOption = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="SCOPE", help="What the key may do; may be repeated."),
]
LabelsOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="For your own use; may be repeated."),
]
StatesOption = Annotated[
    list[ApiKeyState] | None,
    enum_option(ApiKeyState, "Only keys in this state; may be repeated.", "--state"),
]
OwnedByOption = Annotated[
    str, typer.Option("--owner", metavar="USER", help="Only keys of this user: id or address.")
]
NamedOption = Annotated[
    str, typer.Option("--name", metavar="TEXT", help="Only keys with this in their name.")
]
ExpiresBeforeOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only keys that expire before; 30d: within 30 days."),
]
UnusedSinceOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only keys not used since; 90d: for 90 days."),
]


@command(
    app,
    "create",
    "keybearer keys create billing --role developer --ttl 30d --scope invoices.read",
    "keybearer keys create gateway --role validator --never-expires --token-file gateway.token",
)
def create(
    session: Session,
    *,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="1 to 100 characters; need not be unique.")
    ],
    role: Annotated[Role, enum_option(Role, "The granted role; never more than your own.")],
    ttl: TtlOption = None,
    expires: ExpiresOption = None,
    never_expires: NeverExpiresOption = False,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    owner: Annotated[
        str,
        typer.Option(metavar="USER", help="The id or address of the owner. Default: you"),
    ] = "",
    scope: ScopesOption = None,
    label: LabelsOption = None,
    account: AccountOption = "",
    token_file: NewTokenFileOption = None,
    request_id: RequestIdOption = "",
    attempt: AttemptOption = 1,
) -> None:
    """Create a key and show its token once.

    Choose how long it is accepted: give one of --ttl, --expires and --never-expires. Standard
    output has the token alone, so it can go into a pipe.
    """
    expiration = inputs.expiration(ttl, expires, never=never_expires)
    if expiration is None:
        raise usage(
            "keys create: choose when the key expires: --ttl 30d, --expires 2030-12-31 or "
            "--never-expires"
        )
    labels = inputs.labels(label)
    client = session.client
    owner_id = user_id_of(client, owner, account)
    with token_sink(token_file) as sink:
        with session.changing():
            issued = client.create_api_key(
                name,
                role=role,
                expiration=expiration,
                description=description,
                owner_id=owner_id,
                scopes=scope or (),
                labels=labels,
                account_id=account,
                request_id=request_id,
                attempt=attempt,
            )
        sink.deliver(
            issued.token,
            issued.api_key,
            {"api_key": issued.api_key, "replayed": issued.replayed},
            f"Created the key:\n\n{summary(issued.api_key)}",
            as_json=session.as_json,
        )


@command(
    app,
    "list",
    "keybearer keys list",
    "keybearer keys list --state active --unused-since 90d --sort last_used_time",
    "keybearer keys list --expires-before 30d --output json",
)
def list_(
    session: Session,
    *,
    state: StatesOption = None,
    owner: OwnedByOption = "",
    name: NamedOption = "",
    expires_before: ExpiresBeforeOption = None,
    unused_since: UnusedSinceOption = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="ORDER",
            help=f"{', '.join(API_KEY_ORDERS)}; each also with ' desc' for descending order.",
            autocompletion=lambda: [*API_KEY_ORDERS, *(f"{sort} desc" for sort in API_KEY_ORDERS)],
        ),
    ] = "create_time desc",
    account: AccountOption = "",
    limit: LimitOption = DEFAULT_LIMIT,
    show_all: AllOption = False,
    wide: WideOption = False,
    columns: ColumnsOption = "",
) -> None:
    """List keys, the newest first, also revoked and expired ones.

    The role is the effective one: the lower of the granted role and the owner's. On a terminal, the
    creator is named where it is not the owner, and long e-mail addresses are cut. With --all, keys
    are fetched in the order of their creation and sorted here, so that none is missed.
    """
    shown = limit_of(limit, show_all=show_all)
    sorting = _sorting(sort) if show_all and sort.strip() != _WALK else None
    before = inputs.future("--expires-before", expires_before)
    since = inputs.past("--unused-since", unused_since)
    client = session.client
    keys = client.list_api_keys(
        states=state or (),
        owner_id=user_id_of(client, owner, account),
        name_contains=name,
        expires_before=before,
        unused_since=since,
        order_by=_WALK if sorting else sort,
        page_size=page_size_of(shown),
        account_id=account,
    )
    filtered = any((state, owner, name, before, since))
    output.show_list(
        keys,
        _LAYOUT,
        name="api_keys",
        limit=shown,
        empty="No key matches; leave out a filter to see more."
        if filtered
        else "There are no keys yet. Create one: "
        "keybearer keys create NAME --role developer --ttl 30d",
        as_json=session.as_json,
        wide=wide,
        columns=columns,
        arrange=sorting or iter,
    )


@command(app, "show", "keybearer keys show 4f9QzVbT1xKc8LmN")
def show(session: Session, key: KeyArgument) -> None:
    """Show everything about a key except its token."""
    api_key = session.client.get_api_key(key)
    session.show({"api_key": api_key}, output.facts_text(facts_of(api_key)))


@command(
    app,
    "update",
    "keybearer keys update 4f9QzVbT1xKc8LmN --name invoices --ttl 90d",
    "keybearer keys update 4f9QzVbT1xKc8LmN --scope invoices.read --scope invoices.write",
)
def update(
    session: Session,
    *,
    key: KeyArgument,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="1 to 100 characters.")] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is for.")] = None,
    role: Annotated[
        Role | None, enum_option(Role, "The granted role; never more than your own.")
    ] = None,
    scope: ScopesOption = None,
    no_scopes: Annotated[bool, typer.Option("--no-scopes", help="Remove all scopes.")] = False,
    label: LabelsOption = None,
    no_labels: Annotated[bool, typer.Option("--no-labels", help="Remove all labels.")] = False,
    ttl: TtlOption = None,
    expires: ExpiresOption = None,
    never_expires: NeverExpiresOption = False,
    overlap_until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When the old secret of a rotation stops working; 10m: in 10 minutes.",
        ),
    ] = None,
    etag: Annotated[
        str,
        typer.Option(
            metavar="ETAG",
            help="Reject the change if the key has changed since this etag was shown.",
        ),
    ] = "",
    yes: YesOption = False,
) -> None:
    """Change a key. Only what is given changes; scopes and labels are replaced as a whole."""
    if (scope and no_scopes) or (label and no_labels):
        raise usage("keys update: --no-scopes and --no-labels exclude --scope and --label")
    changes = {
        "name": name,
        "description": description,
        "role": role,
        "scopes": [] if no_scopes else scope or None,
        "labels": {} if no_labels else inputs.labels(label) or None,
        "expiration": inputs.expiration(ttl, expires, never=never_expires),
        "overlap_end_time": inputs.future("--overlap-until", overlap_until),
    }
    if all(value is None for value in changes.values()):
        raise usage("keys update: give at least one change, as --name invoices")
    client = session.client
    if role is not None and role is not Role.ADMIN:
        before = client.get_api_key(key)
        if role < before.effective_role:
            warnings = lockout.of_keys(client, [before], "lower")
            lockout.warn(session, f"Make {word(role)} of it?", warnings, yes=yes)
    with session.changing():
        api_key = client.update_api_key(key, etag=etag, **changes)  # type: ignore[arg-type]
    session.show({"api_key": api_key}, f"Updated the key:\n\n{summary(api_key)}")


@command(app, "disable", "keybearer keys disable 4f9QzVbT1xKc8LmN")
def disable(session: Session, *, key: KeyArgument, yes: YesOption = False) -> None:
    """Disable a key until it is enabled again.

    You are asked first when it is the key that you are using, or the last ADMIN key.
    """
    client = session.client
    warnings = lockout.of_keys(client, [client.get_api_key(key)], "disable")
    lockout.warn(session, "Disable it?", warnings, yes=yes)
    with session.changing():
        api_key = client.disable_api_key(key)
    session.show(
        {"api_key": api_key},
        f"Disabled {named(api_key)}; `keybearer keys enable {api_key.id}` undoes it.",
    )


@command(app, "enable", "keybearer keys enable 4f9QzVbT1xKc8LmN")
def enable(session: Session, key: KeyArgument) -> None:
    """Enable a key again."""
    client = session.client
    with session.changing():
        api_key = client.enable_api_key(key)
    session.show({"api_key": api_key}, f"Enabled {named(api_key)}; it is {word(api_key.state)}.")


@command(
    app,
    "rotate",
    "keybearer keys rotate 4f9QzVbT1xKc8LmN --overlap 24h --token-file billing.token",
    "keybearer keys rotate 4f9QzVbT1xKc8LmN --yes",
)
def rotate(
    session: Session,
    *,
    key: KeyArgument,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long the old secret is still accepted, at most 30d. Default: not at all",
        ),
    ] = None,
    token_file: NewTokenFileOption = None,
    request_id: RequestIdOption = "",
    attempt: AttemptOption = 1,
    yes: YesOption = False,
) -> None:
    """Give a key a new secret and show its token once; id and everything else stay.

    With --overlap the holders have time to change, and `keys show` says whether the old secret is
    still used. Without, it is refused at once, and you are asked first.
    """
    length = inputs.duration("--overlap", overlap) if overlap is not None else timedelta()
    client = session.client
    if not length:
        confirm(
            "Rotate it without an overlap?",
            lambda: [
                "The old secret of this key stops working now:",
                *lines_of([client.get_api_key(key)], 1),
                "Everybody who still uses it is refused. --overlap 24h gives time to change.",
                *_own_key(client, key),
            ],
            yes=yes,
        )
    with token_sink(token_file) as sink:
        with session.changing():
            issued = client.rotate_api_key(
                key, overlap=length, request_id=request_id, attempt=attempt
            )
        sink.deliver(
            issued.token,
            issued.api_key,
            {"api_key": issued.api_key, "replayed": issued.replayed},
            f"Rotated the key:\n\n{summary(issued.api_key)}",
            as_json=session.as_json,
        )


@command(
    app,
    "revoke",
    "keybearer keys revoke 4f9QzVbT1xKc8LmN --reason compromised --note 'seen in a log'",
    "keybearer keys revoke 4f9QzVbT1xKc8LmN 8wRt2LpXcVb6NmQa --reason no-longer-used --yes",
    "keybearer keys revoke --unused-since 90d --reason no-longer-used --dry-run",
)
def revoke(
    session: Session,
    *,
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY...", help="The ids of the keys.")
    ] = None,
    reason: Annotated[
        RevocationReason, enum_option(RevocationReason, "Why.", without=_REASONS_OF_THE_SERVICE)
    ],
    note: Annotated[str, typer.Option(metavar="TEXT", help="A note for the audit log.")] = "",
    state: StatesOption = None,
    owner: OwnedByOption = "",
    name: NamedOption = "",
    expires_before: ExpiresBeforeOption = None,
    unused_since: UnusedSinceOption = None,
    account: AccountOption = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be revoked, and change nothing.")
    ] = False,
    yes: YesOption = False,
) -> None:
    """Revoke keys, which is final. They are refused from the moment the command ends.

    Name the keys, or say which by --owner, --state, --name, --expires-before and --unused-since;
    all that are given must fit, and keys that are revoked already count only with --state revoked.
    All keys are looked up before the first is revoked; several are then revoked in one step, a
    thousand at a time. With --output json, each key is one object on one line.
    """
    client = session.client
    before = inputs.future("--expires-before", expires_before)
    since = inputs.past("--unused-since", unused_since)
    is_filtered = any((state, owner, name, before, since))
    if bool(keys) == is_filtered or (account and not is_filtered):
        raise usage(
            "keys revoke: name the keys, or say which by --owner, --state, --name, "
            "--expires-before or --unused-since (with --account where they are of another account)"
        )
    if keys:
        found = [client.get_api_key(key) for key in dict.fromkeys(keys)]
    else:
        matching = client.list_api_keys(
            states=state or _NOT_REVOKED,
            owner_id=user_id_of(client, owner, account),
            name_contains=name,
            expires_before=before,
            unused_since=since,
            page_size=MAX_PAGE_SIZE,
            account_id=account,
        )
        found = list(matching)
    to_revoke = [key for key in found if key.state is not ApiKeyState.REVOKED]
    if dry_run:
        _show_plan(session, to_revoke)
        return
    if not found:
        session.note("No key matches; nothing was changed.")
        return
    if to_revoke:
        count = "this key" if len(to_revoke) == 1 else f"these {count_text(len(to_revoke))}"
        warnings = lockout.of_keys(client, to_revoke, "revoke")
        if yes:
            lockout.show(session, warnings)
        confirm(
            f"Revoke {count}? It cannot be undone.",
            lambda: [*lines_of(to_revoke[:MAX_NAMED], len(to_revoke)), *warnings],
            yes=yes,
        )
    if len(found) == 1:
        with session.changing():
            api_key = client.revoke_api_key(found[0].id, reason=reason, note=note)
        session.show({"api_key": api_key}, revoked_text(found[0], api_key))
        return
    _revoke_several(session, found, reason, note)


def _show_plan(session: Session, keys: Sequence[ApiKey]) -> None:
    for key in keys:
        session.show({"api_key": key}, output.visible(line_of(key)))
    session.note(f"{count_text(len(keys))} would be revoked. Nothing was changed.")


def _revoke_several(
    session: Session, found: Sequence[ApiKey], reason: RevocationReason, note: str
) -> None:
    revoked = 0
    try:
        with output.counting_steps(len(found), "revoked") as step:
            for start in range(0, len(found), MAX_REVOKED_KEYS):
                part = found[start : start + MAX_REVOKED_KEYS]
                with session.changing():
                    session.client.revoke_api_keys(
                        [key.id for key in part], reason=reason, note=note
                    )
                revoked += len(part)
                for key in part:
                    api_key = session.client.get_api_key(key.id)
                    step()
                    session.show({"api_key": api_key}, revoked_text(key, api_key))
    finally:
        if revoked < len(found):
            session.note(f"Stopped: {revoked} of {len(found)} keys are revoked.")


def _own_key(client: KeybearerClient, key_id: str) -> list[str]:
    if client.who_am_i().identity.key_id != key_id:
        return []
    return ["This is the key that you are using: your next command needs the new token."]
