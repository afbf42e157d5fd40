"""`keybearer-server`: the command line of the service."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from keybearer.access import RuleError
from keybearer.durations import parse_duration
from keybearer_service import supervisor
from keybearer_service.config import ConfigError, Settings, load
from keybearer_service.container import Container, create_store, open_container, open_store
from keybearer_service.domain import validators
from keybearer_service.domain.clock import SECOND, SystemClock, rfc3339
from keybearer_service.domain.entropy import SystemEntropy
from keybearer_service.domain.errors import ServiceError
from keybearer_service.domain.token_format import DEFAULT_PREFIX
from keybearer_service.installation.data_directory import DataDir, DataDirError, write_secret_file
from keybearer_service.installation.keyring import KeyringError
from keybearer_service.net.addresses import ListenError
from keybearer_service.net.tls import TlsError
from keybearer_service.offline.audit import check as check_installation
from keybearer_service.offline.audit import export_audit, verify_audit
from keybearer_service.offline.backups import back_up, keys_beside
from keybearer_service.offline.backups import restore as restore_backup
from keybearer_service.offline.break_glass import issue_admin_token
from keybearer_service.offline.errors import LocalError
from keybearer_service.offline.initialise import initialise
from keybearer_service.offline.peppers import add_pepper, list_peppers, retire_pepper
from keybearer_service.storage import StoreError, dbapi
from keybearer_service.telemetry import logs
from keybearer_service.usecases.accounts import NewAccount
from keybearer_service.usecases.issuing import Expiration

app = typer.Typer(
    name="keybearer-server",
    help="Issue, list, rotate, revoke and validate API keys.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
audit_app = typer.Typer(help="Check and export the audit log.", no_args_is_help=True)
pepper_app = typer.Typer(help="Add, list and retire peppers.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(pepper_app, name="pepper")

QUICKSTART_ACCOUNT = "default"
QUICKSTART_EMAIL = "admin@localhost"
EXIT_REFUSED = 1
EXIT_FINDINGS = 2


class Output(StrEnum):
    """How a command answers."""

    TEXT = "text"
    JSON = "json"


DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Where everything lies. [env: KEYBEARER_DATA_DIR] [default: data]"
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="KEYBEARER_CONFIG", help="A TOML file with the same settings."),
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        help="host:port, or unix:/path. [env: KEYBEARER_LISTEN] [default: 127.0.0.1:50051]"
    ),
]
HttpListenOption = Annotated[
    str | None,
    typer.Option(help="host:port for gateways, health and metrics. [env: KEYBEARER_HTTP_LISTEN]"),
]
OutputOption = Annotated[Output, typer.Option("--output", help="How to answer.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(help="Write the token to this new file (0600) instead of showing it."),
]


def main() -> None:
    """Run the command; what is refused is one line on standard error and an exit code."""
    try:
        app()
    except (
        ConfigError,
        DataDirError,
        KeyringError,
        ListenError,
        LocalError,
        RuleError,
        ServiceError,
        StoreError,
        TlsError,
    ) as error:
        _refuse(logs.redact(str(error)))


@app.callback(invoke_without_command=True)
def _root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version and end.")] = False,
) -> None:
    if version:
        typer.echo(f"keybearer-server {version_of('keybearer')} (SQLite {_sqlite_version()})")
        raise typer.Exit


# --- beginning and serving ------------------------------------------------------------------------


@app.command()
def quickstart(
    *,
    data_dir: DataDirOption = None,
    listen: ListenOption = None,
    http_listen: HttpListenOption = None,
    config: ConfigOption = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error")] = None,
) -> None:
    """Set everything up at the first start, then serve."""
    flags = {
        "data_dir": data_dir,
        "listen": listen,
        "http_listen": http_listen,
        "log_level": log_level,
    }
    settings = load(config, flags)
    directory = DataDir(settings.data_dir)
    if directory.is_initialised:
        typer.echo(
            f"{settings.data_dir} holds an installation: serving it. Its first token was shown "
            "once; `keybearer-server admin-token` issues another."
        )
        _serve(settings)
        return
    _first_start(directory)
    _serve(settings, on_serving=_show_first_commands)


def _first_start(directory: DataDir) -> None:
    created = initialise(
        directory,
        NewAccount(
            name=QUICKSTART_ACCOUNT,
            admin_email=QUICKSTART_EMAIL,
            admin_display_name="Administrator",
            expiration=Expiration(),
        ),
        DEFAULT_PREFIX,
        create_store=create_store,
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
    token = created.issued.token
    if sys.stdout.isatty():
        typer.echo("The admin token, shown this once. In another shell:\n")
        export = f"export KEYBEARER_TOKEN={token}"
    else:
        write_secret_file(directory.admin_token, token)
        typer.echo(f"The admin token is in {directory.admin_token}. In another shell:\n")
        export = f'export KEYBEARER_TOKEN="$(cat {shlex.quote(str(directory.admin_token))})"'
    typer.echo(f"  {export}\n")


def _show_first_commands(address: str) -> None:
    typer.echo("Then, in that shell:\n")
    for command in first_commands(address):
        typer.echo(f"  {command}")
    typer.echo("")


def first_commands(address: str) -> list[str]:
    """Answer three commands that work when pasted: who am I, make a key, list the keys."""
    header = '-H "authorization: Bearer $KEYBEARER_TOKEN"'
    service = "keybearer.v1.ApiKeyService"
    new_key = json.dumps({"name": "my first key", "role": "ROLE_DEVELOPER", "ttl": "2592000s"})
    buf = f"{_buf()} curl --protocol grpc {header}"
    return [
        f"grpcurl -plaintext {header} {address} keybearer.v1.TokenService/WhoAmI",
        f"{buf} -d '{new_key}' http://{address}/{service}/CreateApiKey",
        f"{buf} http://{address}/{service}/ListApiKeys",
    ]


def _buf() -> str:
    # In a virtual environment that is not activated, the plain name would not be found.
    beside = Path(sys.executable).parent / "buf"
    if shutil.which("buf") or not beside.exists():
        return "buf"
    nearby = os.path.relpath(beside)
    return shlex.quote(str(beside) if nearby.startswith("..") else nearby)


@app.command()
def init(
    *,
    account: Annotated[str, typer.Option(help="The name of the operator account.")],
    admin_email: Annotated[str, typer.Option(help="The address of its first administrator.")],
    data_dir: DataDirOption = None,
    prefix: Annotated[str, typer.Option(help="What tokens begin with.")] = DEFAULT_PREFIX,
    ttl: Annotated[
        str | None, typer.Option(help="Life of the first key, as 90d. Without: for ever.")
    ] = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Make an installation, without serving it."""
    settings = load(config, {"data_dir": data_dir})
    email = validators.email("--admin-email", admin_email)
    _assert_free(token_file)
    created = initialise(
        DataDir(settings.data_dir),
        NewAccount(
            name=validators.name("--account", account),
            admin_email=email,
            admin_display_name=email[: validators.MAX_NAME],
            expiration=Expiration(ttl=None if ttl is None else _micros(ttl)),
        ),
        prefix,
        create_store=create_store,
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
    ids = {
        "account_id": created.account.id,
        "user_id": created.user.id,
        "api_key_id": created.issued.key.id,
    }
    _answer_token(ids, created.issued.token, token_file, output)


@app.command()
def serve(
    *,
    data_dir: DataDirOption = None,
    listen: ListenOption = None,
    http_listen: HttpListenOption = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="host:port for metrics and health alone.")
    ] = None,
    http_open: Annotated[
        bool | None,
        typer.Option("--http-open", help="Ask gateways for no credential. Needs --http-account."),
    ] = None,
    http_account: Annotated[
        str | None,
        typer.Option(
            help="The account, by id, or * for all, whose keys gateways of the operator account "
            "may ask about over HTTP beside their own; with --http-open, whose keys anybody may."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes to serve with. [default: 1]")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Demand a client certificate of this authority.")
    ] = None,
    metrics_tls: Annotated[
        str | None,
        typer.Option(
            help="TLS of --metrics-listen: off, server, or mutual (with client certificates). off "
            "is plaintext, off loopback too: metrics and health hold no secret. "
            "[default: as every port]"
        ),
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow plaintext off loopback.")
    ] = None,
    reflection: Annotated[
        bool | None, typer.Option(help="Let tools ask what is served. [default: reflection]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error")] = None,
    log_format: Annotated[str | None, typer.Option(help="json or text")] = None,
    config: ConfigOption = None,
) -> None:
    """Serve an installation until SIGTERM or SIGINT."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    _serve(load(config, flags))


def _serve(settings: Settings, on_serving: Callable[[str], None] = lambda _address: None) -> None:
    logs.configure(settings.log_level, json=settings.log_format == "json")
    raise typer.Exit(supervisor.serve(settings, on_serving))


# --- break glass, keep, bring back, look after ----------------------------------------------------


@app.command("admin-token")
def admin_token(
    *,
    email: Annotated[str, typer.Option(help="An administrator; made when there is none.")],
    account: Annotated[str, typer.Option(help="Account id. [default: the operator account]")] = "",
    ttl: Annotated[str, typer.Option(help="Life of the token, as 1h.")] = "1h",
    data_dir: DataDirOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Break glass: issue an ADMIN token with access to the files alone. It is audited."""
    life = _micros(ttl)
    _assert_free(token_file)
    with _opened(config, data_dir) as container:
        issued = issue_admin_token(
            container.mutations,
            container.issuer,
            account or container.installation.operator_account_id,
            email,
            life,
        )
    ids = {
        "account_id": issued.key.account_id,
        "user_id": issued.key.owner_id,
        "api_key_id": issued.key.id,
    }
    _answer_token(ids, issued.token, token_file, output)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    *,
    data_dir: DataDirOption = None,
    keys: Annotated[
        bool, typer.Option(help="Copy the key files too, into FILE.peppers beside it.")
    ] = True,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Copy the database, while it is in use. Keep FILE and FILE.peppers apart."""
    settings = load(config, {"data_dir": data_dir})
    with _opened(config, data_dir) as container:
        back_up(container.store, DataDir(settings.data_dir), file, with_keys=keys)
    answer = {"file": str(file), "peppers": str(keys_beside(file)) if keys else ""}
    text = f"The database is in {file}."
    if keys:
        text += (
            f"\nThe key files are in {keys_beside(file)}: keep them apart. "
            "Either alone opens nothing; a restore needs both."
        )
    _answer(answer, text, output)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    *,
    data_dir: DataDirOption = None,
    peppers: Annotated[
        Path | None, typer.Option(help="The key files. [default: FILE.peppers]")
    ] = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Bring a backup back into an empty directory. What was changed since is undone."""
    settings = load(config, {"data_dir": data_dir})
    clock = SystemClock()
    restored = restore_backup(
        DataDir(settings.data_dir),
        file,
        peppers or keys_beside(file),
        open_store=open_store,
        clock=clock,
        entropy=SystemEntropy(),
    )
    age = (clock.now() - restored.last_change) // SECOND
    last = rfc3339(restored.last_change)
    _answer(
        {"epoch": restored.epoch, "keys": restored.keys, "last_change": last, "age_seconds": age},
        f"Restored {restored.keys} keys. The last change in the backup is of {last}, {age} s ago.\n"
        "Every change since is undone, revocations too: a key revoked since then works again.\n"
        "Revoke again what was revoked; the audit log of the lost database names it.",
        output,
    )


