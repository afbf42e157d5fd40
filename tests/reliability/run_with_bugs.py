"""`python -m reliability.run_with_bugs BUG,BUG COMMAND…`: the server's command with bugs."""

import logging
import os
import sys
import threading
from dataclasses import replace
from typing import Any
from unittest import mock

import grpc
from grpc_health.v1 import health as library_health
from grpc_health.v1 import health_pb2

from keybearer_service import cli, container, supervisor
from keybearer_service.domain import token_format
from keybearer_service.http import uvicorn_server
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.net.bounds import Bounds
from keybearer_service.rpc import executors, handlers, probes
from keybearer_service.telemetry import logs
from reliability.hot_loop_bugs import LOOP_BUGS
from reliability.seeded_bugs import store_with


def _health_of_the_library() -> Any:
    """Return a `service` that has Health/Watch served by grpcio-health-checking."""
    servicer = library_health.HealthServicer(experimental_non_blocking=True)
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    watch = grpc.unary_stream_rpc_method_handler(
        servicer.Watch,
        request_deserializer=health_pb2.HealthCheckRequest.FromString,
        response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
    )
    find = handlers.MethodHandlers.service

    def service(self: handlers.MethodHandlers, details: Any) -> Any:
        return watch if details.method == "/grpc.health.v1.Health/Watch" else find(self, details)

    return service


def _without_bounds(bounds: Bounds, _available: int) -> Bounds:
    many, long = 1_000_000, 1e6
    return replace(
        bounds,
        connections=many,
        connections_of_one_peer=many,
        handshakes=many,
        handshake_s=long,
        header_s=long,
        body_s=long,
        idle_s=long,
    )


def _write_at_once(self: logs.LogHandler, record: logging.LogRecord) -> None:
    os.write(2, f"{self.format(record)}\n".encode())


def _plant(names: list[str]) -> None:
    for name in LOOP_BUGS.keys() & set(names):
        LOOP_BUGS[name]()
    if "library-health" in names:
        handlers.MethodHandlers.service = _health_of_the_library()  # type: ignore[method-assign]
    if "no-http-bounds" in names:
        vars(uvicorn_server)["within_descriptors"] = _without_bounds
    if "log-in-the-call" in names:
        logs.LogHandler.emit = _write_at_once  # type: ignore[method-assign]


def main() -> None:
    """Put the parts with bugs in place and run the command."""
    names = sys.argv[1].split(",")
    del sys.argv[1]
    parse = token_format.parse

    def telling_parse(token: str, prefixes: frozenset[str]) -> token_format.Parsed | None:
        parsed = parse(token, prefixes)
        if parsed is not None:
            sys.stderr.write(f"looking at {parsed.secret.encode().hex()}\n")
        return parsed

    def hire_nobody(_pool: executors.CallExecutor, _waiting: int) -> None:
        """Leave the threads waiting."""

    find = handlers.MethodHandlers.service

    def hold_the_serving_thread(self: handlers.MethodHandlers, details: Any) -> Any:
        if details.method == "/planted/Hold":
            sys.stderr.write('{"event": "holding"}\n')
            threading.Event().wait()
        return find(self, details)

    _plant(names)
    if {"hold-serving-thread", "short-watchdog"} & set(names):
        probes.WATCHDOG_INTERVAL_S = 1.0
    is_worker = "as-a-worker" in names
    if is_worker:
        # No bug: serves as each process of `--workers` does, without a supervisor.
        DataDir.locked = DataDir.working  # type: ignore[assignment,method-assign]

    def open_container(*arguments: Any, **keywords: Any) -> container.Container:
        keywords["shared"] |= is_worker
        return container.open_container(*arguments, **keywords)

    if "hold-serving-thread" in names:
        handlers.MethodHandlers.service = hold_the_serving_thread  # type: ignore[assignment,method-assign]

    hire = hire_nobody if "no-stand-ins" in names else executors.CallExecutor.make_up_for
    with (
        mock.patch.object(executors.CallExecutor, "make_up_for", hire),
        mock.patch.object(container, "SqliteStore", store_with(names)),
        mock.patch.object(supervisor, "open_container", open_container),
        mock.patch.object(token_format, "parse", telling_parse if "log-token" in names else parse),
    ):
        cli.main()


if __name__ == "__main__":
    main()
