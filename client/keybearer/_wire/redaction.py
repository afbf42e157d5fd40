"""Tokens in texts for people and in logs: found and cut out in one place."""

import re
from typing import Final

from keybearer._wire.token_format import ID_LENGTH, PREFIX_PATTERN

# Ten characters of the secret are enough: a token that was cut short is a secret too. The id before
# them is public and stays.
_TOKEN_LIKE: Final = re.compile(
    f"({PREFIX_PATTERN}_[0-9A-Za-z]{{{ID_LENGTH}}})_[0-9A-Za-z]{{10,}}", re.ASCII
)


def redact(text: str) -> str:
    """Return `text` with the secret cut out of everything that looks like a token."""
    return _TOKEN_LIKE.sub(r"\1_[redacted]", text)


def contains_token(text: str) -> bool:
    """Return whether something in `text` looks like a token, or like the beginning of one."""
    return _TOKEN_LIKE.search(text) is not None
