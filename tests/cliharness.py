"""The command `keybearer` for tests: run as a process, behind pipes or on a terminal."""

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

import loaded
from harness import Service, running
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy

COMMAND = Path(sys.executable).with_name("keybearer")
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Answer:
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, read as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error object on standard error."""
        return json.loads(self.err)["error"]


class Cli:
    """Runs the command against a service, as its first administrator, in a directory of its own."""

    def __init__(self, service: Service, directory: Path) -> None:
        self.service = service
        self.admin = service.admin
        self.directory = directory
        directory.mkdir(exist_ok=True)
        credential = directory / "admin.token"
        credential.write_text(service.admin_token + "\n")
        self.environment = {
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            # The code under test, also where another copy of it is installed.
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "COLUMNS": "200",
            "KEYBEARER_ADDRESS": service.address,
            "KEYBEARER_TOKEN_FILE": str(credential),
        }

    def __call__(
        self, *arguments: str, stdin: str = "", environment: dict[str, str] | None = None
    ) -> Answer:
        """Run to the end, without a terminal, in a process that has the modules loaded already.

        Loading them takes longer than nearly every command.
        """
        done = loaded.run(
            "keybearer.cli",
            arguments,
            self._with(environment),
            timeout=PATIENCE_S,
            stdin=stdin,
            directory=self.directory,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def process(self, *arguments: str, environment: dict[str, str] | None = None) -> Answer:
        """Run to the end, without a terminal, as a shell would start it."""
        done = subprocess.run(
            [COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            env=self._with(environment),
            cwd=self.directory,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())

    def done(self, *arguments: str, stdin: str = "") -> Answer:
        """Run something that must succeed."""
        answer = self(*arguments, stdin=stdin)
        assert answer.code == 0, answer.err
        return answer

    def json(self, *arguments: str) -> Any:
        """Run something that must succeed, for programs."""
        return self.done(*arguments, "--output", "json").document

    def create_key(self, name: str, **fields: Any) -> tuple[str, str]:
        """Make a key beside the command, as `Stubs.create_key`; answer its id and its token."""
        made = self.admin.create_key(name=name, **fields)
        return made.api_key.id, made.token

    def outcome(self, token: str) -> str:
        """Validate a token beside the command."""
        return self.admin.outcome(token.strip())

    def on_terminal(
        self, *arguments: str, environment: dict[str, str] | None = None, pipe_stdout: bool = False
    ) -> "Terminal":
        """Start on a terminal; standard output may be a pipe all the same."""
        return Terminal(
            [str(COMMAND), *arguments], self._with(environment), self.directory, pipe_stdout
        )

    def _with(self, environment: dict[str, str] | None) -> dict[str, str]:
        # A variable set to nothing is taken out.
        together = {**self.environment, **(environment or {})}
        return {name: value for name, value in together.items() if value}


class Terminal:
    """A process on a terminal of its own."""

    def __init__(
        self,
        arguments: list[str],
        environment: dict[str, str],
        directory: Path,
        pipe_stdout: bool,  # noqa: FBT001 - passed on
    ) -> None:
        self._master, slave = pty.openpty()
        # `setsid --ctty` makes it the controlling terminal, so that Ctrl-C is a signal; `env` has
        # it heard also where the tests run in the background of a shell, which ignores it.
        self._process = subprocess.Popen(
            ["env", "--default-signal=INT", "setsid", "--ctty", *arguments],
            stdin=slave,
            stdout=subprocess.PIPE if pipe_stdout else slave,
            stderr=slave,
            env=environment,
            cwd=directory,
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._master)

    def wait_for(self, text: str) -> None:
        """Wait until it shows a text."""
        while text not in self.shown:
            assert self._read(), f"{text!r} never came; shown was:\n{self.shown}"

    def type(self, text: str) -> None:
        """Type, as on a keyboard."""
        os.write(self._master, text.encode())

    def end(self) -> int:
        """Wait for the end and answer the exit code."""
        while self._read():
            pass
        return self._process.wait(PATIENCE_S)

    def piped(self) -> str:
        """Return what went into the pipe."""
        assert self._process.stdout is not None
        return self._process.stdout.read().decode()

    def _read(self) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
        assert ready, f"nothing comes any more; shown was:\n{self.shown}"
        try:
            read = os.read(self._master, 65_536)
        except OSError:  # the other end is closed
            return False
        # All of it, because a line's end may come in two parts.
        self.shown = (self.shown + read.decode()).replace("\r\n", "\n")
        return bool(read)


@contextmanager
def command_line(path: Path) -> Iterator[Cli]:
    """Run a fresh service, with the time of the machine, and answer the command for it."""
    with running(path / "data", SystemClock(), SystemEntropy()) as service:
        yield Cli(service, path / "here")


class MuteServer(grpc.GenericRpcHandler):
    """A server on a unix socket that takes every call and never answers."""

    def __init__(self, directory: Path) -> None:
        self.address = f"unix:{directory}/mute"
        self.called = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(self.address)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._wait)

    def _wait(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        self.called.set()
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait(PATIENCE_S)
        return b""
