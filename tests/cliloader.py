"""Runs the command `keybearer` for tests, each time in a fork of this process, loaded once.

Loading takes longer than nearly every command. A line on standard input says what to run, a line
on standard output how it ended. No channel is open here, so nothing of grpc crosses a fork.
"""

import json
import os
import sys

import keybearer.cli.app  # noqa: F401 - what takes long to load
from keybearer.cli import main

STREAMS = (
    ("stdin", os.O_RDONLY, "r"),
    ("stdout", os.O_WRONLY, "w"),
    ("stderr", os.O_WRONLY, "w"),
)


def become(run: dict[str, object]) -> None:
    """Take over arguments, environment, directory and the files that stand for the streams."""
    for number, (name, flags, mode) in enumerate(STREAMS):
        os.dup2(os.open(str(run[name]), flags), number)
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    os.environ.clear()
    os.environ.update(run["environment"])  # type: ignore[call-overload]
    os.chdir(str(run["directory"]))
    sys.argv = ["keybearer", *run["arguments"]]  # type: ignore[misc]


def code_of_main() -> int:
    """Run the command and answer its exit code.

    The caller ends the process at once: to take down a fork of all that is loaded takes long.
    """
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(end.code or 0)
    return 1


def serve() -> None:
    """Run what standard input says, until it ends."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            os._exit(code_of_main())
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
