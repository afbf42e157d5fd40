"""Mutants that survive and may: each with the reason why it changes nothing that is promised."""

_CACHE = "keybearer._cache.verdict_cache"

_RULE = "keybearer.access"
_CALLERS = "keybearer_service.validation.callers"
_USAGE = "keybearer_service.validation.usage"
_DERIVED = "field(init=False, repr=False, compare=False)`"

EXPLAINED: dict[tuple[str, str], str] = {
    (
        _RULE,
        f"False: True in `accepted_scopes: tuple[frozenset[str], ...] = {_DERIVED}",
    ): "shown and compared beside what it is computed from",
    (_CACHE, "0: 1 in `self.used_at = 0`"): "read only after a use, which sets it",
    (
        _CACHE,
        "not self._epoch or epoch != self._epoch or head < self._seen: without `not self._epoch`",
    ): "the epoch of a server is never empty, so the second condition holds already",
    (
        _CALLERS,
        "super().__init__(authenticator): removed",
    ): "what it sets is set to something else at the end of the same method",
    (
        "keybearer_service.usecases.users",
        "user.row_version + 1: Sub",
    ): "ETags are compared for equality alone, and a number that only falls is as good",
    (
        "keybearer_service.domain.verdict",
        "0: 1 in `return limit if valid_until is None else max(0, min(limit, valid_until - now))`",
    ): "a key that lives ends later than now, so it is never about zero",
    (
        "keybearer_service.usecases.revoking",
        "return False: None",
    ): "whoever calls it asks for truth alone",
    (_USAGE, "self._thread.join(): removed"): "the write after it waits for the thread's by a lock",
}
"""By module and change."""
