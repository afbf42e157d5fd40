"""`keybearer token`."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from keybearer.access import Role
from keybearer.cli import inputs, lockout, output
from keybearer.cli.inputs import enum_option, word
from keybearer.cli.options import (
    AttemptOption,
    NewTokenFileOption,
    RequestIdOption,
    YesOption,
)
from keybearer.cli.refusals import ExitCode
from keybearer.cli.session import Session, command
from keybearer.cli.terminal import confirm
from keybearer.cli.token_files import read_token, token_sink
from keybearer.cli.whoami import identity_facts
from keybearer.errors import UnauthenticatedError
from keybearer.models import Identity, Outcome, Verdict

app = typer.Typer()

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The file with the token. Default: standard input, or a prompt"
    ),
]


@command(
    app,
    "validate",
    "keybearer token validate --token-file billing.token",
    "keybearer token validate --required-role developer --required-scope invoices.read < token",
)
def validate(
    session: Session,
    *,
    token_file: TokenFileOption = None,
    required_role: Annotated[
        Role | None, enum_option(Role, "The lowest role that is accepted.", "--required-role")
    ] = None,
    required_scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="A scope that must be met; may be repeated."),
    ] = None,
    account: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="The account of the key; '-': any. Operators only. Default: your own",
        ),
    ] = "",
) -> None:
    """Validate a token. The exit code is 0 when it is valid, and 5 when it is not."""
    token = read_token(token_file)
    verdict = session.client.validate_token(
        token,
        account_id=account,
        required_role=required_role or Role.UNSPECIFIED,
        required_scopes=required_scope or (),
    )
    session.show(_document(verdict), _text(verdict))
    if not verdict.valid:
        raise typer.Exit(ExitCode.NOT_VALID)


@command(app, "revoke", "keybearer token revoke --token-file found.token --yes")
def revoke(session: Session, *, token_file: TokenFileOption = None, yes: YesOption = False) -> None:
    """Revoke the key of a token. The token is the proof; no other credential is sent.

    The old secret of a rotation ends the overlap instead. A token that is not accepted is no error.
    """
    token = read_token(token_file)

    def consequences() -> Iterator[str]:
        try:
            client = session.client_with(token)
            identity = client.who_am_i().identity
        except UnauthenticatedError:
            yield "The token is not accepted."
        else:
            owner = identity.owner_email or identity.owner_id
            yield f"The token belongs to {identity.key_name} ({identity.key_id}) of {owner}."
            if identity.effective_role is Role.ADMIN:
                yield from lockout.of_last_keys(client, [client.get_api_key(identity.key_id)])

    confirm("Revoke it? It cannot be undone.", consequences, yes=yes)
    client = session.client_with(None)
    with session.changing():
        client.revoke_token(token)
    session.show({}, "Revoked: if the token was accepted, it no longer is.")


@command(
    app,
    "rotate-self",
    "keybearer token rotate-self --credential-file my.token --token-file my-new.token",
)
def rotate_self(
    session: Session,
    *,
    overlap: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="How long the old secret is still accepted, at most 30d; 0s: not at all.",
        ),
    ] = "10m",
    token_file: NewTokenFileOption = None,
    request_id: RequestIdOption = "",
    attempt: AttemptOption = 1,
    yes: YesOption = False,
) -> None:
    """Give your own key a new secret and show its token once; everything else stays."""
    length = inputs.duration("--overlap", overlap)
    client = session.client
    if length == timedelta():
        confirm(
            "Rotate your own key without an overlap?",
            lambda: [
                "Your token stops working now, and a lost response cannot be requested again.",
                "--overlap 10m keeps it until you have changed it.",
            ],
            yes=yes,
        )
    with token_sink(token_file) as sink:
        with session.changing():
            issued = client.rotate_self(overlap=length, request_id=request_id, attempt=attempt)
        key = issued.api_key
        facts = [
            ("name", key.name),
            ("id", key.id),
            ("expires", output.moment_text(key.expire_time)),
            ("old secret ends", output.moment_text(key.overlap_end_time, "now")),
        ]
        sink.deliver(
            issued.token,
            key,
            {"api_key": key, "replayed": issued.replayed},
            f"Rotated your key:\n\n{output.facts_text(facts)}",
            as_json=session.as_json,
        )


def _document(verdict: Verdict) -> dict[str, object]:
    """Return the verdict in the shape of its message, with the identity beside the outcome."""
    identity = verdict.identity
    return {
        "valid": verdict.valid,
        "outcome": verdict.outcome,
        **{name: getattr(identity, name, None) for name in Identity.__slots__},
        "cache_for": verdict.cache_for,
        "revision": verdict.revision,
    }


def _text(verdict: Verdict) -> str:
    identity = verdict.identity
    title = word(verdict.outcome).upper().replace("-", " ")
    meaning = _MEANINGS.get(verdict.outcome, "")
    head = f"{title}{meaning and ': ' + meaning}"
    if identity is None:
        return head
    return f"{head}\n\n{output.facts_text(identity_facts(identity))}"


_MEANINGS = {
    Outcome.NOT_FOUND: "malformed, unknown, replaced by a rotation, or of another account",
    Outcome.REVOKED: "the key is revoked, which is final",
    Outcome.EXPIRED: "the key has expired",
    Outcome.DISABLED: "the key or its account is disabled",
    Outcome.ROLE_INSUFFICIENT: "the token works, but its role is too low",
    Outcome.SCOPE_INSUFFICIENT: "the token works, but a scope is missing",
}
