"""`healthcheck`."""

from pathlib import Path
from typing import Annotated

import typer

from keybearer import TLSConfig
from keybearer_service.cli.options import ConfigOption, DataDirOption, ListenOption
from keybearer_service.cli.output import EXIT_REFUSED
from keybearer_service.config import HEALTHCHECK_VARIABLES, ConfigError, Settings, load
from keybearer_service.net.health_client import ask
from keybearer_service.net.tls import TlsError, name_in_certificate

_CA_VARIABLE, _NAME_VARIABLE = HEALTHCHECK_VARIABLES


def healthcheck(
    *,
    data_dir: DataDirOption = None,  # noqa: ARG001 - every command takes it
    listen: ListenOption = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar=_CA_VARIABLE,
            metavar="FILE",
            help="Authority that names the server, PEM. Without: the server's own certificate is "
            "the one to expect.",
        ),
    ] = None,
    tls_name: Annotated[
        str | None,
        typer.Option(
            envvar=_NAME_VARIABLE,
            metavar="NAME",
            help="Name in the server's certificate. Without: the one that is in it.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Certificate to show where the server demands one, PEM. Without: the server's.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Key of --tls-cert, PEM.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait.")
    ] = 3.0,
    config: ConfigOption = None,
) -> None:
    """Ask a running server whether it serves: exit code 0 when it does.

    Reads the server's own settings, so that it needs no options where the server has none.
    """
    settings = load(config, {"listen": listen})
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert and --tls-key: give both or neither")
    if not settings.listen.is_unix and not settings.listen.port:
        raise ConfigError("listen: port 0 is any free one; name the port that the server took")
    health = ask(settings.listen, _tls(settings, tls_ca, tls_name, tls_cert, tls_key), timeout)
    typer.echo(health.status)
    if not health.is_serving:
        if health.reason:
            typer.echo(f"keybearer-server: {settings.listen}: {health.reason}", err=True)
        raise typer.Exit(EXIT_REFUSED)


def _tls(
    settings: Settings, ca: Path | None, name: str | None, cert: Path | None, key: Path | None
) -> TLSConfig | None:
    """Decide how to prove who is who; None for plaintext, where no TLS setting or option is given.

    Raises:
        TlsError: A file cannot be used.
    """
    server = settings.tls
    if server is None and ca is None and cert is None:
        return None
    if server is not None:
        ca = ca or server.certificate
        name = name or name_in_certificate(server)
        if cert is None and server.client_ca is not None:
            cert, key = server.certificate, server.key
    try:
        return TLSConfig.from_files(ca=ca, cert=cert, key=key, server_name=name)
    except OSError as error:
        raise TlsError(f"{error.filename}: {error.strerror}") from None
