"""`keybearer whoami`."""

import typer

from keybearer.access import Role
from keybearer.cli import output
from keybearer.cli.inputs import word
from keybearer.cli.session import Session, command
from keybearer.models import Identity


def register(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "whoami", "keybearer whoami", "keybearer whoami --output json")(whoami)


def whoami(session: Session) -> None:
    """Show whose credential you use, what it may do and when it expires."""
    caller = session.client.who_am_i()
    document = {
        **{name: getattr(caller.identity, name) for name in Identity.__slots__},
        "expires_soon": caller.expires_soon,
        "overlap_end_time": caller.overlap_end_time,
        "is_operator": caller.is_operator,
    }
    facts = identity_facts(caller.identity)
    if caller.is_operator:
        facts.append(("operator", "yes: this account manages all accounts"))
    session.show(document, output.facts_text(facts))
    if caller.expires_soon:
        session.note("The key expires within 30 days.")
    if caller.overlap_end_time is not None:
        end = output.moment_text(caller.overlap_end_time)
        session.note(f"This is the old secret of a rotated key; it stops working {end}.")


def identity_facts(identity: Identity) -> list[tuple[str, str]]:
    """Return whose token it is, for people."""
    role = word(identity.effective_role)
    if identity.effective_role < identity.granted_role:
        role += f", granted {word(identity.granted_role)}: the owner's role is lower"
    scopes = ", ".join(identity.scopes)
    return [
        ("key", f"{identity.key_name} ({identity.key_id})"),
        ("owner", output.person_text(identity.owner_email, identity.owner_id)),
        ("owner's type", word(identity.owner_type)),
        ("account", identity.account_id),
        ("role", role),
        ("scopes", scopes or ("all" if identity.granted_role is Role.ADMIN else "none")),
        ("labels", output.pairs_text(identity.labels)),
        ("expires", output.moment_text(identity.expire_time)),
    ]