@app.command()
def check(
    *,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Look for damage in the database, the key files and the audit log."""
    with _opened(config, data_dir) as container:
        findings = check_installation(container.store, container.audit)
    _answer({"findings": findings}, "\n".join(findings) or "All is well.", output)
    if findings:
        raise typer.Exit(EXIT_FINDINGS)


@audit_app.command("verify")
def audit_verify(
    *,
    expect: Annotated[
        str | None, typer.Option(help="SEQ:HASH, a head noted earlier, as from the log.")
    ] = None,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Check the hash chain of the audit log."""
    expected = None if expect is None else _head(expect)
    with _opened(config, data_dir) as container:
        report = verify_audit(container.store, container.audit, expected)
    head = f"{report.head_seq}:{report.head_hash.hex()}"
    answer = {"events": report.events, "head": head, "broken_seq": report.broken_seq}
    if report.broken_seq is not None:
        _answer(
            {**answer, "problem": report.problem},
            f"Broken: {report.problem}. The {report.events} events before it are whole.",
            output,
        )
        raise typer.Exit(EXIT_FINDINGS)
    _answer(answer, f"{report.events} events, all whole. Head: {head}", output)


@audit_app.command("export")
def audit_export(*, data_dir: DataDirOption = None, config: ConfigOption = None) -> None:
    """Write the audit log as JSON lines, the last one being the head."""
    with _opened(config, data_dir) as container:
        for line in export_audit(container.store, container.audit):
            typer.echo(line)


@pepper_app.command("add")
def pepper_add(
    *,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Make a pepper. Secrets issued from now on use it; older ones go on with theirs."""
    with _opened(config, data_dir) as container:
        pepper = add_pepper(
            container.mutations,
            container.keyring,
            container.entropy,
            container.installation.operator_account_id,
        )
    _answer({"id": pepper.id}, f"Added the pepper {pepper.id}.", output)


@pepper_app.command("list")
def pepper_list(
    *,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """List the peppers and how many live secrets need each."""
    with _opened(config, data_dir) as container:
        peppers = list_peppers(container.store)
    rows = [
        {
            "id": pepper.id,
            "created": rfc3339(pepper.create_time),
            "retired": "" if pepper.retire_time is None else rfc3339(pepper.retire_time),
            "live_secrets": live_secrets,
        }
        for pepper, live_secrets in peppers
    ]
    if output is Output.JSON:
        typer.echo(json.dumps({"peppers": rows}))
        return
    table = Table("id", "created", "retired", "live secrets")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


@pepper_app.command("retire")
def pepper_retire(
    pepper_id: Annotated[str, typer.Argument(help="See `pepper list`.")],
    *,
    data_dir: DataDirOption = None,
    output: OutputOption = Output.TEXT,
    config: ConfigOption = None,
) -> None:
    """Retire a pepper that no live secret needs any more."""
    with _opened(config, data_dir) as container:
        retire_pepper(container.mutations, container.installation.operator_account_id, pepper_id)
    _answer({"id": pepper_id}, f"Retired the pepper {pepper_id}; its file may be removed.", output)


@app.command()
def healthcheck(
    *,
    data_dir: DataDirOption = None,  # noqa: ARG001 - every command takes it
    listen: ListenOption = None,
    tls_ca: Annotated[Path | None, typer.Option(help="The server's authority, PEM.")] = None,
    tls_name: Annotated[str | None, typer.Option(help="The name in its certificate.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Client certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Client key, PEM.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 3.0,
    config: ConfigOption = None,
) -> None:
    """Ask a running server whether it serves: exit code 0 when it does."""
    from keybearer_service.net.health_client import ask

    settings = load(config, {"listen": listen, "insecure": True})
    files = (tls_ca, tls_cert, tls_key)
    status = ask(settings.listen, files, tls_name, timeout)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(EXIT_REFUSED)


# --- helpers --------------------------------------------------------------------------------------


@contextmanager
def _opened(config: Path | None, data_dir: Path | None) -> Iterator[Container]:
    settings = load(config, {"data_dir": data_dir})
    logs.configure("warning", json=False)
    directory = DataDir(settings.data_dir)
    directory.assert_initialised()
    with directory.shared_with_server():
        container = open_container(directory, SystemClock(), SystemEntropy())
        try:
            yield container
        finally:
            container.close()


def _answer(answer: dict[str, Any], text: str, output: Output) -> None:
    typer.echo(json.dumps(answer) if output is Output.JSON else text)


def _answer_token(ids: dict[str, str], token: str, token_file: Path | None, output: Output) -> None:
    if token_file is not None:
        write_secret_file(token_file, token)
    if output is Output.JSON:
        shown = {"token": token} if token_file is None else {"token_file": str(token_file)}
        typer.echo(json.dumps({**ids, **shown}))
        return
    # The facts go to standard error, so that the token goes alone into a pipe.
    for name, value in ids.items():
        typer.echo(f"{name}: {value}", err=True)
    typer.echo(token if token_file is None else f"The token is in {token_file}.")


def _assert_free(path: Path | None) -> None:
    # Before anything is issued: a token that cannot be written down is lost.
    if path is not None and path.exists():
        raise LocalError(f"--token-file: {path} exists already")


def _micros(text: str) -> int:
    try:
        return int(parse_duration(text).total_seconds()) * SECOND
    except ValueError as error:
        raise ConfigError(f"--ttl: {error}") from None


def _head(text: str) -> tuple[int, bytes]:
    seq, _, head = text.partition(":")
    refusal = ConfigError("--expect: SEQ:HASH, a number and hexadecimal digits")
    if not seq.isascii() or not seq.isdigit():
        raise refusal
    try:
        return int(seq), bytes.fromhex(head)
    except ValueError:
        raise refusal from None


def _sqlite_version() -> str:
    return ".".join(map(str, dbapi.VERSION))


def _refuse(message: str) -> NoReturn:
    typer.echo(f"keybearer-server: {message}", err=True)
    sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
