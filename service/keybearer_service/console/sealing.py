"""What a browser keeps for us between two requests, so that it can neither read nor change it."""

import json
from collections.abc import Mapping
from typing import Any, Final

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from keybearer_service.domain.clock import Clock

_HEADER: Final = {"alg": "dir", "enc": "A256GCM"}


class Seal:
    """Seals values for cookies. Every process of an installation opens what another has sealed."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        """Create it.

        Args:
            key: 32 bytes for this purpose alone.
            clock: Says what is over.
        """
        self._key = OctKey.import_key(key)
        self._clock = clock

    def close(self, kind: str, value: Mapping[str, Any], lives_for: int) -> str:
        """Return a value sealed.

        Args:
            kind: What it is; it opens as nothing else.
            value: What JSON can hold.
            lives_for: Microseconds for which it can be opened.
        """
        sealed = {"kind": kind, "until": self._clock.now() + lives_for, "value": value}
        return jwe.encrypt_compact(_HEADER, json.dumps(sealed).encode(), self._key)

    def open(self, kind: str, text: str) -> Mapping[str, Any] | None:
        """Return what was sealed; None for what is over, altered or of another kind."""
        try:
            opened = jwe.decrypt_compact(text, self._key, algorithms=list(_HEADER.values()))
            sealed = json.loads(opened.plaintext or b"")
        except (JoseError, ValueError):
            return None
        if sealed["kind"] != kind or self._clock.now() >= sealed["until"]:
            return None
        value: Mapping[str, Any] = sealed["value"]
        return value
