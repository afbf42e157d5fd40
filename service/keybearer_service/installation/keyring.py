"""The secrets of the installation: peppers, and the key of the audit chain. Files, never rows.

A copy of the database alone can neither check nor forge a token, nor hide a change of the log.
"""

import hmac
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from keybearer_service.domain import token_format
from keybearer_service.domain.entropy import Entropy
from keybearer_service.domain.model import Pepper

KEY_BYTES = 32
"""256 bits, for peppers and for the audit key."""
_AUDIT_KEY = "audit.key"
_SUFFIX = ".pepper"
_CHECK_TEXT = b"keybearer pepper check v1"


class KeyringError(Exception):
    """A file of the keyring is missing, wrong, or open to others. The text says which and why."""


class PepperMissingError(KeyringError):
    """A row names a pepper that is not in the directory, not even after looking again."""


class Keyring:
    """The key files of one installation, in one directory. Safe for use by many threads."""

    def __init__(self, directory: Path) -> None:
        """Read every key file.

        Raises:
            KeyringError: A file is missing, malformed, or readable by everybody.
        """
        self.directory = directory
        self._audit_key = _read_key(directory / _AUDIT_KEY)
        self._peppers: dict[str, bytes] = {}
        self._macs: dict[str, hmac.HMAC] = {}
        self._reload()

    @staticmethod
    def create(directory: Path, entropy: Entropy) -> "Keyring":
        """Make the directory with a fresh audit key; peppers are added by `add_pepper`.

        Raises:
            KeyringError: There is an audit key already.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_key(directory / _AUDIT_KEY, entropy.key_bytes(KEY_BYTES))
        return Keyring(directory)

    def pepper(self, pepper_id: str) -> bytes:
        """Answer a pepper; looks into the directory once more before it gives up.

        Raises:
            PepperMissingError: No such file.
        """
        pepper = self._peppers.get(pepper_id)
        if pepper is None:
            self._reload()
            pepper = self._peppers.get(pepper_id)
        if pepper is None:
            raise PepperMissingError(f"the pepper {pepper_id} is not in {self.directory.name}/")
        return pepper

    def mac(self, pepper_id: str) -> hmac.HMAC:
        """Answer the HMAC under a pepper, prepared once, to be copied.

        Raises:
            PepperMissingError: As `pepper`.
        """
        macs = self._macs
        mac = macs.get(pepper_id)
        if mac is None:
            mac = macs[pepper_id] = token_format.mac_of(self.pepper(pepper_id))
        return mac

    def add_pepper(self, pepper_id: str, entropy: Entropy) -> bytes:
        """Draw a pepper, write its file, and answer the value to check it by."""
        pepper = entropy.key_bytes(KEY_BYTES)
        _write_key(self.directory / (pepper_id + _SUFFIX), pepper)
        self._peppers = {**self._peppers, pepper_id: pepper}
        return _check_value(pepper)

    def verify(self, peppers: Sequence[Pepper]) -> None:
        """Compare the files with what the database says of them.

        Raises:
            KeyringError: One is missing, or is not the one the database was written with.
        """
        for known in peppers:
            if known.retire_time is not None:
                continue
            if not hmac.compare_digest(_check_value(self.pepper(known.id)), known.check):
                raise KeyringError(
                    f"{self.directory.name}/{known.id}{_SUFFIX} is not the pepper this database "
                    "was written with"
                )

    @property
    def audit_key(self) -> bytes:
        """The key of the audit chain."""
        return self._audit_key

    def derived_key(self, purpose: bytes) -> bytes:
        """Answer a key for one more purpose, the same in every process of the installation."""
        return hmac.digest(self._audit_key, b"keybearer derived key v1 " + purpose, "sha256")

    def _reload(self) -> None:
        self._peppers = {
            path.name.removesuffix(_SUFFIX): _read_key(path)
            for path in self.directory.glob(f"*{_SUFFIX}")
        }
        self._macs = {}


def _check_value(pepper: bytes) -> bytes:
    return hmac.digest(pepper, _CHECK_TEXT, "sha256")


def _read_key(path: Path) -> bytes:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o007:
            raise KeyringError(f"{path} is open to everybody; run: chmod 600 {path}")
        key = bytes.fromhex(path.read_text("ascii"))
    except FileNotFoundError:
        raise KeyringError(f"{path} is missing; restore it from where the keys are kept") from None
    except (OSError, ValueError) as error:
        raise KeyringError(f"{path} is not a key file ({type(error).__name__})") from None
    if len(key) < KEY_BYTES:
        raise KeyringError(f"{path} is too short: {KEY_BYTES} bytes in hexadecimal are needed")
    return key


def _write_key(path: Path, key: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyringError(f"{path} exists already") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
