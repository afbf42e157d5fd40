"""`keybearer`: the command line for operators."""

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command with the arguments of the process, and exit with its exit code."""
    try:
        _silence_the_transport()
        from keybearer.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        sys.exit("keybearer: the command needs more than the library: pip install 'keybearer[cli]'")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(run(sys.argv[1:]))


def _silence_the_transport() -> None:
    """Send the log that grpc writes to file descriptor 2 to nowhere, and keep our own stderr.

    The errors of the calls say all of it. GRPC_VERBOSITY cannot be set here: grpc reads it when it
    is loaded, which is before this module. When the user has set it, nothing is changed.
    """
    if sys.stderr is None or "GRPC_VERBOSITY" in os.environ:
        return
    sys.stderr.flush()
    own = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = own
