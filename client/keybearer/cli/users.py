"""`keybearer users`."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from keybearer._client.client import KeybearerClient
from keybearer._wire.limits import MAX_NAME
from keybearer.access import Role
from keybearer.cli import lockout, output
from keybearer.cli.inputs import enum_argument, enum_option, word
from keybearer.cli.key_texts import MAX_NAMED, count_text, lines_of
from keybearer.cli.options import (
    DEFAULT_LIMIT,
    AccountOption,
    AllOption,
    ColumnsOption,
    LimitOption,
    UserArgument,
    WideOption,
    YesOption,
    limit_of,
    page_size_of,
    user_id_of,
)
from keybearer.cli.output import ID_WIDTH, Column, Layout, moment_text
from keybearer.cli.refusals import usage
from keybearer.cli.session import Session, command
from keybearer.cli.terminal import confirm
from keybearer.models import DeletedUser, User, UserType

app = typer.Typer()

_COLUMNS: list[Column[User]] = [
    Column("e-mail", lambda user: user.email, least=ID_WIDTH),
    Column("id", lambda user: user.id, under=True, least=ID_WIDTH),
    Column("name", lambda user: user.display_name),
    Column("role", lambda user: word(user.role)),
    Column("type", lambda user: word(user.type), under=True),
    Column("created", lambda user: user.create_time),
]
_DELETED_COLUMN: Column[User] = Column("deleted", lambda user: user.delete_time)


@command(
    app,
    "create",
    "keybearer users create dana@example.com --role developer --name 'Dana Doe'",
    "keybearer users create ci@example.com --role validator --type service-account",
)
def create(
    session: Session,
    *,
    email: Annotated[
        str, typer.Argument(metavar="EMAIL", help="Unique in the account; for display only.")
    ],
    role: Annotated[Role, enum_option(Role, "No key of the user holds more.")],
    name: Annotated[
        str, typer.Option(metavar="TEXT", help="For display. Default: the address")
    ] = "",
    type: Annotated[  # noqa: A002 - named as the option
        UserType, enum_option(UserType, "What kind of user.")
    ] = UserType.PERSON,
    account: AccountOption = "",
) -> None:
    """Create a user, who may then own keys."""
    client = session.client
    with session.changing():
        user = client.create_user(
            email,
            display_name=name or email[:MAX_NAME],
            role=role,
            type=type,
            account_id=account,
        )
    session.show({"user": user}, f"Created the user:\n\n{output.facts_text(_facts(user))}")


@command(
    app, "list", "keybearer users list", "keybearer users list --role admin --email example.com"
)
def list_(
    session: Session,
    *,
    role: Annotated[
        list[Role] | None, enum_option(Role, "Only users of this role; may be repeated.", "--role")
    ] = None,
    type: Annotated[  # noqa: A002 - named as the option
        list[UserType] | None,
        enum_option(UserType, "Only users of this type; may be repeated.", "--type"),
    ] = None,
    email: Annotated[
        str, typer.Option(metavar="TEXT", help="Only users with this in their address.")
    ] = "",
    deleted: Annotated[bool, typer.Option("--deleted", help="Also deleted users.")] = False,
    account: AccountOption = "",
    limit: LimitOption = DEFAULT_LIMIT,
    show_all: AllOption = False,
    wide: WideOption = False,
    columns: ColumnsOption = "",
) -> None:
    """List users, the newest first."""
    shown = limit_of(limit, show_all=show_all)
    users = session.client.list_users(
        roles=role or (),
        types=type or (),
        email_contains=email,
        show_deleted=deleted,
        page_size=page_size_of(shown),
        account_id=account,
    )
    output.show_list(
        users,
        Layout(columns=[*_COLUMNS, _DELETED_COLUMN] if deleted else _COLUMNS),
        name="users",
        limit=shown,
        empty="No user matches; leave out a filter, or create one: "
        "keybearer users create EMAIL --role developer",
        as_json=session.as_json,
        wide=wide,
        columns=columns,
    )


@command(app, "show", "keybearer users show dana@example.com")
def show(session: Session, *, user: UserArgument, account: AccountOption = "") -> None:
    """Show a user. A deleted user is named by id."""
    client = session.client
    found = client.get_user(user_id_of(client, user, account))
    session.show({"user": found}, output.facts_text(_facts(found)))


@command(app, "update", "keybearer users update dana@example.com --name 'Dana D.' --role admin")
def update(
    session: Session,
    *,
    user: UserArgument,
    name: Annotated[str | None, typer.Option(metavar="TEXT", help="1 to 100 characters.")] = None,
    role: Annotated[
        Role | None, enum_option(Role, "Counts from the next validation of the user's keys on.")
    ] = None,
    etag: Annotated[
        str,
        typer.Option(
            metavar="ETAG",
            help="Reject the change if the user has changed since this etag was shown.",
        ),
    ] = "",
    account: AccountOption = "",
    yes: YesOption = False,
) -> None:
    """Change a user's name or role.

    You are asked first when you lower your own role, or take away the last ADMIN key.
    """
    if name is None and role is None:
        raise usage("users update: give at least one change, --name or --role")
    client = session.client
    user_id = user_id_of(client, user, account)
    if role is not None:
        _warn_of_role(session, user_id, role, yes=yes)
    with session.changing():
        updated = client.update_user(user_id, display_name=name, role=role, etag=etag)
    session.show({"user": updated}, f"Updated the user:\n\n{output.facts_text(_facts(updated))}")


@command(app, "set-role", "keybearer users set-role dana@example.com developer")
def set_role(
    session: Session,
    *,
    user: UserArgument,
    role: Annotated[Role, enum_argument(Role, "The new role.")],
    account: AccountOption = "",
    yes: YesOption = False,
) -> None:
    """Change a user's role. From the next validation on, no key of the user holds more.

    You are asked first when you lower your own role, or take away the last ADMIN key.
    """
    client = session.client
    user_id = user_id_of(client, user, account)
    _warn_of_role(session, user_id, role, yes=yes)
    with session.changing():
        updated = client.update_user(user_id, role=role)
    session.show(
        {"user": updated},
        f"{output.visible(updated.email)} is {word(updated.role)} now. No key of that user holds "
        "more.",
    )


@command(
    app,
    "delete",
    "keybearer users delete dana@example.com --dry-run",
    "keybearer users delete dana@example.com --revoke-created --yes",
)
def delete(
    session: Session,
    *,
    user: UserArgument,
    revoke_created: Annotated[
        bool,
        typer.Option(
            "--revoke-created", help="Also revoke the keys that this user created for others."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be revoked, and change nothing.")
    ] = False,
    account: AccountOption = "",
    yes: YesOption = False,
) -> None:
    """Delete a user and revoke every key the user owns, in one step."""
    client = session.client
    user_id = user_id_of(client, user, account)
    if dry_run:
        plan = client.delete_user(user_id, validate_only=True, revoke_created=revoke_created)
        text = "\n".join(
            output.visible(line) for line in _plan(client, plan, revoke_created=revoke_created)
        )
        session.show(_document(plan), f"{text}\nNothing was changed.")
        return
    plan = client.delete_user(user_id, validate_only=True, revoke_created=revoke_created)
    warnings = lockout.of_user(client, plan.user, "delete", with_created=revoke_created)
    if yes:
        lockout.show(session, warnings)
    confirm(
        "Delete this user? It cannot be undone.",
        lambda: [*_plan(client, plan, revoke_created=revoke_created), *warnings],
        yes=yes,
    )
    with session.changing():
        done = client.delete_user(user_id, revoke_created=revoke_created)
    text = (
        f"Deleted {output.visible(done.user.email)}; revoked {count_text(done.revoked_key_count)}."
    )
    others = done.created_for_others_key_count
    if others and not revoke_created:
        text += (
            f"\n{count_text(others)} of other owners stay that this user created and may know: "
            f"{', '.join(done.created_for_others_key_ids[:MAX_NAMED])}"
        )
    session.show(_document(done), text)


def _warn_of_role(session: Session, user_id: str, role: Role, *, yes: bool) -> None:
    client = session.client
    if role is not Role.ADMIN:
        user = client.get_user(user_id)
        if role < user.role:
            warnings = lockout.of_user(client, user, "lower")
            lockout.warn(session, f"Make {word(role)} of this user?", warnings, yes=yes)


def _document(deleted: DeletedUser) -> dict[str, object]:
    return {
        "user": deleted.user,
        "revoked_key_ids": deleted.revoked_key_ids,
        "revoked_key_count": deleted.revoked_key_count,
        "created_for_others_key_ids": deleted.created_for_others_key_ids,
        "created_for_others_key_count": deleted.created_for_others_key_count,
    }


def _plan(client: KeybearerClient, plan: DeletedUser, *, revoke_created: bool) -> Iterator[str]:
    """Yield lines that say what deleting a user would do."""
    user = plan.user
    yield f"{user.email} ({user.id}), {word(user.role)}: {user.display_name}"
    others = set(plan.created_for_others_key_ids)
    owned = [key_id for key_id in plan.revoked_key_ids if key_id not in others]
    owned_count = plan.revoked_key_count
    if revoke_created:
        owned_count -= plan.created_for_others_key_count
    yield f"{count_text(owned_count)} of this user will be revoked{':' if owned else '.'}"
    yield from _named(client, owned, owned_count)
    if plan.created_for_others_key_count:
        fate = "will be revoked too" if revoke_created else "STAY (see --revoke-created)"
        count = count_text(plan.created_for_others_key_count)
        yield f"{count} of other owners that this user created and may know {fate}:"
        yield from _named(
            client, plan.created_for_others_key_ids, plan.created_for_others_key_count
        )


def _named(client: KeybearerClient, key_ids: Sequence[str], count: int) -> Iterator[str]:
    return lines_of((client.get_api_key(key_id) for key_id in key_ids[:MAX_NAMED]), count)


def _facts(user: User) -> list[tuple[str, str]]:
    return [
        ("e-mail", user.email),
        ("id", user.id),
        ("name", user.display_name),
        ("role", word(user.role)),
        ("type", word(user.type)),
        ("created", moment_text(user.create_time)),
        ("updated", moment_text(user.update_time)),
        ("deleted", moment_text(user.delete_time, "")),
        ("account", user.account_id),
        ("etag", user.etag),
    ]
