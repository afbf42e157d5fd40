"""Mutants that survive and may: each with the reason why it changes nothing that is promised."""

EXPLAINED: dict[tuple[str, str], str] = {}
"""By module and change."""
