"""`keybearer-server` under another user's id: `python -m reliability.as_user UID COMMAND …`.

The id changes once everything is imported: the interpreter may lie where that user cannot look.
"""

import codecs
import os
import sys

from keybearer_service import cli

LATE_CODECS = ("ascii", "idna", "latin-1", "utf-8")
"""Found by name while the command runs."""


def main() -> None:
    """Change the user, and run the command."""
    uid = int(sys.argv.pop(1))
    for name in LATE_CODECS:
        codecs.lookup(name)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    cli.main()


if __name__ == "__main__":
    main()
