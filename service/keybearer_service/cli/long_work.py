"""Commands that take long: they show how far they are, and end in order when broken off."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from keybearer_service.cli.output import progress_line
from keybearer_service.offline.errors import LocalError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def breakable(consequence: str) -> Iterator[Callable[[str, int, int], None]]:
    """Have a signal that asks for the end break the block off; show progress until then.

    The block tidies up, and the command ends with exit code 1 and one line. A second signal does
    not disturb that.

    Args:
        consequence: What that means, as "nothing was written".

    Raises:
        LocalError: A signal came.
    """
    broken_off_by: list[int] = []

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
        with progress_line() as progress:
            yield progress
    except Exception:
        # The error may be another one: a driver that was interrupted says so in its own way.
        if broken_off_by:
            name = signal.Signals(broken_off_by[0]).name
            raise LocalError(f"broken off by {name}: {consequence}") from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
