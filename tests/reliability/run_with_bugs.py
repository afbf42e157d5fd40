"""`python -m reliability.run_with_bugs BUG,BUG COMMAND…`: the server's command with bugs."""

import sys
import threading
from typing import Any
from unittest import mock

from keybearer_service import cli, container, supervisor
from keybearer_service.domain import token_format
from keybearer_service.installation.data_directory import DataDir
from keybearer_service.rpc import executors, handlers, probes
from reliability.seeded_bugs import store_with


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
