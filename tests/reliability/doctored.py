"""`python -m reliability.doctored PLANT,PLANT COMMAND…`: the server's command with bugs planted."""

import sys
from unittest import mock

from keybearer_service import cli, core, senders, tokens
from reliability.plants import store_with


def main() -> None:
    """Put the doctored parts in place and run the command."""
    names = sys.argv[1].split(",")
    del sys.argv[1]
    parse = tokens.parse

    def telling_parse(token: str, prefixes: frozenset[str]) -> tokens.Parsed | None:
        parsed = parse(token, prefixes)
        if parsed is not None:
            sys.stderr.write(f"looking at {parsed.secret.encode().hex()}\n")
        return parsed

    def hire_nobody(_pool: senders.Pool, _waiting: int) -> None:
        """Leave the threads waiting."""

    hire = hire_nobody if "no-stand-ins" in names else senders.Pool.make_up_for
    with (
        mock.patch.object(senders.Pool, "make_up_for", hire),
        mock.patch.object(core, "SqliteStore", store_with(names)),
        mock.patch.object(tokens, "parse", telling_parse if "log-token" in names else parse),
    ):
        cli.main()


if __name__ == "__main__":
    main()
