"""`keybearer`: the command line of the API, for operators."""

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command on the arguments of the process and end the process with its exit code."""
    try:
        _part_from_the_transport()
        from keybearer.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        sys.exit("keybearer: the command needs more than the library: pip install 'keybearer[cli]'")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(run(sys.argv[1:]))


def _part_from_the_transport() -> None:
    """Leave file descriptor 2 to the transport's log, and that to nobody.

    What it has to say is in the errors of its calls. It reads GRPC_VERBOSITY when it is loaded,
    which is before this module; where the user has set that, everything stays as it is.
    """
    if sys.stderr is None or "GRPC_VERBOSITY" in os.environ:
        return
    sys.stderr.flush()
    own = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    sys.stderr = own
