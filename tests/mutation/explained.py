"""Mutants that survive and may: each with the reason why it changes nothing that is promised."""

_CACHE = "keybearer._cache.verdict_cache"

EXPLAINED: dict[tuple[str, str], str] = {
    (_CACHE, "0: 1 in `self.used_at = 0`"): "read only after a use, which sets it",
}
"""By module and change."""
