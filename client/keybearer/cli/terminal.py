"""Asking people: secrets without an echo, and for a yes before what cannot be undone."""

import getpass
import select
import sys
from collections.abc import Callable, Iterable

from keybearer.cli.output import note, visible
from keybearer.cli.refusals import Refusal, redact, usage

_GLANCE_S = 0.2


def is_present() -> bool:
    """Whether there is somebody who can read a question and answer it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask_secret(prompt: str) -> str | None:
    """Ask for a secret; None when there is nobody to ask.

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
    """Let somebody decide, who knows what will break.

    Args:
        question: What a yes means.
        consequences: Answers the lines to show first; asked only when somebody reads them.
        yes: It was decided already.

    Raises:
        Refusal: Not a yes, or nobody to ask.
    """
    if yes:
        return
    if not is_present():
        raise usage("this needs a confirmation: run it on a terminal, or add --yes")
    for line in consequences():
        note(redact(visible(line)))
    answer = ""
    try:
        # Within: whoever reads the question may press Ctrl-C before the answer is waited for.
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        # A signal just before a read that blocks would be noticed only after it: at the next
        # Enter. Windows cannot wait for a console like this.
        while sys.platform != "win32" and not select.select([sys.stdin], [], [], _GLANCE_S)[0]:
            pass
        answer = sys.stdin.readline()
    finally:
        # What comes next starts on a line of its own, after Ctrl-C and Ctrl-D too.
        if not answer.endswith("\n"):
            note("")
    if answer.strip().lower() not in {"y", "yes"}:
        raise Refusal("nothing was changed")
