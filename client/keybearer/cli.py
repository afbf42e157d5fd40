"""`keybearer`: the command line of the API, for operators."""

import os
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command on the arguments of the process and end the process with its exit code."""
    # What the transport has to say, it says in the errors of its calls.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from keybearer.commands.app import run
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        sys.exit("keybearer: the command needs more than the library: pip install 'keybearer[cli]'")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
