"""`python -m reliability.traced_run DIR TOKEN ADMIN SEED CHANGES PLANTS`: a run to be traced.

Serves the directory in a child, makes changes one after the other, and after each acknowledgement
appends what must be true from now on to the file `acks`: one JSON line.
"""

import json
import random
import sys
from pathlib import Path

from reliability.history import Writer, row_from
from reliability.processes import serving


def main() -> None:
    """Make the run."""
    directory, token, admin, seed, changes, bugs = sys.argv[1:]
    path = Path(directory)
    writer = Writer(0, random.Random(int(seed)), admin)
    # Unbuffered: the line is written when it is written.
    with (
        (path.parent / "acks").open("ab", buffering=0) as acks,
        serving(path, bugs=bugs.split(",")) as server,
    ):
        stubs = server.stubs(token)
        for _ in range(int(changes)):
            assert writer.step(stubs), (writer.refusals, writer.unknown, server.text)
            facts = {
                "keys": [row_from(key) for key in writer.keys],
                "users": [row_from(user) for user in writer.users],
                "revisions": sum(operation.kind is not None for operation in writer.done),
            }
            acks.write(json.dumps(facts).encode() + b"\n")
        assert server.stop() == 0, server.text


if __name__ == "__main__":
    main()
