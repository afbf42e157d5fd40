"""The options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from keybearer.durations import parse_duration
from keybearer_service.config import ConfigError
from keybearer_service.domain.clock import SECOND


class Output(StrEnum):
    """The form in which a command prints its result."""

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
LogLevelOption = Annotated[str | None, typer.Option(help="debug, info, warning, error")]
OutputOption = Annotated[Output, typer.Option("--output", help="Form of the result.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(help="Write the token to this new file (0600) instead of showing it."),
]


def ttl_micros(text: str) -> int:
    """Parse the value of `--ttl`, such as 90d, into microseconds.

    Raises:
        ConfigError: Not a duration.
    """
    try:
        return int(parse_duration(text).total_seconds()) * SECOND
    except ValueError as error:
        raise ConfigError(f"--ttl: {error}") from None
