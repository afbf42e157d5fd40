"""Logs that keybearer cannot be reached once, when that begins, and once when it ends."""

import logging

from keybearer._wire.denial import CANNOT_CHECK, RETRY_AFTER
from keybearer.errors import VerifierUnavailableError

log = logging.getLogger(__name__)


class OutageLog:
    """Whether the last check could be made. Only a change is logged."""

    def __init__(self) -> None:
        self._is_out = False

    def failed(self, error: Exception) -> VerifierUnavailableError:
        """Note that a check could not be made, and return the error to raise."""
        if not self._is_out:
            self._is_out = True
            log.warning("keybearer cannot be reached, every caller is denied: %s", error)
        return VerifierUnavailableError(CANNOT_CHECK, retry_after=RETRY_AFTER)

    def recovered(self) -> None:
        """Note that a check could be made."""
        if self._is_out:
            self._is_out = False
            log.warning("keybearer can be reached again")
