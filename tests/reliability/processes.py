"""Real processes: the server and its commands, started, listened to, killed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

import loaded
from harness import Stubs, initialise
from keybearer_service.domain.clock import SystemClock
from keybearer_service.domain.entropy import SystemEntropy

TESTS = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0
SMALL_PIPE = 4096
"""Some fifteen lines of a log."""
SERVER = ("-m", "keybearer_service")
ANY_PORT = ("--listen", "127.0.0.1:0")
RUN_WITH_BUGS = ("-m", "reliability.run_with_bugs")


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a child: ours, without settings of the service."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KEYBEARER_", "GRPC_"))
    }
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, **extra}


def command(
    *arguments: str, wrapper: Sequence[str] = (), entry: Sequence[str] = SERVER, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `keybearer-server` with arguments to its end, and more environment."""
    if _is_loaded(wrapper, entry):
        module, *first = entry[1:]
        return loaded.run(module, [*first, *arguments], environment(**extra), timeout=END_TIMEOUT_S)
    return subprocess.run(
        [*wrapper, sys.executable, *entry, *arguments],
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=END_TIMEOUT_S,
        check=False,
    )


def _is_loaded(wrapper: Sequence[str], entry: Sequence[str]) -> bool:
    """Return whether a fork of the loader can stand for a process of its own."""
    return not wrapper and tuple(entry[:2]) in (SERVER, RUN_WITH_BUGS)


def answer(*arguments: str) -> dict[str, Any]:
    """Run a command that must succeed, and read its JSON."""
    done = command(*arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def init(data_dir: Path) -> dict[str, str]:
    """Make an installation as `init` does; answers its ids and the first token."""
    _, created = initialise(data_dir, SystemClock(), SystemEntropy())
    return {
        "account_id": created.account.id,
        "user_id": created.user.id,
        "api_key_id": created.issued.key.id,
        "token": created.issued.token,
    }


class ServerProcess:
    """A `serve` in a process of its own, on a free port that its log tells.

    Args:
        data_dir: What to serve.
        bugs: Bugs to plant, by the names in `bugs`; makes it a server with bugs.
        wrapper: Words before the command, such as a tracer's, that leave its pid in place.
        flags: More flags of `serve`.
        entry: The arguments of the interpreter that run the command.
        read_until: The event after which nobody reads its log any more; empty for none. The pipe
            is then a small one, which is soon full.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        bugs: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        flags: Sequence[str] = (),
        entry: Sequence[str] = SERVER,
        read_until: str = "",
    ) -> None:
        entry = (*RUN_WITH_BUGS, ",".join(bugs)) if bugs else entry
        serve = ("serve", "--data-dir", str(data_dir), *ANY_PORT, *flags)
        log, written = os.pipe()
        if read_until:
            fcntl.fcntl(written, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
        self._log = os.fdopen(log, "rb")
        with os.fdopen(written, "wb"), Path(os.devnull).open("rb") as nothing:
            self._process = self._started(
                [*entry, *serve], wrapper, (nothing.fileno(), written, written)
            )
        self._channels: list[grpc.Channel] = []
        self.output = bytearray()
        self._read_until = read_until
        self._serving = threading.Event()
        self._told = threading.Condition()
        self._events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _started(
        self, words: Sequence[str], wrapper: Sequence[str], streams: tuple[int, int, int]
    ) -> "loaded.LoadedProcess | subprocess.Popen[bytes]":
        if _is_loaded(wrapper, words):
            return loaded.LoadedProcess(words[1], words[2:], environment(), streams)
        stdin, stdout, stderr = streams
        return subprocess.Popen(
            [*wrapper, sys.executable, *words],
            env=environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def text(self) -> str:
        """Everything it has written so far."""
        return bytes(self.output).decode(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of its log so far, those that are JSON."""
        return list(self._events)

    def wait_until_serving(self) -> None:
        """Wait for the log line that tells the port; fail when the process ends without it."""
        assert self._serving.wait(START_TIMEOUT_S), self.text
        assert any(event["event"] == "serving" for event in self._events), self.text

    def wait_for(self, told: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Wait until the log tells what is waited for."""
        with self._told:
            assert self._told.wait_for(lambda: told(self._events), START_TIMEOUT_S), self.text

    @property
    def address(self) -> str:
        self.wait_until_serving()
        port = next(event["port"] for event in self._events if event["event"] == "serving")
        return f"127.0.0.1:{port}"

    def channel(self) -> grpc.Channel:
        """Open a connection of its own; it is closed with the process."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(self.address, options=options)
        self._channels.append(channel)
        return channel

    def stubs(self, token: str) -> Stubs:
        """Return stubs on a connection of their own."""
        return Stubs(self.channel(), token)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self.wait()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM, and answer the exit code."""
        self.terminate()
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; answer the exit code."""
        code = self._process.wait(END_TIMEOUT_S)
        self._reader.join(END_TIMEOUT_S)
        return code

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """Make sure that nothing is left."""
        for channel in self._channels:
            channel.close()
        if not self.has_ended:
            self._process.kill()
        self.wait()
        self._log.close()

    def _read(self) -> None:
        for line in self._log:
            self.output += line
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                with self._told:
                    self._events.append(event)
                    self._told.notify_all()
                if event["event"] == "serving":
                    self._serving.set()
                if event["event"] == self._read_until:
                    return
        self._serving.set()


@contextmanager
def serving(
    data_dir: Path,
    *,
    bugs: Sequence[str] = (),
    wrapper: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Iterator[ServerProcess]:
    """Run a server for a block, and wait until it serves."""
    server = ServerProcess(data_dir, bugs=bugs, wrapper=wrapper, flags=flags)
    try:
        server.wait_until_serving()
        yield server
    finally:
        server.close()
