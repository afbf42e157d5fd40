"""Commands that take long: they show how far they are, and end in order when broken off."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from keybearer_service.offline.errors import LocalError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Progress:
    """Shows on one line of a terminal what is being done, and how much of it is."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr is not None and sys.stderr.isatty()
        self._last = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show it.

        Args:
            what: As "copying the database".
            done: How much is done.
            total: How much there is; 0 when nobody knows.
        """
        text = f"{what}: {100 * done // total} %" if total else f"{what} …"
        if self._is_shown and text != self._last:
            self._last = text
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._last:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


@contextmanager
def breakable(consequence: str) -> Iterator[Progress]:
    """Have a signal that asks for the end break the block off; show progress until then.

    The block tidies up, and the command ends with exit code 1 and one line. A second signal does
    not disturb that.

    Args:
        consequence: What that means, as "nothing was written".

    Raises:
        LocalError: A signal came.
    """
    broken_off_by: list[int] = []
    progress = Progress()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not broken_off_by:
            broken_off_by.append(number)
            raise LocalError

    before = {
        number: signal.signal(number, on_signal)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield progress
    except Exception:
        # The error may be another one: a driver that was interrupted says so in its own way.
        if broken_off_by:
            name = signal.Signals(broken_off_by[0]).name
            raise LocalError(f"broken off by {name}: {consequence}") from None
        raise
    finally:
        progress.close()
        for number, handler in before.items():
            signal.signal(number, handler)
