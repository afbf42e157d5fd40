"""`serve`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from keybearer_service import supervisor
from keybearer_service.cli.options import (
    ConfigOption,
    DataDirOption,
    HttpListenOption,
    ListenOption,
    LogLevelOption,
)
from keybearer_service.config import Settings, load
from keybearer_service.net.addresses import Address
from keybearer_service.telemetry import logs


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
        str | None, typer.Option(help="The one account that --http-open opens, by id.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes to serve with. [default: 1]")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Demand a client certificate of this authority.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow plaintext off loopback.")
    ] = None,
    reflection: Annotated[
        bool | None, typer.Option(help="Let tools ask what is served. [default: reflection]")
    ] = None,
    log_level: LogLevelOption = None,
    log_format: Annotated[str | None, typer.Option(help="json or text")] = None,
    config: ConfigOption = None,
) -> None:
    """Serve an installation until SIGTERM or SIGINT."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    run_server(load(config, flags))


def run_server(
    settings: Settings, on_serving: Callable[[Address], None] = lambda _address: None
) -> None:
    """Serve until the end, then exit with the server's exit code.

    Args:
        settings: What to serve, where and how.
        on_serving: Called with the address once the server listens on it.
    """
    logs.configure(settings.log_level, json=settings.log_format == "json")
    raise typer.Exit(supervisor.serve(settings, on_serving))
