"""Randomness: the only module that draws it."""

import os
import secrets
from typing import Protocol

from keybearer._wire.token_format import BASE62


class Entropy(Protocol):
    """Draws what nobody must guess."""

    def base62(self, length: int) -> str:
        """Draw `length` characters of BASE62, one by one, uniformly."""
        ...

    def key_bytes(self, length: int) -> bytes:
        """Draw `length` bytes."""
        ...


class SystemEntropy:
    """The generator of the operating system."""

    def base62(self, length: int) -> str:
        """Draw `length` characters of BASE62."""
        return "".join(secrets.choice(BASE62) for _ in range(length))

    def key_bytes(self, length: int) -> bytes:
        """Draw `length` bytes."""
        return os.urandom(length)
