"""Configuration: flags over `KEYBEARER_…` environment variables over a TOML file over defaults."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from keybearer_service.domain.token_format import is_id
from keybearer_service.net.addresses import Address
from keybearer_service.net.bounds import GRPC, HTTP
from keybearer_service.net.tls import TlsFiles

PREFIX: Final = "KEYBEARER_"
CONFIG_VARIABLE: Final = "KEYBEARER_CONFIG"
CLIENT_VARIABLES: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "ADDRESS",
        "CA",
        "CLIENT_CERT",
        "CLIENT_CONFIG",
        "CLIENT_KEY",
        "GATEWAY_TOKEN",
        "OUTPUT",
        "PLAINTEXT",
        "SERVER_NAME",
        "TIMEOUT",
        "TOKEN",
        "TOKEN_FILE",
        "URL",
    )
)
"""Read by the command `keybearer` and the gateways' files, which may share our environment."""
HEALTHCHECK_VARIABLES: Final = (f"{PREFIX}TLS_CA", f"{PREFIX}TLS_NAME")
"""Read by `healthcheck` alone."""
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)"
)
"""What Kubernetes sets for every pod beside a Service that is called keybearer."""


class ConfigError(Exception):
    """A setting is wrong. The text names it and what would be right."""


def _address(value: object) -> object:
    return Address.parse(value) if isinstance(value, str) else value


def _path(value: object) -> object:
    if value == "":
        raise ValueError("is empty; leave it out or name a file")
    return value


def _mode(value: object) -> object:
    # TOML has octal numbers, which arrive as integers; everything else is read as octal digits.
    text = f"{value:o}" if isinstance(value, int) else str(value)
    if not re.fullmatch(r"0?[0-7]{3}", text, re.ASCII):
        raise ValueError("three octal digits are needed, such as 660")
    return f"0{text[-3:]}"


AddressSetting = Annotated[InstanceOf[Address], NoDecode, BeforeValidator(_address)]
PathSetting = Annotated[Path, BeforeValidator(_path)]


class Settings(BaseSettings):
    """The settings of `serve` and the other commands. The names are those of the flags."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )

    file: ClassVar[Path | None] = None

    data_dir: PathSetting = Field(
        default=Path("data"),
        description="Directory of the database, the key files and the lock; on a local disk.",
    )
    listen: AddressSetting = Field(
        default=Address("127.0.0.1", 50051),
        description="Address of the gRPC port: host:port, [v6]:port or unix:/path. Port 0 takes a "
        "free one.",
    )
    unix_socket_mode: Annotated[str, BeforeValidator(_mode)] = Field(
        default="0600",
        description="Permissions of the file of a unix socket: who may write it may connect.",
    )
    http_listen: AddressSetting | None = Field(
        default=None, description="host:port for gateways, health and metrics over HTTP."
    )
    metrics_listen: AddressSetting | None = Field(
        default=None, description="host:port for metrics and health alone."
    )
    http_open: bool = Field(
        default=False,
        description="Demand no credential of gateways. Needs http_account.",
    )
    http_account: str = Field(
        default="",
        description="Account, by id, or * for all, whose keys gateways of the operator account may "
        "ask about over HTTP beside their own; with http_open, whose keys anybody may.",
    )
    workers: int = Field(
        default=1, ge=1, le=64, description="Processes that share the ports, 1 to 64."
    )
    tls_cert: PathSetting | None = Field(
        default=None, description="PEM certificate chain of the server. Needs tls_key."
    )
    tls_key: PathSetting | None = Field(
        default=None, description="PEM private key of tls_cert, not encrypted."
    )
    tls_client_ca: PathSetting | None = Field(
        default=None, description="Demand a client certificate of this authority (mutual TLS), PEM."
    )
    metrics_tls: Literal["off", "server", "mutual"] | None = Field(
        default=None,
        description="TLS of metrics_listen: off, server, or mutual (with client certificates). off "
        "is plain text, off loopback too: metrics and health hold no secret. As every port, unless "
        "given.",
    )
    max_connections: int = Field(
        default=GRPC.connections,
        ge=1,
        description="Connections of the gRPC port, of each process.",
    )
    http_max_connections: int = Field(
        default=HTTP.connections,
        ge=1,
        description="Connections of http_listen, of each process. A new one takes the place of the "
        "one that has been silent longest.",
    )
    http_max_connections_per_peer: int = Field(
        default=HTTP.connections_of_one_peer,
        ge=1,
        description="Of these, connections from one address (IPv6: one /64).",
    )
    insecure: bool = Field(
        default=False,
        description="Serve plain text off loopback, because something in front does TLS.",
    )
    reflection: bool = Field(
        default=True, description="Let tools such as grpcurl list the methods and messages."
    )
    hot_loop: bool = Field(
        default=True,
        description="Serve validations on a thread of their own, which costs half the processor "
        "time; off only when that thread is suspected of a fault.",
    )
