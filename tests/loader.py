"""Runs Python modules as processes, each in a fork of this one, which has loaded what they load.

To load the service takes longer than nearly everything that a test does with it. What runs is the
command with its own arguments, environment, streams and end. No channel is open here, so nothing
of grpc crosses a fork. See `loaded`, which starts this process and asks it.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, Final

import keybearer.cli.app  # noqa: F401 - what takes long to load
import keybearer_service.cli  # noqa: F401 - what takes long to load

MAX_REQUEST: Final = 1 << 18
_STREAMS: Final = (
    ("stdin", "r", -1, "strict"),
    ("stdout", "w", -1, "strict"),
    ("stderr", "w", 1, "backslashreplace"),
)
"""As the interpreter opens them: name, mode, buffering, errors."""


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for every request.

    Returns:
        What to run, in a fork; nothing once nobody asks any more.
    """
    reported: dict[int, int] = {}
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, MAX_REQUEST)
            _report_ended(reported)
        if requests.fileno() not in ready:
            continue
        request, files, _, _ = socket.recv_fds(requests, MAX_REQUEST, len(_STREAMS) + 1)
        if not request:
            return None
        *streams, report = files
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.detach()
            os.closerange(len(_STREAMS), max(woken, wake, report, *streams) + 1)
            run: dict[str, Any] = json.loads(request)
            return run
        for stream in streams:
            os.close(stream)
        os.write(report, f"{pid}\n".encode())
        reported[pid] = report


def _report_ended(reported: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            report = reported.pop(pid)
            with suppress(BrokenPipeError):
                os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(report)


def become(run: dict[str, Any]) -> None:
    """Run a module as `python -m` does."""
    for number, (name, mode, buffering, errors) in enumerate(_STREAMS):
        stream = open(  # noqa: SIM115 - it stays open
            number, mode, buffering, encoding="utf-8", errors=errors, closefd=False
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(run["environment"])
    time.tzset()
    os.chdir(run["directory"])
    sys.argv = ["", *run["arguments"]]
    try:
        runpy.run_module(run["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not run["is_short"] or isinstance(end.code, str):
            raise
        # To take down all that is loaded takes longer than most commands.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)


if __name__ == "__main__":
    gc.freeze()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        become(asked)
