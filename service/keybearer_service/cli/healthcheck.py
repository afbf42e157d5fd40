"""`healthcheck`."""

from pathlib import Path
from typing import Annotated

import typer

from keybearer_service.cli.options import ConfigOption, DataDirOption, ListenOption
from keybearer_service.cli.output import EXIT_REFUSED
from keybearer_service.config import load
from keybearer_service.net.health_client import ask


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
    settings = load(config, {"listen": listen, "insecure": True})
    files = (tls_ca, tls_cert, tls_key)
    status = ask(settings.listen, files, tls_name, timeout)
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(EXIT_REFUSED)
