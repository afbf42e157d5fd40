"""Questions to people: for a secret, without an echo, and for a confirmation."""

import getpass
import select
import sys
from collections.abc import Callable, Iterable

from keybearer._wire.redaction import redact
from keybearer.cli.output import note, visible
from keybearer.cli.refusals import Refusal, usage

_GLANCE_S = 0.2


def is_present() -> bool:
    """Return whether somebody can read a question and answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask_secret(prompt: str) -> str | None:
    """Ask for a secret and return it; return None when there is nobody to ask.

    Raises:
        Refusal: The answer is empty.
    """
    if not is_present():
        return None
    try:
        secret = getpass.getpass(prompt, sys.stderr).strip()
    except EOFError:
        note("")
        secret = ""
    if not secret:
        raise Refusal("no token was given")
    return secret


def confirm(question: str, consequences: Callable[[], Iterable[str]], *, yes: bool) -> None:
    """Show the consequences of a change and ask for a confirmation.

    Args:
        question: The question.
        consequences: Returns the lines to show first. It is called only when somebody reads them.
        yes: Whether the change was confirmed on the command line.

    Raises:
        Refusal: The answer is not yes, or there is nobody to ask.
    """
    if yes:
        return
    if not is_present():
        raise usage("this needs a confirmation: run it on a terminal, or add --yes")
    for line in consequences():
        note(redact(visible(line)))
    answer = ""
    try:
        # Inside the block: Ctrl-C may come before the answer is waited for.
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        # A signal just before a blocking read would be noticed only after the next Enter. Windows
        # cannot wait for a console like this.
        while sys.platform != "win32" and not select.select([sys.stdin], [], [], _GLANCE_S)[0]:
            pass
        answer = sys.stdin.readline()
    finally:
        # The next output starts on a line of its own, also after Ctrl-C and Ctrl-D.
        if not answer.endswith("\n"):
            note("")
    if answer.strip().lower() not in {"y", "yes"}:
        raise Refusal("nothing was changed")
