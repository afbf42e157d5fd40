"""Starts modules as processes, in forks of one process that has loaded them: see `loader`."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO


class LoadedProcess:
    """A run of `python -m MODULE ARGUMENTS`, to be waited for and killed as a `Popen`.

    Args:
        module: What runs.
        arguments: Its arguments.
        environment: All of its environment. What the interpreter itself reads at its start, such as
            PYTHONPATH or LANG, has no effect.
        streams: Descriptors that become its standard input, output and error.
        directory: Where it runs; here unless given.
        is_short: It is a command that leaves no thread behind, and may end at once.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        streams: tuple[int, int, int],
        directory: Path | None = None,
        *,
        is_short: bool = False,
    ) -> None:
        self._told, report = os.pipe()
        request = {
            "module": module,
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(directory or Path.cwd()),
            "is_short": is_short,
        }
        try:
            socket.send_fds(_loader(), [json.dumps(request).encode()], [*streams, report])
        finally:
            os.close(report)
        self._lines = os.fdopen(self._told)
        self._waiting = threading.Lock()
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended.
        """
        with self._waiting:
            if self.returncode is None:
                if not select.select([self._told], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
                self.returncode = int(self._lines.readline())
                self._lines.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def run(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout: float,
    stdin: str = "",
    directory: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a module to its end, without a terminal.

    Raises:
        subprocess.TimeoutExpired: It took longer than the timeout, in seconds, and was killed.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin.encode())
        given.seek(0)
        streams = (given.fileno(), out.fileno(), err.fileno())
        process = LoadedProcess(module, arguments, environment, streams, directory, is_short=True)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess([module, *arguments], code, _all_of(out), _all_of(err))


def _all_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r\n", "\n")


@functools.cache
def _loader() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = Path(__file__).with_name("loader.py")
    with theirs:
        process = subprocess.Popen(
            [sys.executable, script, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
