"""`serve`."""

from collections.abc import Callable
from typing import Annotated

import structlog
import typer

from keybearer_service import supervisor
from keybearer_service.cli.options import (
    ConfigOption,
    ConsoleListenOption,
    DatabaseOption,
    DatabasePasswordFileOption,
    DataDirOption,
    HttpListenOption,
    InsecureDatabaseOption,
    ListenOption,
    LogLevelOption,
    TlsCertOption,
    TlsKeyOption,
    setting,
)
from keybearer_service.config import Settings, load_to_serve, unknown_variables
from keybearer_service.net.addresses import Address
from keybearer_service.net.bounds import described
from keybearer_service.telemetry import logs

log = structlog.get_logger(__name__)


def bounds_help() -> str:
    """Return the table of what each port holds for its clients, for the end of the help."""
    rows = [("", "gRPC port", "HTTP port", "metrics port", "console port"), *described()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    # \b: a paragraph that is not filled.
    return "\b\n" + "\n".join(["What each port holds for its clients:", *lines])


def serve(
    *,
    data_dir: DataDirOption = None,
    database: DatabaseOption = None,
    database_password_file: DatabasePasswordFileOption = None,
    insecure_database: InsecureDatabaseOption = None,
    database_proof: Annotated[str | None, setting("database_proof")] = None,
    listen: ListenOption = None,
    unix_socket_mode: Annotated[str | None, setting("unix_socket_mode")] = None,
    http_listen: HttpListenOption = None,
    metrics_listen: Annotated[str | None, setting("metrics_listen")] = None,
    console_listen: ConsoleListenOption = None,
    console_url: Annotated[str | None, setting("console_url")] = None,
    oidc_issuer: Annotated[str | None, setting("oidc_issuer")] = None,
    oidc_client_id: Annotated[str | None, setting("oidc_client_id")] = None,
    oidc_client_secret_file: Annotated[str | None, setting("oidc_client_secret_file")] = None,
    oidc_bind: Annotated[str | None, setting("oidc_bind")] = None,
    oidc_bind_account: Annotated[str | None, setting("oidc_bind_account")] = None,
    console_token_sign_in: Annotated[str | None, setting("console_token_sign_in")] = None,
    http_open: Annotated[bool | None, setting("http_open")] = None,
    http_account: Annotated[str | None, setting("http_account")] = None,
    workers: Annotated[str | None, setting("workers")] = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    tls_client_ca: Annotated[str | None, setting("tls_client_ca")] = None,
    metrics_tls: Annotated[str | None, setting("metrics_tls")] = None,
    max_connections: Annotated[str | None, setting("max_connections")] = None,
    http_max_connections: Annotated[str | None, setting("http_max_connections")] = None,
    http_max_connections_per_peer: Annotated[
        str | None, setting("http_max_connections_per_peer")
    ] = None,
    insecure: Annotated[bool | None, setting("insecure")] = None,
    reflection: Annotated[bool | None, setting("reflection")] = None,
    hot_loop: Annotated[bool | None, setting("hot_loop")] = None,
    max_keys_per_account: Annotated[str | None, setting("max_keys_per_account")] = None,
    max_users_per_account: Annotated[str | None, setting("max_users_per_account")] = None,
    log_level: LogLevelOption = None,
    log_format: Annotated[str | None, setting("log_format")] = None,
    config: ConfigOption = None,
) -> None:
    """Serve an installation until SIGTERM, SIGINT or SIGHUP."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    run_server(load_to_serve(config, flags))


def run_server(
    settings: Settings, on_serving: Callable[[Address, str], None] = lambda *_: None
) -> None:
    """Serve until the end, then exit with the server's exit code.

    Args:
        settings: What to serve, where and how.
        on_serving: Called with the address once the server listens on it, and with that of the
            console, which is empty without one.
    """
    logs.configure(settings.log_level, json=settings.log_format == "json")
    unknown = unknown_variables()
    if unknown:
        log.warning("unknown_variables", names=unknown)
    raise typer.Exit(supervisor.serve(settings, on_serving))
